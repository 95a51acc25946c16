"""The port ``Models``: how the verbs of workflows call models, by the same way as everybody else."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

from controlplane.authorization.values import Decision, PolicyUnavailable
from controlplane.inference.gateway.authority import Admission, LocalAuthority
from controlplane.inference.gateway.performing import Performer
from controlplane.inference.gateway.reading import TOKENS_MOST
from controlplane.inference.gateway.refusals import GatewayRefused, denied
from controlplane.inference.gateway.requests import ModelRequest, Operation, checked
from controlplane.inference.values import ModelAnswer, ModelCall, ModelFailed

REMEMBERED_MOST = 10_000


class GatewayModels:
    """``Models`` over the gateway's own parts. A call that was not decided here (before a restart, say) is decided
    again when it is to be performed."""

    def __init__(self, authority: LocalAuthority, performer: Performer) -> None:
        self._authority = authority
        self._performer = performer
        self._admitted: OrderedDict[tuple[str, str], Admission] = OrderedDict()

    async def decide(self, call: ModelCall) -> Decision:
        """What ``runtime.model`` says. Raises: PolicyUnavailable; ModelFailed for a name nobody has, or a body that no
        model takes."""
        try:
            decision, deployments = await self._authority.decide(
                call.tenant, _request(call), _asker(call), labels=call.labels, via="step"
            )
        except GatewayRefused as refused:
            if isinstance(refused.__cause__, PolicyUnavailable):
                raise refused.__cause__ from None
            raise refused.as_failure() from None
        if decision.allow:
            self._admitted[call.tenant, call.key] = self._authority.admission(
                call.tenant, call.principal, decision, deployments, call.run or ""
            )
            while len(self._admitted) > REMEMBERED_MOST:
                self._admitted.popitem(last=False)
        return decision

    async def complete(self, call: ModelCall) -> ModelAnswer:
        """Perform an allowed call, on a ready replica, failing over before the first token. Raises: ModelFailed."""
        try:
            admission = await self._admission(call)
            exchange = await self._performer.perform(
                admission, _request(call), deadline_seconds=call.deadline_seconds, waits=True
            )
        except GatewayRefused as refused:
            raise refused.as_failure() from None
        try:
            return _answer(exchange.whole, exchange.deployment, exchange.replica.id, exchange.seconds, exchange.usage)
        finally:
            exchange.close()

    async def _admission(self, call: ModelCall) -> Admission:
        known = self._admitted.pop((call.tenant, call.key), None)
        if known is not None:
            return known
        try:
            decision = await self.decide(call)
        except PolicyUnavailable:
            raise ModelFailed("model", "Policy does not answer now.", retryable=True) from None
        if not decision.allow:
            raise denied(decision)
        return self._admitted.pop((call.tenant, call.key))


def _request(call: ModelCall) -> ModelRequest:
    # A step holds the answer against its schema itself, and has the model mend it.
    return replace(checked(Operation.CHAT, call.models, call.body), schema=None)


def _asker(call: ModelCall) -> dict[str, Any]:
    return {
        "subject": {"id": call.principal, "kind": "service", "scopes": []},
        "run": call.run,
        "step": call.path or None,
        **call.asker,
    }


def _answer(
    whole: dict[str, Any], deployment: str, replica: str, seconds: float, usage: tuple[int, int] | None
) -> ModelAnswer:
    if not whole["choices"]:
        raise ModelFailed("model", f"The model {deployment!r} gave an answer without a choice.", retryable=True)
    choice = whole["choices"][0]
    prompt, completion = usage or (0, 0)
    return ModelAnswer(
        message=choice["message"],
        finish_reason=str(choice.get("finish_reason") or "stop"),
        model=deployment,
        replica=replica,
        prompt_tokens=min(prompt, TOKENS_MOST),
        completion_tokens=min(completion, TOKENS_MOST),
        seconds=seconds,
    )
