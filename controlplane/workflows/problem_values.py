"""Why a workflow, or an input to one, is refused: values that say where, what and what to do instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong.

    ``pointer`` is an RFC 6901 JSON pointer into the document (or input). For a problem inside an expression,
    ``line`` and ``column`` (1-based, in characters) are relative to the string at ``pointer``, and ``excerpt`` is
    that line of it with a caret line beneath.
    """

    pointer: str
    message: str
    hint: str
    type: str
    line: int | None = None
    column: int | None = None
    excerpt: str | None = None

    def __str__(self) -> str:
        where = f"{self.pointer or '/'}"
        if self.line is not None:
            where += f" line {self.line} column {self.column}"
        text = f"{where}: {self.message} ({self.hint})"
        return f"{text}\n{self.excerpt}" if self.excerpt else text


class WorkflowInvalid(Exception):
    """The document is refused; ``problems`` has everything found, in document order, never empty."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


def child(pointer: str, *tokens: str | int) -> str:
    """The pointer of a member or element beneath ``pointer``, escaped as RFC 6901 asks."""
    return pointer + "".join("/" + str(token).replace("~", "~0").replace("/", "~1") for token in tokens)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'? `` for the closest of ``known``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}? " if close else ""


def caret(text: str, offset: int) -> tuple[int, int, str]:
    """Line, column and excerpt of the character at ``offset`` in ``text``; long lines are cut around it."""
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    line_text = text[start : len(text) if end < 0 else end]
    column = offset - start
    left = max(0, column - 60)
    shown = line_text[left : column + 60].replace("\t", " ")
    return text.count("\n", 0, offset) + 1, column + 1, f"{shown}\n{' ' * (column - left)}^"
