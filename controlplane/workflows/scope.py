"""Names of expressions: which ones a place in the document may read (``Names``), and their values (``Scope``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

RUN_FIELDS = ("id", "workflow", "version")
STEP_FIELDS = ("output", "error", "status")


@dataclass(frozen=True, kw_only=True)
class Names:
    """What one place may read. ``hidden`` says of ids that exist elsewhere why they are not visible here."""

    steps: frozenset[str] = frozenset()
    items: tuple[str, ...] = ()
    hidden: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def roots(self) -> tuple[str, ...]:
        """The first words an expression may start a name with."""
        return ("input", "run", "steps", *self.items, *(("index",) if self.items else ()))


class UnknownName(LookupError):
    """A name has no value in this scope: its step has not been added with ``with_step``."""


class Scope:
    """The values that expressions read: an immutable chain; every ``with_…`` is O(1) and shares the rest.

    Scopes that grow step by step share one dictionary that is only ever added to. Each entry knows its position
    and each scope how many entries are its own; a scope that is no longer the newest starts a layer on top.
    """

    __slots__ = ("_layer", "_parent", "_size")

    def __init__(self, parent: Scope | None, layer: dict[str, tuple[int, Any]], size: int) -> None:
        self._parent, self._layer, self._size = parent, layer, size

    @staticmethod
    def root(input: Any, run: Mapping[str, Any]) -> Scope:
        """The outermost scope. ``run`` has the members ``RUN_FIELDS`` (JSON values)."""
        return Scope(None, {"input": (0, input), "run": (1, dict(run))}, 2)

    def with_item(self, as_name: str, item: Any, index: int) -> Scope:
        """The scope of one instance of a map's body."""
        return Scope(self, {as_name: (0, item), "index": (1, index)}, 2)

    def with_step(self, id: str, output: Any, error: Any, status: str) -> Scope:
        """The scope in which the step ``id`` has ended so. Adding an id again replaces what it was."""
        name = f"steps.{id}"
        shares = len(self._layer) == self._size and f"{name}.output" not in self._layer
        parent, layer, size = (self._parent, self._layer, self._size) if shares else (self, {}, 0)
        layer[f"{name}.output"] = (size, output)
        layer[f"{name}.error"] = (size + 1, error)
        layer[f"{name}.status"] = (size + 2, status)
        return Scope(parent, layer, size + 3)

    def lookup(self, name: str) -> Any:
        """The value of a flat name, such as ``steps.a.output``. Raises ``UnknownName``."""
        scope: Scope | None = self
        while scope is not None:
            found = scope._layer.get(name)
            if found is not None and found[0] < scope._size:
                return found[1]
            scope = scope._parent
        raise UnknownName(name)
