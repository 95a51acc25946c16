"""Follows a run by its events: a live tree on a terminal, one line an event elsewhere, the tree at the end on both."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stockade.cli.exits import visible
from stockade.cli.output import say
from stockade.cli.tree import Words, question, run_tree, tokens
from stockade.client import Client, Event, Run, ServerUnreachable, Step, StockadeError

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.tree import Tree

FRAMES_PER_SECOND = 4
ASK_SHARE = 10
"""A frame asks the server again no sooner than this many times what asking took last, so a large run is no burden."""
POLL_SECONDS = 0.2
MOST_ASKED = 3
_ACTIVE = ("●", "◌", "◦")
_STEP_EVENTS_SHOWN = frozenset(
    {
        "step.assigned", "step.calling", "step.answered", "step.completed", "step.failed", "step.retrying",
        "step.waiting", "step.skipped", "call.refused", "approval.requested", "approval.decided",
    }
)  # fmt: skip
MOST_LINES = 400


def follow(
    client: Client, run_id: str, screen: Console, live: bool, deadline: float | None = None, silent: bool = False
) -> Run:
    """Return the run when it ended. Raises ``TimeoutError`` past ``deadline`` (monotonic seconds)."""
    watcher = _Watcher(client, run_id, screen)
    run = client.run(run_id)
    if deadline is not None:
        # The event stream blocks for as long as nothing happens, so a bounded wait asks instead.
        while not run.ended:
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(POLL_SECONDS)
            run = client.run(run_id)
    elif live and screen.is_terminal:
        run = watcher.live()
    else:
        watcher.plain(quiet=not live, silent=silent)
        run = client.run(run_id)
    if live:
        screen.print(watcher.tree(run))
        screen.print(summary(run))
    return run


def summary(run: Run) -> str:
    """The last line under the tree."""
    took = ""
    if run.created_at is not None and run.finished_at is not None:
        took = f" in {(run.finished_at - run.created_at).total_seconds():.1f} s"
    done = run.steps.by_status.get("completed", 0)
    failed = run.steps.by_status.get("failed", 0)
    tolerated = f", {failed} failed and tolerated" if failed and run.status == "completed" else ""
    denied = f", {run.decisions.denied} denied" if run.decisions.denied else ""
    steps = f"{done} of {run.steps.total} steps completed{tolerated}"
    return f"{run.status}{took}: {steps}, {run.decisions.total} decisions{denied}"


class _Watcher:
    def __init__(self, client: Client, run_id: str, screen: Console) -> None:
        self._client = client
        self._run = run_id
        self._screen = screen
        self._words = Words()
        self._lines = 0
        self._shown: tuple[Run, list[Step]] | None = None
        self._stale = True
        self._ask_at = 0.0

    def tree(self, run: Run) -> Tree:
        return run_tree(run, self._client.steps(self._run), self._words)

    def live(self) -> Run:
        from rich.live import Live

        # Frames are drawn by the display's own thread, so that times go on while no event comes. The last frame is
        # cleared: the caller prints the tree as ordinary text, which stays.
        display = Live(
            console=self._screen, get_renderable=self._frame, refresh_per_second=FRAMES_PER_SECOND, transient=True
        )
        with display:
            for event in self._client.events(self._run):
                self._take(event)
                self._stale = True
        return self._client.run(self._run)

    def plain(self, quiet: bool, silent: bool) -> None:
        """A line an event; with ``quiet`` only what a person is asked, with ``silent`` nothing."""
        for event in self._client.events(self._run):
            self._take(event)
            if quiet:
                if event.type == "approval.requested" and not silent:
                    say(f"{event.path} asks: {event.data.get('ask')} — {_command(self._run, event.path)}")
            elif event.type in _STEP_EVENTS_SHOWN and self._lines < MOST_LINES:
                self._lines += 1
                self._screen.print(_line(event), markup=False)

    def _frame(self) -> Group:
        """What is on the screen now: the tree, cut to the screen around what is active, and below it what is asked."""
        from rich.console import Group
        from rich.segment import Segment, Segments
        from rich.text import Text

        shown = self._fresh()
        if shown is None:
            return Group()
        run, steps = shown
        asking = [step for step in steps if question(step)][:MOST_ASKED]
        footer = [
            Text(visible(text), "yellow")
            for step in asking
            for text in (f"{step.path} asks: {question(step)}", f"  {_command(run.id, step.path)}")
        ]
        width, height = self._screen.size
        # A footer line may wrap, the tree's lines do not.
        taken = sum(-(-len(text) // max(width, 1)) for text in footer)
        options = self._screen.options.update(no_wrap=True, overflow="ellipsis")
        rows = self._screen.render_lines(run_tree(run, steps, self._words), options, pad=False)
        texts = ["".join(segment.text for segment in row) for row in rows]
        above, below = window(texts, max(height - 1 - taken, 4))
        parts: list[RenderableType] = [Segments([*row, Segment.line()]) for row in (rows[:1] if above else [])]
        if above > 1:
            parts.append(Text(f"… {above - 1} lines above", "dim"))
        parts += [Segments([*row, Segment.line()]) for row in rows[above:below]]
        if below < len(rows):
            parts.append(Text(f"… {len(rows) - below} lines below", "dim"))
        return Group(*parts, *footer)

    def _fresh(self) -> tuple[Run, list[Step]] | None:
        """The run and its steps, asked again if something happened since; the old ones where nobody answers."""
        now = time.monotonic()
        if self._stale and now >= self._ask_at:
            self._stale = False
            try:
                self._shown = self._client.run(self._run), self._client.steps(self._run)
            except (ServerUnreachable, StockadeError):
                self._stale = True
            self._ask_at = now + ASK_SHARE * (time.monotonic() - now)
        return self._shown

    def _take(self, event: Event) -> None:
        data = event.data
        words = self._words
        words.seen.setdefault(event.path, event.seq)
        if event.type == "step.assigned" and data.get("node"):
            words.nodes[str(data["node"])] = visible(str(data.get("node_name") or data["node"]))
        elif event.type == "step.progress":
            words.notes[event.path] = f"{float(data.get('fraction') or 0):.0%} {data.get('text') or ''}"
        elif event.type == "call.refused":
            words.notes[event.path] = f"policy refused {data.get('tool')} ({data.get('decision')})"
        elif event.type in ("step.completed", "step.failed", "step.cancelled"):
            words.notes.pop(event.path, None)


def window(lines: list[str], height: int) -> tuple[int, int]:
    """Which of ``lines``, after the first, fit ``height`` with the last active one among them: from, to.

    0 and all where they fit. Two lines are left for what says how many are not shown.
    """
    if len(lines) <= height:
        return 0, len(lines)
    room = max(height - 3, 1)
    active = max((number for number, text in enumerate(lines) if any(mark in text for mark in _ACTIVE)), default=1)
    begin = max(1, min(active - room + 2, len(lines) - room))
    return begin, begin + room


def _command(run_id: str, path: str) -> str:
    return f"stockade approve {run_id} {path}      (or reject)"


def _line(event: Event) -> str:
    data = event.data
    words = {
        "step.assigned": lambda: f"on {data.get('node_name') or data.get('node')} ({data.get('tier')})",
        "step.calling": lambda: f"asks {', '.join(map(str, data.get('models') or ()))}",
        "step.answered": lambda: f"by {data.get('model')}, {tokens(data)}",
        "step.failed": lambda: _error(data.get("error")),
        "step.retrying": lambda: f"{_error(data.get('error'))}; again in {data.get('in_seconds')} s",
        "step.waiting": lambda: "; ".join(str(one.get("message")) for one in data.get("reasons") or ()),
        "call.refused": lambda: f"{data.get('tool')} ({data.get('decision')})",
        "approval.requested": lambda: f"asks: {data.get('ask')} — {_command(event.run, event.path)}",
        "approval.decided": lambda: f"{'approved' if data.get('approved') else 'rejected'} by {data.get('by')}",
    }.get(event.type, lambda: "")()
    at = event.at.strftime("%H:%M:%S.%f")[:-3] if event.at else ""
    return visible(" ".join(f"{at} {event.type:<18} {event.path} {words}".split("\n"))).rstrip()


def _error(value: object) -> str:
    return f"{value.get('type')}: {value.get('message')}" if isinstance(value, dict) else ""
