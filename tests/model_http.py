"""The port ``Models`` over plain HTTP to one server, allowing everything: for tests of the verbs alone."""

from __future__ import annotations

from typing import Any

import httpx2

from controlplane.authorization.values import Decision, EntryPoint, PolicyUnavailable
from controlplane.ids import new_id
from controlplane.inference.values import ModelAnswer, ModelCall, ModelFailed


class HttpModels:
    """Sends every call to ``url`` (ending in ``/v1``). ``refusal`` is policy's: a denial, or that it cannot answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.calls: list[ModelCall] = []
        self.refusals: list[Decision | PolicyUnavailable] = []

    async def decide(self, call: ModelCall) -> Decision:
        if "nobody" in call.models:
            raise ModelFailed("not_found", "there is no model 'nobody'")
        if self.refusals:
            refusal = self.refusals.pop()
            if isinstance(refusal, PolicyUnavailable):
                raise refusal
            return refusal
        return decision(allow=True)

    async def complete(self, call: ModelCall) -> ModelAnswer:
        self.calls.append(call)
        headers = {"Idempotency-Key": call.key}
        async with httpx2.AsyncClient(timeout=call.deadline_seconds, trust_env=False) as client:
            answer = await client.post(
                f"{self._url}/chat/completions", json={**call.body, "model": call.models[0]}, headers=headers
            )
        if answer.status_code != 200:
            kind = {429: "rate_limited", 400: "schema"}.get(answer.status_code, "model")
            raise ModelFailed(kind, f"the server answered {answer.status_code}", retryable=kind != "schema")
        said: dict[str, Any] = answer.json()
        (choice,) = said["choices"]
        return ModelAnswer(
            message=choice["message"],
            finish_reason=choice["finish_reason"],
            model=call.models[0],
            replica="rep_1",
            prompt_tokens=said["usage"]["prompt_tokens"],
            completion_tokens=said["usage"]["completion_tokens"],
            seconds=0.01,
        )


def decision(*, allow: bool) -> Decision:
    """An answer of policy that no rule made."""
    return Decision(
        id=new_id("dec"), entry=EntryPoint.TOOL, allow=allow, reasons=(), obligations=(), revision="r", engine="none",
        input_digest="d", input={},
    )  # fmt: skip
