"""Exit codes, and errors as four lines: what, where, why, fix."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    # Not at run time: a node, and `up`, which stay, would keep the client's libraries in memory.
    from stockade.client.errors import ServerUnreachable, StockadeError
    from stockade.client.models import Problem, Run


class Exit(IntEnum):
    """What the command's exit status means; documented in docs/command-line.md."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    DENIED = 4
    NOT_PLACED = 5
    WAITS_FOR_PERSON = 6
    UNREACHABLE = 7
    BUDGET = 8
    TIMEOUT = 124
    INTERRUPTED = 130


class Refusal(Exception):
    """A command that cannot go on. Printed as four lines on standard error, empty ones left out."""
    ALREADY_RUNNING = 9

    def __init__(self, code: Exit, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix


def visible(text: str) -> str:
    """``text`` with control characters shown: it may come from a guest, and a terminal obeys them."""
    return "".join(
        char if char in "\n\t" or (char.isprintable() and not "\x7f" <= char <= "\x9f") else repr(char)[1:-1]
        for char in text
    )


def show(refusal: Refusal) -> None:
    """Print the four lines."""
    for label, text in (
        ("error", refusal.what),
        ("where", refusal.where),
        ("why", refusal.why),
        ("fix", refusal.fix),
    ):
        if text:
            first, *rest = visible(text).splitlines() or [""]
            print(f"{label + ':':<6} {first}", file=sys.stderr)
            for line in rest:
                print(f"       {line}", file=sys.stderr)


def install(extra: str) -> str:
    """How to get an extra. Not by name from an index: the name there is not known to be ours."""
    return f"uv sync --extra {extra}      (in a checkout; else pip install 'PATH/TO/stockade.whl[{extra}]')"


def end(refusal: Refusal) -> NoReturn:
    """Print the four lines and leave with the code."""
    show(refusal)
    raise SystemExit(int(refusal.code))


def of_unreachable(error: ServerUnreachable) -> Refusal:
    return Refusal(
        Exit.UNREACHABLE,
        "the server does not answer",
        where=error.url,
        why=error.cause,
        fix="stockade up      (or point at another server with --url, STOCKADE_URL or `stockade context set`)",
    )


def of_problem(error: StockadeError, source: str = "") -> Refusal:
    """The server's problem. ``source`` names the file that was sent."""
    first = error.errors[0] if error.errors else None
    code = {404: Exit.NOT_FOUND, 422: Exit.USAGE, 504: Exit.TIMEOUT}.get(error.status, Exit.FAILED)
    fix = first.hint if first else ""
    if error.decision_id:
        code, fix = Exit.DENIED, f"stockade explain {error.decision_id}"
    elif error.status == 401:
        code, fix = Exit.DENIED, "stockade context set --api-key -      (or set STOCKADE_API_KEY)"
    elif error.status == 403:
        code, fix = Exit.DENIED, "use a key that has the scope named above"
    elif not fix and error.status == 404:
        fix = "stockade ps"
    more = f" (and {len(error.errors) - 1} more)" if len(error.errors) > 1 else ""
    return Refusal(
        code,
        error.title + more,
        where=location(first, source) if first else source,
        why=first.message if first else error.detail,
        fix=fix,
    )


def location(problem: Problem, source: str) -> str:
    """``file:line:column pointer`` and the excerpt with its caret."""
    place = source or "request"
    if problem.line is not None:
        place += f":{problem.line}:{problem.column or 1}"
    text = f"{place} {problem.pointer or '/'}"
    return f"{text}\n{problem.excerpt}" if problem.excerpt else text


_BY_ERROR_TYPE = {
    "policy_denied": Exit.DENIED,
    "budget": Exit.BUDGET,
    "timeout": Exit.TIMEOUT,
}


def of_run(run: Run) -> Exit:
    """What a finished run makes of the command that waited for it."""
    if run.status == "completed":
        return Exit.OK
    return _BY_ERROR_TYPE.get(run.error.type if run.error else "", Exit.FAILED)
