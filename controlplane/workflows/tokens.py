"""A scan of CEL text, enough to find where an expression ends and which names it reads. CEL itself judges the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass

MACROS = frozenset({"all", "exists", "exists_one", "map", "filter"})

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      | (?P<string>(?:[rR][bB]?|[bB][rR]?)?(?:\"\"\"|'''|"|'))
      | (?P<quoted>`[^`\n]*`)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[A-Za-z0-9_]*)
      | (?P<punctuation>[&|=!<>]=?|.)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    """``string``, ``quoted``, ``name``, ``number`` or ``punctuation``."""
    text: str
    offset: int


def scan(text: str, start: int = 0, *, stop_at_brace: bool = False) -> tuple[list[Token], int]:
    """Tokens of ``text`` from ``start`` and where they end.

    With ``stop_at_brace`` the end is the ``}`` that closes a ``${`` before ``start``, or -1 if nothing closes it.
    An unterminated string ends at the end of the text (-1 with ``stop_at_brace``).
    """
    tokens: list[Token] = []
    position, depth = start, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            break
        kind, piece = match.lastgroup, match[0]
        end = match.end()
        if kind == "string":
            end = _string_end(text, end, piece)
            if end < 0:
                return tokens, -1 if stop_at_brace else len(text)
            tokens.append(Token("string", text[position:end], position))
        elif kind == "punctuation" or kind == "name" or kind == "number" or kind == "quoted":
            if piece == "{":
                depth += 1
            elif piece == "}":
                if depth == 0 and stop_at_brace:
                    return tokens, position
                depth -= 1
            tokens.append(Token(kind, piece, position))
        position = end
    return tokens, -1 if stop_at_brace else position


def _string_end(text: str, position: int, opening: str) -> int:
    quote = opening.lstrip("rRbB")
    raw = "r" in opening[: len(opening) - len(quote)].lower()
    while True:
        end = text.find(quote, position)
        if end < 0:
            return -1
        backslash = -1 if raw else text.find("\\", position, end)
        if backslash < 0:
            return end + len(quote)
        position = backslash + 2


@dataclass(frozen=True, slots=True)
class NameUse:
    """A name the expression reads: ``parts`` is ``("steps", "a", "output", "x")``; calls are not among them.

    ``ends`` are the offsets behind each part; ``indexed`` says that ``[`` follows the first part directly.
    """

    parts: tuple[str, ...]
    offset: int
    ends: tuple[int, ...]
    indexed: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """What an expression's tokens say: names read, macro variables, and how deep macros nest."""

    uses: tuple[NameUse, ...]
    macro_variables: tuple[Token, ...]
    macro_depth: int


def survey(tokens: list[Token]) -> Survey:
    """One pass over the tokens of one expression."""
    macro_variables: list[Token] = []
    brackets: list[bool] = []
    macro_depth = 0
    for index, token in enumerate(tokens):
        if token.kind != "punctuation":
            continue
        if token.text in "([{":
            is_macro = token.text == "(" and _opens_macro(tokens, index)
            if is_macro and _text(tokens, index + 2) == "," and tokens[index + 1].kind == "name":
                macro_variables.append(tokens[index + 1])
            brackets.append(is_macro)
            macro_depth = max(macro_depth, sum(brackets))
        elif token.text in ")]}" and brackets:
            brackets.pop()
    local = {token.text for token in macro_variables}
    uses = [
        _use(tokens, index)
        for index, token in enumerate(tokens)
        if token.kind == "name"
        and token.text not in local
        and token.text not in ("true", "false", "null", "in")
        and _text(tokens, index - 1) != "."
        and _text(tokens, index + 1) not in ("(", "{")
    ]
    return Survey(tuple(uses), tuple(macro_variables), macro_depth)


def plain_path(tokens: list[Token]) -> tuple[str | int, ...] | None:
    """The accessors of an expression that is only ``name.member[0]["member"]``, else ``None``."""
    if not tokens or tokens[0].kind != "name" or tokens[0].text in ("true", "false", "null", "in"):
        return None
    path: list[str | int] = [tokens[0].text]
    index = 1
    while index < len(tokens):
        following = tokens[index + 1] if index + 1 < len(tokens) else None
        if tokens[index].text == "." and following is not None and following.kind == "name":
            if following.text in ("true", "false", "null", "in"):
                return None
            path.append(following.text)
            index += 2
        elif tokens[index].text == "[" and following is not None and _text(tokens, index + 2) == "]":
            if following.kind == "number" and following.text.isdecimal() and len(following.text) < 10:
                path.append(int(following.text))
            elif following.kind == "string" and following.text[0] in "'\"" and "\\" not in following.text:
                if following.text[:3] in ("'''", '"""'):
                    return None
                path.append(following.text[1:-1])
            else:
                return None
            index += 3
        else:
            return None
    return tuple(path)


def _opens_macro(tokens: list[Token], index: int) -> bool:
    return _text(tokens, index - 1) in MACROS and _text(tokens, index - 2) == "."


def _use(tokens: list[Token], index: int) -> NameUse:
    parts = [tokens[index]]
    after = index + 1
    while _text(tokens, after) == "." and after + 1 < len(tokens) and tokens[after + 1].kind == "name":
        if _text(tokens, after + 2) == "(":
            break
        parts.append(tokens[after + 1])
        after += 2
    return NameUse(
        parts=tuple(part.text for part in parts),
        offset=parts[0].offset,
        ends=tuple(part.offset + len(part.text) for part in parts),
        indexed=_text(tokens, index + 1) == "[",
    )


def _text(tokens: list[Token], index: int) -> str:
    return tokens[index].text if 0 <= index < len(tokens) and tokens[index].kind != "string" else ""
