"""``stockade run validate``: what a submit would meet."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stockade.cli import inputs
from stockade.cli.exits import Exit, Refusal, location, sent, show, visible
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
        rows = [
            [
                one.id or one.path, one.path, one.tier or "-", one.node or "-",
                "; ".join(reason.message for reason in one.waiting or ()) or "-",
            ]
            for one in found.placements
        ]  # fmt: skip
        show_table(["STEP", "AT", "TIER", "NODE", "WAITS FOR"], [[visible(cell) for cell in row] for row in rows])
        sys.stdout.flush()
    waits = any(one.waiting for one in found.placements)
    what = "valid, but a step cannot be placed now" if waits else "valid: it would run now"
    say(what if found.placements else "valid: it would run now, and no step of it needs a node")
    return int(Exit.NOT_PLACED if waits else Exit.OK)


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
