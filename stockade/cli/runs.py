"""Submitting runs, following them, and what a person can do to them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from stockade.cli import inputs
from stockade.cli.exits import Exit, Refusal, of_run, sent, show, visible
from stockade.cli.output import DATA_FORMS, Format, age, console, say, show_list, show_value
from stockade.cli.tree import question
from stockade.cli.watching import follow
from stockade.client import Client, Run, RunError, Step

MOST_ASKED = 200
MOST_ASKED_CHARACTERS = 40
_LOGGED = frozenset({"sandbox_exit", "memory", "timeout"})
"""Types of error of which the step's own output says more."""


def run(
    client: Client,
    workflow: str,
    given: Sequence[str],
    labels: Sequence[str],
    how: str,
    quiet: bool,
    timeout: float | None,
    form: Format,
) -> int:
    """Submit, then return, wait or watch."""
    definition = inputs.workflow(workflow)
    with sent(workflow, lambda problem: inputs.remedy(problem, given)):
        submitted = client.submit(definition, inputs.run_input(given), labels=inputs.pairs(labels, "value"))
    if how == "default":
        how = "watch" if sys.stdout.isatty() else "detach"
    if how == "detach":
        _print_run(submitted, form, quiet)
        return int(Exit.OK)
    if not quiet:
        say(f"run {submitted.id}")
    return _finish(client, submitted.id, form, live=how == "watch" and not quiet, quiet=quiet, timeout=timeout)


def watch(client: Client, name: str, form: Format) -> int:
    """Follow a run to its end."""
    return _finish(client, inputs.find_run(client, name), form, live=True, quiet=False, timeout=None)


def _finish(client: Client, run_id: str, form: Format, *, live: bool, quiet: bool, timeout: float | None) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        done = follow(client, run_id, console(stderr=form in DATA_FORMS), live, deadline, silent=quiet)
    except TimeoutError:
        raise _too_slow(client, run_id, timeout or 0.0) from None
    except KeyboardInterrupt:
        say(f"the run goes on: stockade watch {run_id}   (stockade cancel {run_id} ends it)")
        return int(Exit.INTERRUPTED)
    _print_run(done, form, quiet)
    if done.error is not None and not quiet:
        place = f"{done.id} {done.error.path or ''}".strip()
        fix = f"stockade {'logs' if done.error.path and done.error.type in _LOGGED else 'explain'} {place}"
        if done.status == "cancelled":
            show(Refusal(of_run(done), "the run was cancelled", where=place, why=_why_cancelled(done.error)))
        else:
            what = f"the run {done.status}: {done.error.type}"
            show(Refusal(of_run(done), what, where=place, why=done.error.message, fix=fix))
    return int(of_run(done))


def _why_cancelled(error: RunError) -> str:
    return "" if error.message in ("", "cancelled") else error.message


def _too_slow(client: Client, run_id: str, seconds: float) -> Refusal:
    """What the run waits for, as the exit code's difference: a person, a place, or nothing but time."""
    waiting = [step for step in client.steps(run_id) if step.status == "waiting"]
    asking = next((step for step in waiting if step.verb == "approve"), None)
    if asking is not None:
        fix = f"stockade approve {run_id} {asking.path}"
        where, why = f"{run_id} {asking.path}", f"asks: {question(asking)}"
        return Refusal(Exit.WAITS_FOR_PERSON, "the run waits for a person", where=where, why=why, fix=fix)
    unplaced = next((step for step in waiting if step.waiting), None)
    if unplaced is not None and unplaced.waiting:
        first = unplaced.waiting[0]
        where = f"{run_id} {unplaced.path}"
        return Refusal(
            Exit.NOT_PLACED, "the step cannot be placed now", where=where, why=first.message, fix=first.fix or ""
        )
    fix = f"stockade watch {run_id}"
    return Refusal(Exit.TIMEOUT, f"the run goes on after {seconds:g} s", where=run_id, fix=fix)


def _print_run(run: Run, form: Format, quiet: bool) -> None:
    if form is Format.NAME or (not run.ended and form not in DATA_FORMS):
        print(run.id)
    elif form in DATA_FORMS:
        show_value(run.model_dump(mode="json"), form)
    elif run.output is not None and not quiet:
        text = run.output if isinstance(run.output, str) else json.dumps(run.output, indent=2, ensure_ascii=False)
        print(visible(text))


