"""``stockade run validate``: what a submit would meet."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stockade.cli import inputs
from stockade.cli.exits import Exit, Refusal, location, sent, show, visible
from stockade.cli.explaining import placement_lines
from stockade.cli.output import DATA_FORMS, Format, say, show_table, show_value
from stockade.client import Client, Problem, Validation


def validate(client: Client, workflow: str, given: Sequence[str], form: Format) -> int:
    """Print what a submit would meet. 0 if it would run now, else the code that says why not."""
    definition = inputs.workflow(workflow)
    with sent(workflow):
        found = client.validate(definition, inputs.run_input(given))
    if form in DATA_FORMS:
        show_value(found.model_dump(mode="json"), form)
    denied = found.decision is not None and not found.decision.allow
    if found.problems:
        _faults(found, workflow, given)
        return int(Exit.USAGE)
    if denied and found.decision is not None:
        for reason in found.decision.reasons:
            show(
                Refusal(
                    Exit.DENIED, f"policy would deny this: {reason.code}", where=reason.rule or workflow,
                    why=reason.message, fix=reason.remedy or "",
                )
            )  # fmt: skip
        return int(Exit.DENIED)
    if form not in DATA_FORMS and found.placements:
        _places(found, {node.id: node.name for node in client.nodes()})
        sys.stdout.flush()
    waits = any(one.waiting for one in found.placements)
    what = "valid, but a step cannot be placed now" if waits else "valid: it would run now"
    say(what if found.placements else "valid: it would run now, and no step of it needs a node")
    return int(Exit.NOT_PLACED if waits else Exit.OK)


def _places(found: Validation, names: dict[str, str]) -> None:
    """Where each step would go and what that would cost; of the others why nowhere, and what would help."""
    rows = []
    for one in found.placements:
        best = next(iter(one.explanation.get("top") or ()), None) if isinstance(one.explanation, dict) else None
        cost = f"{float(best['cost_seconds']):.3f} s" if one.node and isinstance(best, dict) else "-"
        waits = "; ".join(f"{reason.message}: {reason.fix or ''}" for reason in one.waiting or ()) or "-"
        where = names.get(one.node or "", one.node or "-")
        rows.append([one.id or one.path, one.path, one.tier or "-", where, cost, waits])
    show_table(["STEP", "AT", "TIER", "NODE", "COST", "WAITS FOR"], [[visible(cell) for cell in row] for row in rows])
    for one in found.placements:
        lines = placement_lines(one.explanation, names) if isinstance(one.explanation, dict) else []
        if lines:
            print(f"\n{visible(one.id or one.path)}")
        for line in lines:
            print(f"  {visible(line)}")


def _faults(found: Validation, workflow: str, given: Sequence[str]) -> None:
    """Every fault, the document's before the input's."""
    of_input = [problem for problem in found.problems if _is_input(found, problem)]
    faults = [
        Refusal(Exit.USAGE, "the workflow is not valid", where=location(one, workflow), why=one.message, fix=one.hint)
        for one in found.problems
        if one not in of_input
    ]
    faults += [
        Refusal(
            Exit.USAGE, "the input is not valid", where=location(one, "--input"), why=one.message,
            fix=inputs.remedy(one, given),
        )
        for one in of_input
    ]  # fmt: skip
    for fault in faults:
        show(fault)


def _is_input(found: Validation, problem: Problem) -> bool:
    """A workflow that has a digest is well formed: what is left is its input, and names that its steps refer to."""
    return found.digest is not None and not problem.pointer.startswith("/steps/")
