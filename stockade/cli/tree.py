"""A run as a tree of its steps: what each is, where it is, how long it took, what policy said.

A map of more than ``MOST_CHILDREN`` items is one line of counts and its first failures, however many there are; of an
agent with as many turns the last ones are shown.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.text import Text
from rich.tree import Tree

from stockade.cli.exits import visible
from stockade.cli.output import duration
from stockade.client.models import Run, Step

MOST_CHILDREN = 20
MOST_FAILURES = 3
MOST_TURNS = 5
_MARKS = {
    "completed": ("✓", "green"), "failed": ("✗", "red"), "running": ("●", "cyan"), "waiting": ("◌", "yellow"),
    "pending": ("·", "dim"), "ready": ("◦", "dim"), "skipped": ("↷", "dim"), "cancelled": ("⊘", "magenta"),
}  # fmt: skip
_INSTANCE = re.compile(r"\A(.*)(?:\[(\d+)\]|#(\d+))\Z")


@dataclass
class _Branch:
    """One position of the tree; ``step`` is None for an instance of a map and a turn, which are no steps themselves."""

    name: str
    step: Step | None = None
    children: dict[str, _Branch] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a tree says beside the steps themselves, by path: ``notes`` are live (progress, refusals), ``seen`` is the
    number of the first event, which orders what began in one moment; ``nodes`` are names by id."""

    notes: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)


def question(step: Step) -> str:
    """What a step asks a person now; nothing where it does not."""
    if step.verb != "approve" or step.status != "waiting" or not isinstance(step.detail, dict):
        return ""
    return str(step.detail.get("ask") or "may this go on?")


def answered_by(step: Step) -> str:
    """Which model answered a step, for how many tokens, an agent in how many turns; nothing where none has."""
    detail = step.detail if isinstance(step.detail, dict) else {}
    usage, turn = detail.get("usage"), detail.get("turn")
    if not isinstance(usage, dict) or "model" not in detail:
        return ""
    turns = f", {turn} turn{'' if turn == 1 else 's'}" if turn is not None else ""
    return f"{detail['model']} {tokens(usage)}{turns}"


def tokens(usage: Mapping[str, object]) -> str:
    """``120 + 8 tokens``: those of the prompt, and of the answer."""
    return f"{usage.get('prompt_tokens')} + {usage.get('completion_tokens')} tokens"


def run_tree(run: Run, steps: Iterable[Step], words: Words) -> Tree:
    """The tree of ``run``."""
    mark, style = _MARKS.get(run.status, ("?", ""))
    title = Text.assemble(
        (f"{mark} ", style),
        (f"{run.workflow.name}@{run.workflow.version}", "bold"),
        f"  {run.id}  ",
        (run.status, style),
    )
    tree = Tree(title, guide_style="dim")
    for branch in _ordered(_branches(steps), words):
        _add(tree, branch, words)
    return tree


def line(step: Step, words: Words, name: str | None = None) -> Text:
    """One step in one line."""
    mark, style = _MARKS.get(step.status, ("?", ""))
    where = words.nodes.get(step.node or "", step.node or "")
    again = f"@{step.number}" if step.number > 1 else ""
    parts = [step.verb, visible(answered_by(step)), step.tier or "", where, _took(step), again]
    text = Text.assemble((f"{mark} ", style), (visible(name or step.path), "bold" if step.status == "running" else ""))
    text.append("  " + " ".join(part for part in parts if part), "dim")
    if step.error is not None:
        text.append(f"  {step.error.type}: {_short(step.error.message)}", "red")
    elif asked := question(step):
        text.append(f"  asks: {_short(asked)}", "yellow")
    elif step.status == "waiting" and step.waiting:
        text.append(f"  waits: {_short(step.waiting[0].message)}", "yellow")
    if note := words.notes.get(step.path, ""):
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


def _ordered(branches: dict[str, _Branch], words: Words) -> list[_Branch]:
    """Instances by their index, steps by when they (or what is below them) first began, the rest after them."""

    def place(branch: _Branch) -> tuple[int, float, int]:
        if branch.name[0] in "[#":
            return int(branch.name.strip("[]#")), 0.0, 0
        below = list(_steps([branch]))
        starts = [step.started_at.timestamp() for step in below if step.started_at is not None]
        first = min((words.seen[step.path] for step in below if step.path in words.seen), default=sys.maxsize)
        return (0, min(starts), first) if starts else (1, 0.0, first)

    return sorted(branches.values(), key=place)


def _segments(path: str) -> list[str]:
    """``scan[3]/probe`` -> scan, [3], probe: a map's instances hang below the map, an agent's turns below the agent."""
    found: list[str] = []
    for part in path.split("/"):
        instance = _INSTANCE.match(part)
        found += [instance[1], part.removeprefix(instance[1])] if instance else [part]
    return found


def _add(tree: Tree, branch: _Branch, words: Words) -> None:
    if branch.step is None:
        label = Text(branch.name, "dim")
        only = next(iter(branch.children.values())) if len(branch.children) == 1 else None
        if only is not None and only.step is not None and not only.children:
            tree.add(line(only.step, words, f"{branch.name} {only.name}"))
            return
    else:
        label = line(branch.step, words, branch.name)
    below = tree.add(label)
    children = _ordered(branch.children, words)
    if len(children) > MOST_CHILDREN and branch.step is not None and branch.step.verb == "agent":
        below.add(Text(f"{len(children) - MOST_TURNS} earlier turns", "dim"))
        children = children[-MOST_TURNS:]
    elif len(children) > MOST_CHILDREN:
        _summarise(below, branch, words)
        return
    for child in children:
        _add(below, child, words)


def _summarise(tree: Tree, branch: _Branch, words: Words) -> None:
    steps = list(_steps(branch.children.values()))
    counts = Counter(step.status for step in steps)
    what = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    begun = len(branch.children)
    detail = branch.step.detail if branch.step is not None else None
    items = detail.get("items") if isinstance(detail, dict) else None
    number = f"{begun} of {items} items begun" if isinstance(items, int) and items > begun else f"{begun} items"
    tree.add(Text(f"{number}: {what}", "dim"))
    failed = [step for step in steps if step.status == "failed"]
    for step in failed[:MOST_FAILURES]:
        tree.add(line(step, words))
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