def ps(client: Client, status: str | None, limit: int, form: Format) -> None:
    """List runs. ``waiting`` are those of which a step waits: for a person, a place, or its time."""
    if status == "waiting":
        found = [
            run for run in client.runs(status="running", limit=MOST_ASKED).data if run.steps.by_status.get("waiting")
        ]
        found = found[:limit]
    else:
        found = client.runs(status=status, limit=limit).data
    # Asked once for all: which of them a person can let go on.
    asked = {run.id: _asked(client, run) for run in found if form not in DATA_FORMS}
    columns: list[tuple[str, Any]] = [
        ("RUN", lambda run: run.id),
        ("WORKFLOW", lambda run: f"{run.workflow.name}@{run.workflow.version}"),
        ("STATUS", lambda run: run.status),
        ("STEPS", lambda run: f"{run.steps.by_status.get('completed', 0)}/{run.steps.total}"),
        ("NOTE", lambda run: _note(run, asked.get(run.id, "")) or "-"),
        ("DENIED", lambda run: run.decisions.denied),
        ("AGE", lambda run: age(run.created_at)),
    ]
    wide: list[tuple[str, Any]] = [("DIGEST", lambda run: run.workflow.digest), ("BY", lambda run: run.principal)]
    show_list(found, form, columns, wide)


def _asked(client: Client, run: Run) -> str:
    """What a waiting run asks a person; nothing for one that waits for something else."""
    if run.ended or not run.steps.by_status.get("waiting"):
        return ""
    return next((question(step) for step in client.steps(run.id) if question(step)), "")


def _note(run: Run, asked: str) -> str:
    """What the counts of completed steps leave out."""
    counts = run.steps.by_status
    failed, waiting = counts.get("failed", 0), counts.get("waiting", 0)
    notes = []
    if asked:
        notes.append(f"asks: {asked if len(asked) <= MOST_ASKED_CHARACTERS else asked[:MOST_ASKED_CHARACTERS] + '…'}")
    elif waiting and not run.ended:
        notes.append(f"{waiting} waiting")
    if failed:
        notes.append(f"{failed} failed{', tolerated' if run.status == 'completed' else ''}")
    return "; ".join(" ".join(note.split()) for note in notes)


def show_run(client: Client, name: str, form: Format) -> None:
    """Print one run."""
    run = client.run(inputs.find_run(client, name))
    show_value(run.model_dump(mode="json"), form if form in DATA_FORMS else Format.JSON)


def decide(client: Client, name: str, path: str | None, approve: bool, comment: str | None) -> None:
    """Approve or reject the step, or the only one that waits for a person."""
    run_id = inputs.find_run(client, name)
    target = path or _asking(client, run_id).path
    decided = (client.approve if approve else client.reject)(run_id, target, comment)
    say(f"{'approved' if approve else 'rejected'} {run_id} {decided.path}")


def _asking(client: Client, run_id: str) -> Step:
    asking = [step for step in client.steps(run_id) if step.verb == "approve" and step.status == "waiting"]
    if len(asking) == 1:
        return asking[0]
    if not asking:
        why = "nothing waits for a person"
        raise Refusal(Exit.NOT_FOUND, "which step?", where=run_id, why=why, fix=f"stockade watch {run_id}")
    why = f"{len(asking)} steps wait: " + ", ".join(step.path for step in asking)
    raise Refusal(Exit.USAGE, "which step?", where=run_id, why=why, fix=f"stockade approve {run_id} STEP")


def cancel(client: Client, name: str, reason: str | None) -> int:
    """Ask a run to end. 1 where it had ended in another way before."""
    run_id = inputs.find_run(client, name)
    before = client.run(run_id)
    if before.ended:
        say(f"{run_id} was {before.status} already; nothing to cancel")
        return int(Exit.OK if before.status == "cancelled" else Exit.FAILED)
    run = client.cancel(run_id, reason)
    say(f"{run.id} is {run.status}")
    return int(Exit.OK)
