"""Exit codes, and errors as four lines: what, where, why, fix."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    # Not at run time: a node, and `up`, which stay, would keep the client's libraries in memory.
    from stockade.client.errors import ServerUnreachable, StockadeError
    from stockade.client.models import Problem, Run
    from stockade.contexts import Context

MOST_FAULTS = 9


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
    ALREADY_RUNNING = 9
    TIMEOUT = 124
    INTERRUPTED = 130


class Refusal(Exception):
    """A command that cannot go on. Printed as four lines on standard error, empty ones left out.

    ``more`` are further faults of the same kind, printed below without their first line.
    """

    def __init__(
        self, code: Exit, what: str, *, where: str = "", why: str = "", fix: str = "", more: Sequence[Refusal] = ()
    ) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix
        self.more = more


def visible(text: str) -> str:
    """``text`` with control characters shown: it may come from a guest, and a terminal obeys them."""
    return "".join(
        char if char in "\n\t" or (char.isprintable() and not "\x7f" <= char <= "\x9f") else repr(char)[1:-1]
        for char in text
    )


def show(refusal: Refusal) -> None:
    """Print the four lines, and below them the further faults."""
    _lines(refusal)
    for one in refusal.more[:MOST_FAULTS]:
        print(file=sys.stderr)
        _lines(one)
    if len(refusal.more) > MOST_FAULTS:
        print(f"\nand {len(refusal.more) - MOST_FAULTS} more", file=sys.stderr)


def _lines(refusal: Refusal) -> None:
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
    from stockade.client.errors import NotStockade

    point = "point at another server with --url, STOCKADE_URL or `stockade context set`"
    if isinstance(error, NotStockade):
        return Refusal(Exit.UNREACHABLE, "this is not Stockade", where=error.url, why=error.cause, fix=point)
    fix = f"stockade up      (or {point})"
    return Refusal(Exit.UNREACHABLE, "the server does not answer", where=error.url, why=error.cause, fix=fix)


def of_problem(error: StockadeError, source: str = "", of_input: Callable[[Problem], str] | None = None) -> Refusal:
    """The server's problem, every fault of it. ``source`` and ``of_input`` as for ``sent``."""
    from stockade.client.errors import UNTYPED, NotStockade

    if error.type == UNTYPED:
        return of_unreachable(NotStockade(error.url, f"HTTP {error.status} {' '.join(error.detail.split())[:60]}"))
    first = error.errors[0] if error.errors else None
    code = {404: Exit.NOT_FOUND, 422: Exit.USAGE, 504: Exit.TIMEOUT}.get(error.status, Exit.FAILED)

    def hint(one: Problem) -> str:
        mended = of_input(one) if of_input is not None and error.slug == "invalid-input" else one.hint
        return mended.replace(" /openapi.json", f" {error.url}/openapi.json")

    fix, why = (hint(first), first.message) if first else ("", error.detail)
    if error.decision_id:
        code, fix = Exit.DENIED, f"stockade explain {error.decision_id}"
    elif error.status == 401:
        code, fix = Exit.DENIED, _GIVE_A_KEY
    elif error.status == 403:
        code, fix = Exit.DENIED, "use a key that has the scope named above"
    elif not fix and error.status == 404:
        # The server says where its API lists them; here a command does.
        fix, why = _listing(error), _API_HINT.sub(".", why)
    elif error.slug == "invalid-input":
        source = "--input"
    return Refusal(
        code, error.title, where=location(first, source) if first else source, why=why, fix=fix,
        more=[
            Refusal(code, "", where=location(one, source), why=one.message, fix=hint(one))
            for one in error.errors[1:]
        ],
    )  # fmt: skip


@contextmanager
def sent(source: str, of_input: Callable[[Problem], str] | None = None) -> Iterator[None]:
    """What the server refuses inside is a fault of ``source``, except where it is about the key.

    ``of_input`` gives the remedy for a fault of the run's input.
    """
    from stockade.client.errors import StockadeError

    try:
        yield
    except StockadeError as error:
        if error.status == 401:
            raise
        raise of_problem(error, source, of_input) from None


def of_no_key(error: StockadeError, context: Context) -> Refusal:
    """A 401, by what this side knows that the server does not say: which key was sent, if any."""
    if context.api_key is not None:
        return Refusal(
            Exit.DENIED, "the server does not know this key", where=f"{context.url}, key from {context.key_from}",
            why="it is another server's, mistyped, or no longer valid", fix=_GIVE_A_KEY,
        )  # fmt: skip
    if context.kept_url is not None:
        why = f"the kept key is for {context.kept_url} and sent only there"
        fix = f"use --url {context.kept_url}, or --api-key for this one"
        return Refusal(Exit.DENIED, error.title, where=context.url, why=why, fix=fix)
    return Refusal(Exit.DENIED, error.title, where=context.url, why="no key was given", fix=_GIVE_A_KEY)


_GIVE_A_KEY = "stockade context set --api-key - < STATE/control/admin.key      (or set STOCKADE_API_KEY)"
_API_HINT = re.compile(r"[.;]? *GET /v1/\S+ lists [a-z ]+\.")
_LISTS = {
    "secrets": "stockade secret ls",
    "tools": "stockade tool ls",
    "workflows": "stockade workflow ls",
    "artifacts": "stockade artifact ls",
    "nodes": "stockade node ls",
    "model-deployments": "stockade model ls",
    "decisions": "stockade policy decisions",
}


def _listing(error: StockadeError) -> str:
    """The command that lists what was looked for; the path that was asked tells its kind."""
    kind, _, rest = error.instance.removeprefix("/v1/").partition("/")
    if kind == "runs" and not rest:
        return _LISTS["workflows"]  # a submit: what it did not find is the published workflow
    if kind == "runs" and " step " in error.detail:
        return f"stockade explain {rest.partition('/')[0]}"
    return _LISTS.get(kind, "stockade ps")


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
