"""Submitting runs, following them, and what a person can do to them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from stockade.cli import inputs
from stockade.cli.exits import Exit, Refusal, location, of_problem, of_run, show, visible
from stockade.cli.output import Format, age, console, say, show_list, show_table, show_value
from stockade.cli.watching import follow
from stockade.client import Client, Run, Step, StockadeError

DATA_FORMS = frozenset({Format.JSON, Format.JSONL, Format.YAML})


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
    try:
        submitted = client.submit(definition, inputs.run_input(given), labels=inputs.pairs(labels, "value"))
    except StockadeError as error:
        raise of_problem(error, workflow) from None
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
        done = follow(client, run_id, console(stderr=form in DATA_FORMS), live, deadline)
    except TimeoutError:
        raise _too_slow(client, run_id, timeout or 0.0) from None
    except KeyboardInterrupt:
        say(f"the run goes on: stockade watch {run_id}   (stockade cancel {run_id} ends it)")
        return int(Exit.INTERRUPTED)
    _print_run(done, form, quiet)
    if done.error is not None and not quiet:
        path = done.error.path or ""
        show(
            Refusal(
                of_run(done), f"the run {done.status}: {done.error.type}", where=f"{done.id} {path}".strip(),
                why=done.error.message, fix=f"stockade explain {done.id} {path}".strip(),
            )
        )  # fmt: skip
    return int(of_run(done))


def _too_slow(client: Client, run_id: str, seconds: float) -> Refusal:
    """What the run waits for, as the exit code's difference: a person, a place, or nothing but time."""
    waiting = [step for step in client.steps(run_id) if step.status == "waiting"]
    asking = next((step for step in waiting if step.verb == "approve"), None)
    if asking is not None:
        fix = f"stockade approve {run_id} {asking.path}"
        return Refusal(Exit.WAITS_FOR_PERSON, "the run waits for a person", where=f"{run_id} {asking.path}", fix=fix)
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


def validate(client: Client, workflow: str, given: Sequence[str], form: Format) -> int:
    """Print what a submit would meet. 0 if it would run now, else the code that says why not."""
    definition = inputs.workflow(workflow)
    try:
        found = client.validate(definition, inputs.run_input(given))
    except StockadeError as error:
        raise of_problem(error, workflow) from None
    if form in DATA_FORMS:
        show_value(found.model_dump(mode="json"), form)
    elif found.valid:
        rows = [
            [one.path, one.tier or "-", one.node or "-", "; ".join(reason.message for reason in one.waiting or ())]
            for one in found.placements
        ]
        show_table(["STEP", "TIER", "NODE", "WAITS FOR"], [[visible(cell) for cell in row] for row in rows])
    if not found.valid:
        for problem in found.problems:
            where = location(problem, workflow)
            show(Refusal(Exit.USAGE, "the workflow is not valid", where=where, why=problem.message, fix=problem.hint))
        return int(Exit.USAGE)
    if found.decision is not None and not found.decision.allow:
        for reason in found.decision.reasons:
            show(
                Refusal(
                    Exit.DENIED, f"policy would deny this: {reason.code}", where=reason.rule or workflow,
                    why=reason.message, fix=reason.remedy or "",
                )
            )  # fmt: skip
        return int(Exit.DENIED)
    return int(Exit.NOT_PLACED if any(one.waiting for one in found.placements) else Exit.OK)


def ps(client: Client, status: str | None, limit: int, form: Format) -> None:
    """List runs."""
    columns: list[tuple[str, Any]] = [
        ("RUN", lambda run: run.id),
        ("WORKFLOW", lambda run: f"{run.workflow.name}@{run.workflow.version}"),
        ("STATUS", lambda run: run.status),
        ("STEPS", lambda run: f"{run.steps.by_status.get('completed', 0)}/{run.steps.total}"),
        ("DENIED", lambda run: run.decisions.denied),
        ("AGE", lambda run: age(run.created_at)),
    ]
    wide: list[tuple[str, Any]] = [("DIGEST", lambda run: run.workflow.digest), ("BY", lambda run: run.principal)]
    show_list(client.runs(status=status, limit=limit).data, form, columns, wide)


def show_run(client: Client, name: str, form: Format) -> None:
    """Print one run."""
    run = client.run(inputs.find_run(client, name))
    show_value(run.model_dump(mode="json"), form if form in DATA_FORMS else Format.JSON)


def logs(client: Client, name: str, path: str | None, stream: str) -> None:
    """Print what a step wrote, or every step that wrote something, each line under its path."""
    if stream not in ("stdout", "stderr"):
        raise Refusal(Exit.USAGE, "no such stream", where=stream, fix="--stream stdout or --stream stderr")
    run_id = inputs.find_run(client, name)
    if path is not None:
        sys.stdout.write(visible(client.logs(run_id, path, stream)))
        return
    for step in client.steps(run_id):
        written = (step.report.stdout_bytes if stream == "stdout" else step.report.stderr_bytes) if step.report else 0
        if written:
            for line in client.logs(run_id, step.path, stream).splitlines():
                print(f"{step.path} | {visible(line)}")


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
    why = (
        "nothing waits for a person"
        if not asking
        else f"{len(asking)} steps wait: " + ", ".join(step.path for step in asking)
    )
    fix = f"stockade watch {run_id}" if not asking else f"stockade approve {run_id} STEP"
    raise Refusal(Exit.NOT_FOUND if not asking else Exit.USAGE, "which step?", where=run_id, why=why, fix=fix)


def cancel(client: Client, name: str, reason: str | None) -> None:
    """Ask a run to end."""
    run = client.cancel(inputs.find_run(client, name), reason)
    say(f"{run.id} is {run.status}")
