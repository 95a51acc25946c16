"""Why: a decision in words, or a run's steps with where they are and what policy said."""

from __future__ import annotations

from typing import Any

from stockade.cli import inputs
from stockade.cli.exits import visible
from stockade.cli.output import Format, show_list, show_value
from stockade.client import Client, Decision, Step


def explain(client: Client, subject: str, path: str | None, form: Format) -> None:
    """A decision by id, one step of a run, or every refusal and wait of a run."""
    if subject.startswith("dec_"):
        _decision(client.decision(subject), form)
        return
    run_id = inputs.find_run(client, subject)
    if path is not None:
        step = client.step(run_id, path)
        if form is Format.TABLE:
            _step(step)
            for made in client.decisions(run_id):
                if made.path == path:
                    _decision(made, form)
        else:
            show_value(step.model_dump(mode="json"), form)
        return
    denied = client.decisions(run_id, allow=False)
    waiting = [step for step in client.steps(run_id) if step.waiting or step.status == "failed"]
    if form is not Format.TABLE:
        show_value([one.model_dump(mode="json") for one in (*denied, *waiting)], form)
        return
    for step in waiting:
        _step(step)
    for made in denied:
        _decision(made, form)
    if not denied and not waiting:
        print(f"{run_id}: nothing was refused, nothing waits, nothing failed")


def decisions(client: Client, run: str | None, denied: bool, form: Format) -> None:
    """The decision log, newest first."""
    run_id = inputs.find_run(client, run) if run else None
    columns: list[tuple[str, Any]] = [
        ("DECISION", lambda one: one.id),
        ("ANSWER", lambda one: "allow" if one.allow else "deny"),
        ("ENTRY", lambda one: one.entry),
        ("STEP", lambda one: one.path or "-"),
        ("REASONS", lambda one: ", ".join(reason.code for reason in one.reasons) or "-"),
    ]
    wide: list[tuple[str, Any]] = [("RUN", lambda one: one.run or "-"), ("REVISION", lambda one: one.revision)]
    show_list(client.decisions(run_id, allow=False if denied else None), form, columns, wide)


def _decision(decision: Decision, form: Format) -> None:
    if form is not Format.TABLE:
        show_value(decision.model_dump(mode="json"), form)
        return
    print(f"{decision.id}  {'ALLOWED' if decision.allow else 'DENIED'}  {decision.entry}")
    if decision.run:
        print(f"  for     {decision.run} {visible(decision.path or '')}".rstrip())
    for reason in decision.reasons:
        print(f"  because {visible(reason.message)} [{visible(reason.code)}]")
        if reason.rule:
            print(f"  rule    {visible(reason.rule)}")
        if reason.remedy:
            print(f"  remedy  {visible(reason.remedy)}")
    if decision.failure:
        print(f"  failure {visible(decision.failure)}")
    print(f"  policy  {decision.revision} ({decision.engine}), input {decision.input_digest}")


def _step(step: Step) -> None:
    print(f"{visible(step.path)}  {step.status}  {step.verb}  {step.tier or ''} {step.node or ''}".rstrip())
    if step.error is not None:
        print(f"  error   {step.error.type}: {visible(step.error.message)}")
    for reason in step.waiting or ():
        print(f"  waits   {visible(reason.message)} [{reason.code}]")
        if reason.fix:
            print(f"  fix     {visible(reason.fix)}")
    for key, value in (step.placement or {}).items():
        print(f"  placed  {key}: {visible(str(value))}")
