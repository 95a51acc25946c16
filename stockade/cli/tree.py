"""A run as a tree of its steps: what each is, where it is, how long it took, what policy said.

A map of more than ``MOST_CHILDREN`` items is one line of counts and its first failures, however many there are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.text import Text
from rich.tree import Tree

from stockade.cli.exits import visible
from stockade.cli.output import duration
from stockade.client.models import Run, Step

MOST_CHILDREN = 20
MOST_FAILURES = 3
_MARKS = {
    "completed": ("✓", "green"), "failed": ("✗", "red"), "running": ("●", "cyan"), "waiting": ("◌", "yellow"),
    "pending": ("·", "dim"), "ready": ("◦", "dim"), "skipped": ("↷", "dim"), "cancelled": ("⊘", "magenta"),
}  # fmt: skip
_INSTANCE = re.compile(r"\A(.*)\[(\d+)\]\Z")


@dataclass
class _Branch:
    """One position of the tree; ``step`` is None for an instance of a map, which is not a step itself."""

    name: str
    step: Step | None = None
    children: dict[str, _Branch] = field(default_factory=dict)


def run_tree(run: Run, steps: Iterable[Step], notes: dict[str, str], nodes: dict[str, str]) -> Tree:
    """The tree of ``run``. ``notes`` are live words by path (progress, refusals); ``nodes`` are names by id."""
    mark, style = _MARKS.get(run.status, ("?", ""))
    title = Text.assemble(
        (f"{mark} ", style),
        (f"{run.workflow.name}@{run.workflow.version}", "bold"),
        f"  {run.id}  ",
        (run.status, style),
    )
    tree = Tree(title, guide_style="dim")
    for branch in _ordered(_branches(steps)):
        _add(tree, branch, notes, nodes)
    return tree


def line(step: Step, note: str, nodes: dict[str, str], name: str | None = None) -> Text:
    """One step in one line."""
    mark, style = _MARKS.get(step.status, ("?", ""))
    where = nodes.get(step.node or "", step.node or "")
    parts = [step.verb, step.tier or "", where, _took(step), f"@{step.number}" if step.number > 1 else ""]
    text = Text.assemble((f"{mark} ", style), (visible(name or step.path), "bold" if step.status == "running" else ""))
    text.append("  " + " ".join(part for part in parts if part), "dim")
    if step.error is not None:
        text.append(f"  {step.error.type}: {_short(step.error.message)}", "red")
    elif step.waiting:
        text.append(f"  waits: {_short(step.waiting[0].message)}", "yellow")
    if note:
        text.append(f"  {_short(note)}", "yellow")
    return text


def _branches(steps: Iterable[Step]) -> dict[str, _Branch]:
    top: dict[str, _Branch] = {}
    for step in steps:
        level, branch = top, None
        for segment in _segments(step.path):
            branch = level.setdefault(segment, _Branch(segment))
            level = branch.children
        if branch is not None:
            branch.step = step
    return top


def _ordered(branches: dict[str, _Branch]) -> list[_Branch]:
    """Instances by their index, steps by when they (or what is below them) first began, the rest after them."""

    def place(branch: _Branch) -> tuple[int, float]:
        if branch.name.startswith("["):
            return int(branch.name[1:-1]), 0.0
        starts = [step.started_at.timestamp() for step in _steps([branch]) if step.started_at is not None]
        return (0, min(starts)) if starts else (1, 0.0)

    return sorted(branches.values(), key=place)


def _segments(path: str) -> list[str]:
    """``scan[3]/probe`` -> scan, [3], probe: a map's instances hang below the map."""
    found: list[str] = []
    for part in path.split("/"):
        instance = _INSTANCE.match(part)
        found += [instance[1], f"[{instance[2]}]"] if instance else [part]
    return found


def _add(tree: Tree, branch: _Branch, notes: dict[str, str], nodes: dict[str, str]) -> None:
    if branch.step is None:
        label = Text(branch.name, "dim")
        only = next(iter(branch.children.values())) if len(branch.children) == 1 else None
        if only is not None and only.step is not None and not only.children:
            tree.add(line(only.step, notes.get(only.step.path, ""), nodes, f"{branch.name} {only.name}"))
            return
    else:
        label = line(branch.step, notes.get(branch.step.path, ""), nodes, branch.name)
    below = tree.add(label)
    if len(branch.children) > MOST_CHILDREN:
        _summarise(below, branch, notes, nodes)
        return
    for child in _ordered(branch.children):
        _add(below, child, notes, nodes)


def _summarise(tree: Tree, branch: _Branch, notes: dict[str, str], nodes: dict[str, str]) -> None:
    steps = list(_steps(branch.children.values()))
    counts = Counter(step.status for step in steps)
    words = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    tree.add(Text(f"{len(branch.children)} items: {words}", "dim"))
    failed = [step for step in steps if step.status == "failed"]
    for step in failed[:MOST_FAILURES]:
        tree.add(line(step, notes.get(step.path, ""), nodes))
    if len(failed) > MOST_FAILURES:
        tree.add(Text(f"and {len(failed) - MOST_FAILURES} more failures", "red"))


def _steps(branches: Iterable[_Branch]) -> Iterable[Step]:
    for branch in branches:
        if branch.step is not None:
            yield branch.step
        yield from _steps(branch.children.values())


def _took(step: Step) -> str:
    if step.started_at is None:
        return ""
    return duration(((step.finished_at or datetime.now(UTC)) - step.started_at).total_seconds())


def _short(text: str) -> str:
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= 160 else flat[:159] + "…"
