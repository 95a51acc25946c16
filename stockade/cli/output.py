"""Data on standard output in the form asked for. Tables are never cut when piped; messages go to standard error."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from stockade.cli.exits import visible

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./@-]*\Z")
_YAML_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"})


class Format(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    NAME = "name"


DATA_FORMS = frozenset({Format.JSON, Format.JSONL, Format.YAML})


def console(stderr: bool = False) -> Console:
    """A console that neither wraps nor colours what is piped."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    plain = not stream.isatty()
    return Console(file=stream, highlight=False, soft_wrap=plain, no_color=plain or bool(os.environ.get("NO_COLOR")))


def say(text: str) -> None:
    """A message for the person: standard error."""
    print(visible(text), file=sys.stderr)


def show_list(
    items: Sequence[BaseModel], form: Format, columns: Sequence[tuple[str, Any]], wide: Sequence[tuple[str, Any]] = ()
) -> None:
    """Print ``items``. A column is a heading and a function of the item; the first column is the name."""
    if form is Format.NAME:
        for item in items:
            print(visible(str(columns[0][1](item))))
    elif form is Format.JSONL:
        for item in items:
            print(_json_shown(item.model_dump_json()))
    elif form in (Format.JSON, Format.YAML):
        show_value([item.model_dump(mode="json") for item in items], form)
    else:
        shown = [*columns, *(wide if form is Format.WIDE else ())]
        rows = [[visible(str(function(item))) for _, function in shown] for item in items]
        show_table([heading for heading, _ in shown], rows)


def show_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns padded to their widest cell, two spaces apart."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(headings))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_value(value: Any, form: Format) -> None:
    """Print one JSON value."""
    if form is Format.YAML:
        print("\n".join(yaml_lines(value)))
    elif form is Format.JSONL:
        print(_json_shown(json.dumps(value, ensure_ascii=False)))
    else:
        print(_json_shown(json.dumps(value, indent=2, ensure_ascii=False)))


def _json_shown(text: str) -> str:
    """The same JSON with what a terminal obeys written as JSON's own escapes: C1 controls, bidirectional overrides."""
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def yaml_lines(value: Any, indent: str = "") -> list[str]:
    """The value as block YAML; scalars are JSON, which YAML contains, except for plain words."""
    if isinstance(value, Mapping) and value:
        lines = []
        for key, item in value.items():
            name = _scalar(str(key))
            if isinstance(item, Mapping | list) and item:
                lines += [f"{indent}{name}:", *yaml_lines(item, indent + "  ")]
            else:
                lines.append(f"{indent}{name}: {_scalar(item)}")
        return lines
    if isinstance(value, list) and value:
        lines = []
        for item in value:
            first, *rest = yaml_lines(item, indent + "  ")
            lines += [f"{indent}- {first.removeprefix(indent + '  ')}", *rest]
        return lines
    return [f"{indent}{_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.match(value) and value.lower() not in _YAML_WORDS:
        return value
    return json.dumps(value, ensure_ascii=True)


def age(moment: datetime | None) -> str:
    """How long ago, in the largest unit that says something."""
    return "-" if moment is None else duration((datetime.now(UTC) - moment).total_seconds())


def duration(seconds: float) -> str:
    """``350ms``, ``4.2s``, ``3m``, ``5h``, ``2d``."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")
