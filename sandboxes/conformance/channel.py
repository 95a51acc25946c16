"""Tools, progress, and guests that abuse the channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandboxes.conformance.check import Bench, Check, after, ended, expect, python
from sandboxes.execution import Progress, ToolAnswer
from sandboxes.testing import Play

_SERVER = "import stockade_tools as tools\n"
_CATCH = """
seen = []
for word in ("broken", "fine"):
    try: seen.append(tools.desk.ask(word=word))
    except tools.ToolError as error: seen.append(error.type)
seen
"""
_JUNK = """
import os
for fd in range(3, 256):
    for junk in (b"\\xff" * 64, b"\\x00\\x00\\x00\\x02{}", b"\\x00\\x00\\x00\\x04null"):
        try: os.write(fd, junk)
        except OSError: break
"""
_RAW = """
import stockade_tools as tools
def send(body): tools._channel.send(len(body).to_bytes(4, "big") + body)
"""
_HOSTILE = {
    "a_number_of_5000_digits": "b'{\"progress\":[' + b'9' * 5000 + b',\"x\"]}'",
    "a_call_as_deep_as_it_goes": 'b\'{"id":1,"tool":"a.b","args":\' + b\'{"a":\' * 9000 + b\'1\' + b\'}\' * 9001',
    "a_call_of_too_many_values": 'b\'{"id":1,"tool":"a.b","args":{"a":[\' + b\'[],\' * 200000 + b\'1]}}\'',
    "a_large_frame_that_is_no_call": "b'{\"progress\":[0.5,\"' + b'x' * 100000 + b'\"]}'",
    "a_second_result": "b'{\"result\":1}'",
    "a_result_of_too_many_values": "b'{\"result\":[' + b'[],' * 1200000 + b'1]}'",
}
"""What ends in no result, and is never the platform's failure."""


async def _round_trip(bench: Bench) -> None:
    calls: list[tuple[str, Mapping[str, Any]]] = []

    async def echo(tool: str, args: Mapping[str, Any]) -> ToolAnswer:
        calls.append((tool, args))
        return ToolAnswer(value={"echo": args["text"], "n": 7})

    outcome = await bench.once(tools=echo)
    expect(calls == [("desk.ask", {"text": "żółw 🐢"})], calls)
    expect(ended(outcome) and outcome.end.result == [{"echo": "żółw 🐢", "n": 7}], outcome)


async def _catchable(bench: Bench) -> None:
    async def sometimes(tool: str, args: Mapping[str, Any]) -> ToolAnswer:
        if args["word"] == "broken":
            return ToolAnswer(error={"type": "tool_failed", "message": "it broke", "remedy": "try another"})
        return ToolAnswer(value="ok")

    outcome = await bench.once(tools=sometimes)
    expect(ended(outcome) and outcome.end.result == ["tool_failed", "ok"], outcome)


async def _denied(bench: Bench) -> None:
    outcome = await bench.once()
    expect(ended(outcome) and outcome.end.result == ["policy_denied"], outcome)


async def _many(bench: Bench) -> None:
    async def double(tool: str, args: Mapping[str, Any]) -> ToolAnswer:
        return ToolAnswer(value=args["n"] * 2)

    outcome = await bench.once(tools=double)
    expect(ended(outcome) and outcome.end.result == [n * 2 for n in range(200)], outcome)


async def _progress(bench: Bench) -> None:
    outcome = await bench.once()
    expect(ended(outcome), outcome)
    expect(
        outcome.progress == (Progress(fraction=0.25, text="a quarter"), Progress(fraction=1.0, text="done")),
        outcome.progress,
    )


async def _junk(bench: Bench) -> None:
    await bench.once()  # how the guest ends is its own affair
    expect(ended(await bench.once(1)), "the next sandbox")


CHECKS = (
    Check(
        name="tool_call_round_trip",
        programs=python(
            _SERVER + "[tools.desk.ask(text='żółw 🐢')]",
            Play(calls=(("desk.ask", {"text": "żółw 🐢"}),), answered=True),
        ),
        verify=_round_trip,
    ),
    Check(
        name="tool_error_can_be_caught",
        programs=python(
            _SERVER + _CATCH,
            Play(calls=(("desk.ask", {"word": "broken"}), ("desk.ask", {"word": "fine"})), answered=True),
        ),
        verify=_catchable,
    ),
    Check(
        name="tools_are_denied_by_default",
        programs=python(
            _SERVER + "try: answer = tools.desk.ask()\nexcept tools.ToolError as error: answer = error.type\n[answer]",
            Play(calls=(("desk.ask", {}),), answered=True),
        ),
        verify=_denied,
    ),
    Check(
        name="two_hundred_tool_calls",
        programs=python(
            _SERVER + "[tools.desk.double(n=n) for n in range(200)]",
            Play(calls=tuple(("desk.double", {"n": n}) for n in range(200)), answered=True),
        ),
        verify=_many,
    ),
    Check(
        name="progress_in_order",
        programs=python(
            _SERVER + "tools.progress(0.25, 'a quarter')\ntools.progress(1.0, 'done')",
            Play(progress=(Progress(fraction=0.25, text="a quarter"), Progress(fraction=1.0, text="done"))),
        ),
        verify=_progress,
    ),
    Check(
        name="junk_on_the_channel_hurts_nobody_else",
        programs=(*python(_JUNK, Play(schema_error="junk")), *python("print('fine')", Play(stdout=b"fine\n"))),
        verify=_junk,
    ),
    Check(
        name="progress_beyond_what_a_float_can_be",
        programs=python(
            _RAW + "send(b'{\"progress\":[' + b'9' * 400 + b',\"x\"]}')\n1",
            Play(progress=(Progress(fraction=1.0, text="x"),), result=1, has_result=True),
        ),
        verify=after(lambda o: ended(o) and o.end.result == 1 and o.progress == (Progress(fraction=1.0, text="x"),)),
    ),
    *(
        Check(
            name=f"{name}_is_the_guests_failure",
            programs=python(f"{_RAW}send({body})\n1", Play(schema_error="not a frame")),
            verify=after(lambda o: not o.end.has_result),
        )
        for name, body in _HOSTILE.items()
    ),
)
