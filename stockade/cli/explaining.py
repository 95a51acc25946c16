"""Why: a decision in words, or a run's steps with where they are, what they wait for and what policy said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from stockade.cli import inputs
from stockade.cli.exits import visible
from stockade.cli.output import Format, duration, show_list, show_value, yaml_lines
from stockade.cli.tree import answered_by, question
from stockade.client import Client, Decision, Run, Step

MOST_STEPS = 20
"""A run of more steps is explained by the first so many that failed, wait, or were refused something."""
MOST_SHOWN_CHARACTERS = 600
FAKE_GPU = "fake-gpu-"
"""How the id of a declared GPU begins (``dataplane.protocol``, which a client need not have)."""


def explain(client: Client, subject: str, path: str | None, form: Format) -> None:
    """A decision by id, one step of a run, or a run: every step of a small one, of a large one what went wrong."""
    if subject.startswith("dec_"):
        made = client.decision(subject)
        if form is Format.TABLE:
            _decision(made, asked=True)
        else:
            show_value(made.model_dump(mode="json"), form)
        return
    run = client.run(inputs.find_run(client, subject))
    names = {node.id: node.name for node in client.nodes()}
    if path is not None:
        step = client.step(run.id, path)
        if form is not Format.TABLE:
            show_value(step.model_dump(mode="json"), form)
            return
        about = [one for one in client.decisions(run.id) if one.path == path]
        _step(run, step, names)
        for one in about:
            _decision(one)
        return
    _run(client, run, names, form)


def _run(client: Client, run: Run, names: dict[str, str], form: Format) -> None:
    steps = client.steps(run.id)
    small = len(steps) <= MOST_STEPS
    decisions = client.decisions(run.id) if small else client.decisions(run.id, allow=False)
    refused = {made.path for made in decisions if not made.allow}
    told = [one for one in steps if small or one.status in ("failed", "waiting") or one.path in refused]
    if form is not Format.TABLE:
        show_value([one.model_dump(mode="json") for one in (*decisions, *told)], form)
        return
    print(f"{run.id}  {run.status}  {run.workflow.name}@{run.workflow.version}")
    if run.error is not None:
        print(f"  error     {run.error.type}: {visible(run.error.message)}")
    for step in _in_order(told)[:MOST_STEPS]:
        print()
        _step(run, step, names)
        for made in decisions:
            if made.path == step.path:
                _decision(made, brief=made.allow)
    general = [made for made in decisions if not made.path]
    if general:
        print("\nof the whole run")
    for made in general:
        _decision(made, brief=made.allow)
    left = len(steps) - min(len(told), MOST_STEPS)
    if left:
        counts = ", ".join(f"{count} {status}" for status, count in run.steps.by_status.items())
        print(f"\n{left} more of {len(steps)} steps ({counts}): stockade explain {run.id} STEP")
    made_all = f"{run.decisions.total} decision{'' if run.decisions.total == 1 else 's'}, {run.decisions.denied} denied"
    print(f"\n{made_all}: stockade policy decisions --run {run.id}")


def _in_order(steps: Sequence[Step]) -> list[Step]:
    """Top-level steps by when they began and ended, and below each its own by their path."""
    tops = {step.path: step for step in steps}

    def place(step: Step) -> tuple[float, float, list[tuple[int, str]]]:
        top = tops.get(re.split(r"[/\[#]", step.path, maxsplit=1)[0], step)
        parts = [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[/\[\]#]+", step.path)]
        return _moment(top.started_at), _moment(top.finished_at), parts

    return sorted(steps, key=place)


def _moment(at: datetime | None) -> float:
    return math.inf if at is None else at.timestamp()


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


def _decision(decision: Decision, *, asked: bool = False, brief: bool = False) -> None:
    """``asked``: with the (masked) question; ``brief``: one line, as for a yes among many."""
    answer = "ALLOWED" if decision.allow else "DENIED"
    if brief:
        _say("policy", f"{answer.lower()} {decision.entry}  {decision.id}")
        return
    print(f"{decision.id}  {answer}  {decision.entry}")
    if decision.run:
        _say("for", f"{decision.run} {decision.path or ''}".rstrip())
    for reason in decision.reasons:
        _say("because", f"{reason.message} [{reason.code}]")
        _say("rule", reason.rule or "")
        _say("remedy", reason.remedy or "")
    _say("failure", decision.failure or "")
    for obligation in decision.obligations:
        _say("obliges", json.dumps(obligation, ensure_ascii=False))
    _say("policy", f"{decision.revision} ({decision.engine}), input {decision.input_digest}")
    if asked and decision.input is not None:
        print("  asked     (masked; a rule sees this as `input`)")
        for line in yaml_lines(decision.input, "    "):
            print(visible(line))


def _step(run: Run, step: Step, names: dict[str, str]) -> None:
    took = ""
    if step.started_at is not None and step.finished_at is not None:
        took = duration((step.finished_at - step.started_at).total_seconds())
    print("  ".join(part for part in (visible(step.path), step.status, step.verb, took) if part))
    if step.error is not None:
        _say("error", f"{step.error.type}: {step.error.message}")
    if step.number > 1 or step.failures > 1:
        _say("attempts", f"{step.number}, of which {step.failures} failed")
    _say("answered", f"by {answered}" if (answered := answered_by(step)) else "")
    if step.placement is not None:
        _placed(step, step.placement, names)
    _gpus(step.detail if isinstance(step.detail, dict) else {})
    if step.status == "waiting":
        for reason in step.waiting or ():
            _say("waits", f"{reason.message} [{reason.code}]")
            _say("fix", reason.fix or "")
    _control(run, step, step.detail if isinstance(step.detail, dict) else {})
    report = step.report
    if report is not None and (report.stdout_bytes or report.stderr_bytes):
        wrote = f"{report.stdout_bytes} bytes on stdout, {report.stderr_bytes} on stderr"
        _say("wrote", f"{wrote}: stockade logs {run.id} {step.path}")


def _gpus(detail: dict[str, Any]) -> None:
    """The devices that are or were its own."""
    devices = [str(one) for one in detail.get("gpus") or ()]
    real = [one for one in devices if not one.startswith(FAKE_GPU)]
    fake = [one for one in devices if one.startswith(FAKE_GPU)]
    _say("gpus", ", ".join(real))
    _say("gpus", ", ".join(fake) + " (declared, not real)" if fake else "")


def _placed(step: Step, placement: dict[str, Any], names: dict[str, str]) -> None:
    """Where it is and what that place was preferred for; costs are estimated seconds."""
    where = names.get(step.node or "", step.node or "no node")
    _say("placed", f"on {where} in {step.tier}" if step.tier else f"on {where}")
    for line in placement_lines(placement, names):
        _say("", line)
    for note in placement.get("notes") or ():
        _say("note", str(note))


def placement_lines(placement: dict[str, Any], names: dict[str, str]) -> list[str]:
    """How many nodes each filter left out, and what the best three cost; then the full ones that were thought of."""
    lines = []
    filtered = placement.get("filtered")
    if isinstance(filtered, dict) and filtered:
        left_out = ", ".join(f"{count} by {code}" for code, count in filtered.items())
        lines.append(f"of {placement.get('candidates')} nodes, left out: {left_out}")
    for member, word in (("top", "would cost"), ("busy", "is full: would cost")):
        for one in placement.get(member) or ():
            if isinstance(one, dict):
                lines.append(f"{names.get(str(one.get('node')), str(one.get('node')))} {word} {_cost(one)}")
    return lines


def _cost(candidate: dict[str, Any]) -> str:
    """Seconds, and what they are made of."""
    terms = ", ".join(f"{term} {float(cost):.3f}" for term, cost in (candidate.get("terms") or {}).items())
    return f"{float(candidate.get('cost_seconds') or 0):.3f} s{f' ({terms})' if terms else ''}"


def _control(run: Run, step: Step, detail: dict[str, Any]) -> None:
    """What is special to an ``if``, a ``map`` and an ``approve``."""
    if "branch" in detail:
        _say("branch", {"do": "the condition held: do", "else": "the condition did not hold: else"}.get(
            str(detail["branch"]), str(detail["branch"])
        ))  # fmt: skip
    if "items" in detail:
        _say("items", str(detail["items"]))
    if "ask" not in detail:
        return
    _say("asks", str(detail["ask"]))
    if detail.get("show") is not None:
        shown = json.dumps(detail["show"], ensure_ascii=False)
        _say("shows", shown if len(shown) <= MOST_SHOWN_CHARACTERS else shown[:MOST_SHOWN_CHARACTERS] + "…")
    if detail.get("by"):
        _say("of", ", ".join(str(one) for one in detail["by"]))
    decided = detail.get("decided")
    if isinstance(decided, dict):
        comment = f": {decided['comment']}" if decided.get("comment") else ""
        _say("answer", f"{'approved' if decided.get('approved') else 'rejected'} by {decided.get('by')}{comment}")
    elif question(step):
        _say("fix", f"stockade approve {run.id} {step.path}      (or reject)")


def _say(label: str, text: str) -> None:
    """One indented line; nothing for an empty text."""
    if text:
        first, *rest = visible(text).splitlines() or [""]
        print(f"  {label:<9} {first}")
        for line in rest:
            print(f"  {'':<9} {line}")
