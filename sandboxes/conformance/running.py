"""Exit codes, streams, stdin, environment."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import anyio

from sandboxes.conformance.check import (
    Bench,
    Check,
    Program,
    after,
    collect,
    ended,
    expect,
    python,
    shell,
    until,
)
from sandboxes.driver import Feature
from sandboxes.execution import Command, Event, ExitReason
from sandboxes.testing import Play

_STREAMS = """
import sys
for i in range(1024):
    sys.stdout.write(f"{i:04d}" + "o" * 1019 + "\\n")
    sys.stderr.write(f"{i:04d}" + "e" * 1019 + "\\n")
"""
_OUT = b"".join(b"%04d" % i + b"o" * 1019 + b"\n" for i in range(1024))
_ERR = b"".join(b"%04d" % i + b"e" * 1019 + b"\n" for i in range(1024))
_BYTES = bytes(range(256)) * 64


async def _two_commands(bench: Bench) -> None:
    async with bench.open() as sandbox:
        first = await bench.run(sandbox, 0)
        second = await bench.run(sandbox, 1)
    expect(ended(first, 4) and ended(second) and second.stdout == b"second\n", (first, second))


async def _conversation(bench: Bench) -> None:
    said, heard = anyio.create_memory_object_stream[bytes](1)
    command = dataclasses.replace(bench.command(), stdin=heard)
    async with heard, bench.open() as sandbox, aclosing(_events(sandbox.execute(command))) as events:
        with said:
            for line in (b"first\n", b"second\n"):
                await said.send(line)
                expect(await until(events, line) == line, f"no answer to {line!r} while stdin is open")
        expect(ended(await collect(events)), "no end when stdin ended")


async def _events(events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
    async for event in events:
        yield event


CHECKS = (
    Check(
        name="prints_and_exits_with_zero",
        programs=python("print('hello')", Play(stdout=b"hello\n")),
        verify=after(lambda o: ended(o) and o.stdout == b"hello\n" and o.stderr == b""),
    ),
    Check(
        name="exit_code_3",
        programs=python("import sys; sys.exit(3)", Play(code=3)),
        verify=after(lambda o: ended(o, 3) and o.end.signal is None),
    ),
    Check(
        name="exit_code_255",
        programs=python("import sys; sys.exit(255)", Play(code=255)),
        verify=after(lambda o: ended(o, 255) and o.end.signal is None),
    ),
    Check(
        name="uncaught_exception_is_code_1_with_a_traceback",
        programs=python("raise ValueError('my words')", Play(code=1, stderr=b"ValueError: my words\n")),
        verify=after(lambda o: ended(o, 1) and b"ValueError: my words" in o.stderr and not o.end.has_result),
    ),
    Check(
        name="syntax_error_is_code_1",
        programs=python("def f(:", Play(code=1, stderr=b"SyntaxError: invalid syntax\n")),
        verify=after(lambda o: ended(o, 1) and b"SyntaxError" in o.stderr),
    ),
    Check(
        name="both_streams_exact_under_load",
        programs=python(_STREAMS, Play(stdout=_OUT, stderr=_ERR)),
        verify=after(lambda o: ended(o) and o.stdout == _OUT and o.stderr == _ERR and not o.end.output_truncated),
    ),
    Check(
        name="binary_output",
        programs=python(
            "import sys; sys.stdout.buffer.write(bytes(range(256)) * 64); sys.stdout.flush()", Play(stdout=_BYTES)
        ),
        verify=after(lambda o: ended(o) and o.stdout == _BYTES),
    ),
    Check(
        name="unicode_both_ways",
        programs=python("print('żółw 🐢 \\u202e')", Play(stdout="żółw 🐢 \u202e\n".encode())),
        verify=after(lambda o: ended(o) and o.stdout.decode() == "żółw 🐢 \u202e\n"),
    ),
    Check(
        name="stdin_reaches_the_guest",
        programs=python(
            "import sys; print(len(sys.stdin.buffer.read()))", Play(stdout=b"300000\n"), stdin=b"x" * 300_000
        ),
        verify=after(lambda o: ended(o) and o.stdout == b"300000\n"),
    ),
    Check(
        name="stdin_nobody_reads_is_no_failure",
        programs=python("print('deaf')", Play(stdout=b"deaf\n"), stdin=b"x" * 300_000),
        verify=after(lambda o: ended(o) and o.stdout == b"deaf\n"),
    ),
    Check(
        name="stdin_is_fed_while_the_guest_runs",
        needs=frozenset({Feature.PYTHON, Feature.STREAMED_STDIN}),
        programs=python("import sys\nfor line in sys.stdin: print(line, end='', flush=True)", Play(echoes=True)),
        verify=_conversation,
    ),
    Check(
        name="environment_of_the_command",
        programs=python("import os; print(os.environ['GREETING'])", Play(stdout=b"hi $x\n"), env={"GREETING": "hi $x"}),
        verify=after(lambda o: ended(o) and o.stdout == b"hi $x\n"),
    ),
    Check(
        name="two_commands_one_after_the_other",
        programs=(
            *python("import sys; sys.exit(4)", Play(code=4)),
            *python("print('second')", Play(stdout=b"second\n")),
        ),
        verify=_two_commands,
    ),
    Check(
        name="shell_pipeline_and_exit_code",
        needs=frozenset({Feature.SHELL}),
        programs=shell(
            'printf "b\\na\\n" | sort; echo "$NAME" >&2; exit 3',
            Play(stdout=b"a\nb\n", stderr=b"it's\n", code=3),
            env={"NAME": "it's"},
        ),
        verify=after(lambda o: ended(o, 3) and o.stdout == b"a\nb\n" and o.stderr == b"it's\n"),
    ),
    Check(
        name="argv_is_not_split_or_expanded",
        needs=frozenset({Feature.ARGV}),
        programs=(
            Program(
                command=Command(language="argv", argv=("/usr/bin/printf", "%s|", "a b", "$HOME", "*", "")),
                play=Play(stdout=b"a b|$HOME|*||"),
            ),
        ),
        verify=after(lambda o: ended(o) and o.stdout == b"a b|$HOME|*||"),
    ),
    Check(
        name="a_signal_is_told_from_an_exit",
        needs=frozenset({Feature.PYTHON, Feature.SUBPROCESSES}),
        programs=python("import os; os.kill(os.getpid(), 9)", Play(reason=ExitReason.KILLED)),
        verify=after(lambda o: o.end.reason is ExitReason.KILLED and o.end.signal == 9),
    ),
)
