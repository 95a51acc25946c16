"""CEL behind two functions: ``compile_cel`` and ``Program.evaluate``. JSON in, JSON out, bounded.

Bounds: text ≤ 4 KiB (``expressions``), macros nested ≤ 2, the interpreter's own 10,000 iterations an evaluation,
no growth of strings or lists past 64 MiB worth of copies, and at most a million values in a result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cel_expr_python import cel

MAX_ITERATIONS = 10_000
MAX_GROWTH = 64 * 1024 * 1024
MAX_RESULT_VALUES = 1_000_000

FUNCTIONS = (
    "size", "has", "contains", "startsWith", "endsWith", "matches", "string", "int", "uint", "double", "bool", "type",
    "dyn", "timestamp", "duration", "bytes", "all", "exists", "exists_one", "map", "filter",
    "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes",
    "getSeconds", "getMilliseconds",
)  # fmt: skip

_ERROR = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): ([^\n]*)")
_STATUS = re.compile(r"^[A-Z_]+: ")


class CelRejected(Exception):
    """CEL refuses the text; ``line`` and ``column`` are 1-based, in characters."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


class CelFailed(Exception):
    """The evaluation ended in an error, or in a value that is not JSON."""


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled expression. ``returns`` is CEL's name of the result type, ``DYN`` if only the data can tell."""

    expression: Any
    returns: str
    macro_depth: int
    grows: bool

    def evaluate(self, data: Mapping[str, Any]) -> Any:
        """The JSON value for these variables. Raises ``CelFailed``."""
        if self.macro_depth:
            self._refuse_growth(data)
        try:
            value = self.expression.eval(data=data)
        except (RuntimeError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CelFailed(_explain(str(error))) from None
        if value.type() == cel.Type.ERROR:
            raise CelFailed(_explain(str(value.plain_value())))
        return _to_json(value, [MAX_RESULT_VALUES])

    def _refuse_growth(self, data: Mapping[str, Any]) -> None:
        largest = _largest(data.values())
        iterations = min(MAX_ITERATIONS, largest**self.macro_depth)
        if self.grows and iterations * largest > MAX_GROWTH:
            raise CelFailed("the values are too large to be joined with + inside a macro; do this in a code step")


@lru_cache(maxsize=256)
def _environment(names: frozenset[str], slots: int) -> Any:
    """Building one costs half a millisecond, so step outputs go by slot and all expressions share few of these."""
    variables = {name: cel.Type.INT if name == "index" else cel.Type.DYN for name in names}
    return cel.NewEnv(variables=variables | {slot_name(slot): cel.Type.DYN for slot in range(slots)})


def slot_name(slot: int) -> str:
    """The name, to CEL, of the step value in this slot. Users cannot write it: names start with a letter."""
    return f"_{slot}"


@lru_cache(maxsize=4096)
def compile_cel(text: str, names: frozenset[str], slots: int, macro_depth: int) -> Program:
    """Checks and compiles ``text`` over plain ``names`` and ``slots`` values named by ``slot_name``. Cached.

    Raises:
        CelRejected: a syntax or type error, with its place.
    """
    try:
        expression = _environment(names, max(16, slots)).compile(text)
    except (RuntimeError, ValueError, TypeError) as error:
        found = _ERROR.search(str(error))
        if found is None or "recursion" in str(error):
            cause = "nested too deeply, or too long a chain (CEL allows 32 levels)" if "recursion" in str(error) else ""
            raise CelRejected(cause or "CEL cannot read this expression", 1, 1) from None
        raise CelRejected(_tidy(found[3]), max(1, int(found[1])), max(1, int(found[2]))) from None
    returns = str(expression.return_type().name()).upper().partition("<")[0]
    return Program(expression=expression, returns=returns, macro_depth=macro_depth, grows="+" in text)


def _tidy(message: str) -> str:
    return message.replace(" (in container '')", "").strip()


def _explain(message: str) -> str:
    message = _STATUS.sub("", message.splitlines()[0] if message else "evaluation failed")
    if "Iteration budget" in message:
        return f"loops more than {MAX_ITERATIONS:,} times; do this in a code step"
    if "No matching overloads" in message and "int64" in message and "double" in message:
        return f"{message}; CEL does not mix whole numbers and doubles: wrap both sides in double(…)"
    if "SELECT to non-message" in message:
        return "a member is read from a value that is not an object (a skipped step's output is null)"
    return message[:500]


def _largest(values: Iterable[Any]) -> int:
    """The length of the longest string, list or object anywhere in ``values``."""
    largest = 1
    stack = list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, str | list | dict):
            largest = max(largest, len(value))
            if isinstance(value, list):
                stack.extend(value)
            elif isinstance(value, dict):
                stack.extend(value.values())
    return largest


def _to_json(cel_value: Any, budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0:
        raise CelFailed(f"the result has more than {MAX_RESULT_VALUES:,} values")
    # The library gives None away without owning it (``value`` and ``plain_value`` of a null, each time), which ends
    # the process on Python 3.11 once None's count runs out. So a null is never asked for its value.
    if cel_value.type() == cel.Type.NULL:
        return None
    value = cel_value.value()
    if isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise CelFailed("the result is not a finite number")
        return value
    if isinstance(value, list):
        return [_to_json(item, budget) for item in value]
    if isinstance(value, dict):
        return {_key(key): _to_json(item, budget) for key, item in value.items()}
    raise CelFailed(f"the result is a {_type_name(value)}, which JSON does not have; wrap it in string(…)")


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return key if isinstance(key, str) else str(key)


def _type_name(value: Any) -> str:
    return {"datetime": "timestamp", "timedelta": "duration", "bytearray": "byte string", "bytes": "byte string"}.get(
        type(value).__name__, "type"
    )
