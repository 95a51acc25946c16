"""``stockade logs``: what steps wrote, both streams, and as they write it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stockade.cli import inputs
from stockade.cli.exits import Exit, Refusal, visible
from stockade.cli.output import Format, say, show_value
from stockade.client import Client, Step

FIRST_PAUSE_SECONDS = 0.3
LONGEST_PAUSE_SECONDS = 2.0
STREAMS = ("stdout", "stderr")
_WRITE = frozenset({"code", "tool"})
_ENDED = frozenset({"completed", "failed", "skipped", "cancelled"})


@dataclass
class _Told:
    """How much of a step's streams was printed, in characters, and of which attempt."""

    attempt: str | None = None
    read: dict[str, int] = field(default_factory=dict)
    done: bool = False


def logs(client: Client, name: str, path: str | None, stream: str | None, follow: bool, form: Format) -> None:
    """Print what a step wrote, or every step under its path; with ``follow`` until the run ends."""
    if stream not in (None, *STREAMS):
        raise Refusal(Exit.USAGE, "no such stream", where=stream, fix="--stream stdout, --stream stderr, or neither")
    run_id = inputs.find_run(client, name)
    streams = STREAMS if stream is None else (stream,)
    told: dict[str, _Told] = {}
    pause = FIRST_PAUSE_SECONDS
    wrote = False
    while True:
        # Asked before the steps: what was written before the run ended is then printed below.
        ended = not follow or client.run(run_id).ended
        steps = [client.step(run_id, path)] if path is not None else client.steps(run_id)
        ended = ended or (path is not None and steps[0].status in _ENDED)
        news = False
        for step in steps:
            for which, line in _fresh(client, run_id, step, streams, told.setdefault(step.path, _Told()), not follow):
                news = wrote = True
                _print(step.path, which, line, form, named=path is None, marked=len(streams) > 1)
        sys.stdout.flush()
        if ended:
            break
        pause = FIRST_PAUSE_SECONDS if news else min(pause * 1.5, LONGEST_PAUSE_SECONDS)
        time.sleep(pause)
    if not wrote and sys.stderr.isatty():
        say("nothing was written yet" if not follow else "nothing was written")


def _fresh(
    client: Client, run_id: str, step: Step, streams: Sequence[str], told: _Told, unfinished: bool
) -> Iterator[tuple[str, str]]:
    """Lines not printed yet; ``unfinished`` ones too where the step ended or one asks. A new attempt begins again."""
    if step.verb not in _WRITE or step.attempt is None or told.done:
        return
    if told.attempt != step.attempt:
        told.attempt, told.read = step.attempt, {}
    told.done = step.status in _ENDED
    for which in streams:
        if step.report is not None and getattr(step.report, f"{which}_bytes") == 0:
            continue
        text = client.logs(run_id, step.path, which)
        begun = told.read.get(which, 0)
        told.read[which] = end = len(text) if told.done or unfinished else text.rfind("\n") + 1
        for line in text[begun:end].splitlines():
            yield which, line


def _print(path: str, stream: str, line: str, form: Format, *, named: bool, marked: bool) -> None:
    if form in (Format.JSON, Format.JSONL, Format.YAML):
        show_value({"path": path, "stream": stream, "line": line}, Format.JSONL)
        return
    prefix = f"{path} | " if named else ""
    print(f"{prefix}{'! ' if marked and stream == 'stderr' else ''}{visible(line)}")
