"""Follows a run by its events: a live tree on a terminal, one line an event elsewhere, the tree at the end on both."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stockade.cli.exits import visible
from stockade.cli.tree import run_tree
from stockade.client import Client, Event, Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

REDRAW_SECONDS = 0.2
POLL_SECONDS = 0.2
_STEP_EVENTS_SHOWN = frozenset(
    {
        "step.assigned", "step.completed", "step.failed", "step.retrying", "step.waiting", "step.skipped",
        "call.refused", "approval.requested", "approval.decided",
    }
)  # fmt: skip
MOST_LINES = 400


def follow(client: Client, run_id: str, screen: Console, live: bool, deadline: float | None = None) -> Run:
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
        watcher.plain(quiet=not live)
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
    denied = f", {run.decisions.denied} denied" if run.decisions.denied else ""
    return f"{run.status}{took}: {done} of {run.steps.total} steps completed, {run.decisions.total} decisions{denied}"


class _Watcher:
    def __init__(self, client: Client, run_id: str, screen: Console) -> None:
        self._client = client
        self._run = run_id
        self._screen = screen
        self._notes: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        self._lines = 0

    def tree(self, run: Run) -> Tree:
        return run_tree(run, self._client.steps(self._run), self._notes, self._nodes)

    def live(self) -> Run:
        from rich.live import Live

        run = self._client.run(self._run)
        # The last frame is cleared: the caller prints the tree as ordinary text, which stays.
        with Live(console=self._screen, auto_refresh=False, transient=True) as display:
            drawn = 0.0
            for event in self._client.events(self._run):
                self._take(event)
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    run = self._client.run(self._run)
                    display.update(self.tree(run), refresh=True)
                    drawn = time.monotonic()
        return self._client.run(self._run)

    def plain(self, quiet: bool) -> None:
        for event in self._client.events(self._run):
            self._take(event)
            if not quiet and event.type in _STEP_EVENTS_SHOWN and self._lines < MOST_LINES:
                self._lines += 1
                self._screen.print(_line(event), markup=False)

    def _take(self, event: Event) -> None:
        data = event.data
        if event.type == "step.assigned" and data.get("node"):
            self._nodes[str(data["node"])] = visible(str(data.get("node_name") or data["node"]))
        elif event.type == "step.progress":
            self._notes[event.path] = f"{float(data.get('fraction') or 0):.0%} {data.get('text') or ''}"
        elif event.type == "call.refused":
            self._notes[event.path] = f"policy refused {data.get('tool')} ({data.get('decision')})"
        elif event.type == "approval.requested":
            self._notes[event.path] = f"asks: {data.get('ask')} — stockade approve {event.run} {event.path}"
        elif event.type in ("step.completed", "approval.decided"):
            self._notes.pop(event.path, None)


def _line(event: Event) -> str:
    data = event.data
    words = {
        "step.assigned": lambda: f"on {data.get('node_name') or data.get('node')} ({data.get('tier')})",
        "step.failed": lambda: _error(data.get("error")),
        "step.retrying": lambda: f"{_error(data.get('error'))}; again in {data.get('in_seconds')} s",
        "step.waiting": lambda: "; ".join(str(one.get("message")) for one in data.get("reasons") or ()),
        "call.refused": lambda: f"{data.get('tool')} ({data.get('decision')})",
        "approval.requested": lambda: f"{data.get('ask')} — stockade approve {event.run} {event.path}",
        "approval.decided": lambda: f"{'approved' if data.get('approved') else 'rejected'} by {data.get('by')}",
    }.get(event.type, lambda: "")()
    at = event.at.strftime("%H:%M:%S.%f")[:-3] if event.at else ""
    return visible(" ".join(f"{at} {event.type:<18} {event.path} {words}".split("\n"))).rstrip()


def _error(value: object) -> str:
    return f"{value.get('type')}: {value.get('message')}" if isinstance(value, dict) else ""
