"""Performs an admitted call: takes a place, sends, and hands the answer on as it comes.

    deployment 1: replica by the router ─ fails before its first token ─▶ another replica ─ none left ─▶ deployment 2

What a caller has seen nothing of can be given to another replica; after the first token a failure is the caller's to
know. Whoever stops reading closes the exchange, which aborts the call at the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import structlog

from controlplane.inference.gateway import questions, reading
from controlplane.inference.gateway.authority import Admission, Authority
from controlplane.inference.gateway.gathering import Gathered
from controlplane.inference.gateway.masking import Masking
from controlplane.inference.gateway.metering import Usage
from controlplane.inference.gateway.prefixes import chain
from controlplane.inference.gateway.reading import BadAnswer
from controlplane.inference.gateway.refusals import GatewayRefused
from controlplane.inference.gateway.requests import PATHS, ModelRequest, Operation
from controlplane.inference.gateway.routing import AllBusy, NoReplica, Router, Ticket
from controlplane.inference.gateway.upstream import Unreachable, Upstream, UpstreamAnswer
from controlplane.inference.values import Replica

STREAM_IDLE_SECONDS = 120.0
ERROR_BYTES_MOST = 64 * 1024
TRIES_MOST = 8
log = structlog.get_logger(__name__)
_KINDS = {Operation.CHAT: "chat.completion", Operation.COMPLETION: "text_completion"}
"""What whole answers of these operations call themselves."""


class Exchange:
    """One call that a replica has begun to answer. ``close`` it, always."""

    def __init__(
        self,
        performer: Performer,
        admission: Admission,
        deployment: str,
        operation: Operation,
        ticket: Ticket,
        answer: UpstreamAnswer,
        masking: Masking,
        begun: float,
    ) -> None:
        self._performer = performer
        self._admission = admission
        self._operation = operation
        self._answer = answer
        self._ticket: Ticket | None = ticket
        self._begun = begun
        self.deployment = deployment
        self.replica = ticket.replica
        self.decision = admission.decision
        self.usage: tuple[int, int] | None = None
        self.chunks_seen = 0
        self.is_complete = False
        self.whole: dict[str, Any] = {}
        """The answer, when it was not asked for as a stream."""
        self._first: dict[str, Any] | None = None
        self._events: reading.Events | None = None
        self._masking = masking

    @property
    def seconds(self) -> float:
        """Since the call was sent."""
        return time.monotonic() - self._begun

    async def seen(self, answer: dict[str, Any], *, is_chunk: bool = True) -> dict[str, Any]:
        """An answer or a chunk as it goes on to the caller. Raises: BadAnswer."""
        masked = await self._masking.answer(answer, is_chunk=is_chunk)
        kept = reading.rebuilt(masked, self.deployment, self._operation)
        self.usage = reading.usage(answer) or self.usage
        self.chunks_seen += 1
        return kept

    async def begin(self, events: reading.Events) -> None:
        """Take the stream's first chunk. Raises: BadAnswer, Unreachable."""
        first = await events.next()
        if first is None:
            raise BadAnswer("its stream is empty")
        self._first, self._events = await self.seen(first), events

    async def next(self) -> dict[str, Any] | None:
        """The stream's next chunk, None after the last. Raises: BadAnswer, Unreachable."""
        first, self._first = self._first, None
        if first is not None:
            return first
        event = None if self._events is None else await self._events.next()
        if event is not None:
            return await self.seen(event)
        self._events = None
        if (rest := self._masking.rest()) is not None:
            return reading.rebuilt(rest, self.deployment, self._operation)
        self.is_complete = True
        return None

    async def gather(self, events: reading.Events, kind: str) -> None:
        """Take the whole stream as one answer. Raises: BadAnswer, Unreachable."""
        gathered = Gathered(kind)
        while (event := await events.next()) is not None:
            gathered.add(await self.seen(event))
        if (rest := self._masking.rest()) is not None:
            gathered.add(reading.rebuilt(rest, self.deployment, self._operation))
        self.whole, self.is_complete = gathered.whole(), True
        await self.drain()

    async def drain(self) -> None:
        """After the last chunk: let the connection be used again."""
        await self._answer.drain()

    def close(self) -> None:
        """Give the place back; abort what the server still does; count the tokens."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return
        self._answer.close()
        ticket.release()
        # A stream that was cut off never said what it used: each of its chunks was a token or so.
        prompt, completion = self.usage or (0, self.chunks_seen if not self.is_complete else 0)
        self._performer.count(self._admission, self, prompt, completion)


class Performer:
    """All calls of one gateway process."""

    def __init__(self, authority: Authority, upstream: Upstream, router: Router | None = None) -> None:
        self._authority = authority
        self._upstream = upstream
        self.router = router or Router()

    async def perform(
        self, admission: Admission, request: ModelRequest, *, deadline_seconds: float, waits: bool
    ) -> Exchange:
        """The first replica's answer: whole, or at its first chunk. ``waits``: for a place, instead of being refused.

        Raises: GatewayRefused.
        """
        refused: GatewayRefused | None = None
        try:
            async with asyncio.timeout(deadline_seconds):
                for deployment in admission.deployments:
                    try:
                        return await self._from(admission, deployment, request, deadline_seconds, waits=waits)
                    except GatewayRefused as no:
                        if no.code in ("invalid_request", "too_large"):
                            raise
                        refused = refused or no
        except TimeoutError:
            said = f"No answer within {deadline_seconds:g} s."
            raise GatewayRefused(
                "timeout", said, fix="Ask for fewer tokens, or stream.", decision=admission.decision
            ) from None
        assert refused is not None  # noqa: S101 - an admission has at least one deployment
        refused.decision = refused.decision or admission.decision
        raise refused

    def count(self, admission: Admission, exchange: Exchange, prompt: int, completion: int) -> None:
        """Tell the authority what a call used."""
        self._authority.meter(
            Usage(
                tenant=admission.tenant,
                principal=admission.principal,
                run=admission.run,
                model=exchange.deployment,
                prompt_tokens=prompt,
                completion_tokens=completion,
                seconds=exchange.seconds,
                failed=not exchange.is_complete,
            )
        )

    async def _from(
        self, admission: Admission, deployment: str, request: ModelRequest, idle_seconds: float, *, waits: bool
    ) -> Exchange:
        prompt = chain(admission.tenant, deployment, request.prompt())
        tried: list[str] = []
        failures: list[str] = []
        while True:
            try:
                ticket = await self._place(admission, deployment, request, prompt, tried, waits=waits)
            except NoReplica:
                break
            replica = ticket.replica
            try:
                exchange = await self._sent(admission, deployment, request, ticket, idle_seconds)
                self.router.answered(replica.id)
                return exchange
            except (Unreachable, BadAnswer) as error:
                self.router.failed(replica.id)
                tried.append(replica.id)
                failures.append(f"{replica.id}: {error}")
                log.warning("a replica failed", deployment=deployment, replica=replica.id, why=str(error))
                if len(tried) >= TRIES_MOST:
                    break
            except Disobeyed as error:
                tried.append(replica.id)
                failures.append(f"{replica.id}: {error}")
            except _Busy:
                tried.append(replica.id)
                failures.append(f"{replica.id}: it has no place")
        return self._nobody(deployment, failures)

    def _nobody(self, deployment: str, failures: Sequence[str]) -> Exchange:
        """Raises what it means that no replica answered."""
        if not failures:
            raise GatewayRefused(
                "model_unavailable",
                f"The model {deployment!r} has no replica that is ready.",
                fix="Try again; `stockade model ls` says why.",
                retry_after=2,
            )
        if all(one.endswith("it has no place") for one in failures):
            raise _busy(deployment)
        said = f"No replica of {deployment!r} answered: {'; '.join(failures[:3])}."
        raise GatewayRefused(
            "model_failed", said[:1000], fix="Try again; `stockade model logs` has more.", retry_after=1
        )

    async def _place(
        self,
        admission: Admission,
        deployment: str,
        request: ModelRequest,
        prompt: Sequence[bytes],
        tried: Sequence[str],
        *,
        waits: bool,
    ) -> Ticket:
        while True:
            replicas = admission.replicas(deployment)
            able = [one for one in replicas if request.modalities <= one.modalities | {"text"}]
            if replicas and not able:
                needed = ", ".join(sorted(request.modalities))
                raise GatewayRefused(
                    "invalid_request", f"The model {deployment!r} does not take {needed}.", fix="Call one that does."
                )
            try:
                return self.router.choose(able, prompt, tried)
            except AllBusy:
                if not waits:
                    raise _busy(deployment) from None
            await self.router.wait()

    async def _sent(
        self, admission: Admission, deployment: str, request: ModelRequest, ticket: Ticket, idle_seconds: float
    ) -> Exchange:
        replica, answer, begun = ticket.replica, None, time.monotonic()
        try:
            answer = await self._upstream.post(
                replica,
                PATHS[request.operation],
                _body(admission, request, replica),
                idle_seconds=min(idle_seconds, STREAM_IDLE_SECONDS) if request.is_stream else idle_seconds,
            )
            masking = Masking(answer.key)
            if answer.status != 200:
                await _refused(answer, masking, deployment)
            exchange = Exchange(self, admission, deployment, request.operation, ticket, answer, masking, begun)
            if request.is_stream:
                await exchange.begin(reading.Events(answer.read, masking.error))
                return exchange
            if _is_gathered(request, replica):
                await exchange.gather(reading.Events(answer.read, masking.error), _KINDS[request.operation])
            else:
                exchange.whole = await exchange.seen(await reading.whole(answer.read), is_chunk=False)
                exchange.is_complete = True
            _as_asked(exchange.whole, request)
            return exchange
        except BaseException:
            if answer is not None:
                answer.close()
            ticket.release()
            raise


class Disobeyed(Exception):
    """The server works, and its model did not do what was asked of it; another try may."""


class _Busy(Exception):
    """The replica takes no more; another may."""


def _busy(deployment: str) -> GatewayRefused:
    said = f"Every replica of {deployment!r} has as many calls as it takes."
    return GatewayRefused("busy", said, fix="Try again, or deploy more replicas.", retry_after=1)


def _is_gathered(request: ModelRequest, replica: Replica) -> bool:
    return replica.kind == "llamacpp" and request.operation in _KINDS


def _body(admission: Admission, request: ModelRequest, replica: Replica) -> bytes:
    body: dict[str, Any] = {**request.body, "model": replica.served_name}
    if request.operation is not Operation.EMBEDDING:
        field = "max_completion_tokens" if request.operation is Operation.CHAT else "max_tokens"
        body = questions.limited(body, admission.tokens_limit, field if replica.kind == "external" else "max_tokens")
        if request.is_stream or _is_gathered(request, replica):
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if replica.kind == "sglang":
            body["cache_salt"] = admission.tenant
        if replica.kind == "llamacpp" and body.get("response_format") == {"type": "json_object"}:
            # Without a schema it lets the model say anything.
            body["response_format"] = {"type": "json_object", "schema": {"type": "object"}}
    return reading.encode(body)


async def _refused(answer: UpstreamAnswer, masking: Masking, deployment: str) -> None:
    """Raises what another status than 200 means: the caller's mistake, no place, or the server's failure."""
    status = answer.status
    if status == 429:
        raise _Busy
    body = await reading.gathered(answer.read, ERROR_BYTES_MOST)
    try:
        said = reading.said(masking.error(reading.parsed(body)))
    except BadAnswer:
        said = ""
    if status in (400, 413, 422):
        raise GatewayRefused(
            "too_large" if status == 413 else "invalid_request",
            f"The model {deployment!r} does not take this request: {said or f'HTTP {status}'}.",
            fix="Change the request.",
        )
    raise Unreachable(f"it answered HTTP {status}{f' ({said})' if said and status not in (401, 403) else ''}")


def _as_asked(answer: dict[str, Any], request: ModelRequest) -> None:
    """What servers promise and do not always do. Raises: BadAnswer, Disobeyed."""
    if request.operation is not Operation.CHAT:
        return
    for choice in answer["choices"]:
        message = choice.get("message")
        if not isinstance(message, dict):
            raise BadAnswer("its answer has no message")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or not all(isinstance(one, dict) for one in calls):
            raise BadAnswer("its tool calls are not a list of objects")
        if choice.get("finish_reason") == "length":
            continue
        if request.body.get("tool_choice") == "required" and not calls:
            raise Disobeyed("it called no tool, though one was required")
        if request.schema is not None and not calls and not _fits(message.get("content"), request):
            raise Disobeyed("its answer does not fit the schema")


def _fits(content: Any, request: ModelRequest) -> bool:
    if not isinstance(content, str) or request.schema is None:
        return False
    try:
        return request.schema.is_valid(reading.decode(content))
    except (ValueError, RecursionError):
        return False
