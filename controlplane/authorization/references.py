"""What rules and tests say about ``input`` and ``data.tenants``, held against the schemas, as ``opa check --schema``.

Found is only what is certainly wrong: a path that no question has, a comparison, membership or string function that
no value there can meet, an object given to a test that no question could be. Followed are paths with computed keys,
names bound once by ``:=`` or ``some … in``, and constants of the file; not function arguments, imports of input, nor
what a function returns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from controlplane.authorization import shapes
from controlplane.authorization.places import LITERALS, Place, Places, line_of, literal, references
from controlplane.authorization.scope import Scope, scopes
from controlplane.authorization.shapes import JSON_KINDS, KIND_WORDS
from controlplane.authorization.syntax import Node, name_of, package_of

_KINDS = {
    **LITERALS,
    **{"Object": "object", "ObjectCompr": "object", "Array": "array", "ArrayCompr": "array"},
    **{"Set": "set", "SetCompr": "set"},
}
_COLLECTIONS = frozenset({"object", "array"})
_FIRST, _BOTH = (0,), (0, 1)
# Which parameters of these functions are strings and nothing else.
_STRINGS = {
    **dict.fromkeys(("startswith", "endswith", "contains", "indexof", "split", "trim", "regex.match"), _BOTH),
    **dict.fromkeys(("trim_left", "trim_right", "trim_prefix", "trim_suffix", "net.cidr_contains"), _BOTH),
    **dict.fromkeys(("lower", "upper", "trim_space", "substring", "base64.decode", "json.unmarshal"), _FIRST),
    "replace": (0, 1, 2),
    "glob.match": (0, 2),
}
_GIVE_STRINGS = ("sprintf", "concat", "lower", "upper", "trim", "trim_space", "replace", "substring", "format_int")
_STRING = frozenset({"string"})
_MOST_UNIONS = 6


def findings(path: str, tree: Node, text: str) -> Iterator[str]:
    """What in a file can never be, as ``file:line: …``. Nothing for packages that are asked no question."""
    entries = _entries(tree)
    if not entries:
        return
    yield from _Reader(path, entries, Scope()).references(tree["imports"])
    for rule, scope in scopes(tree, text):
        reader = _Reader(path, entries, scope)
        yield from reader.references(rule)
        yield from reader.uses(rule)


def _entries(tree: Node) -> list[str]:
    package = package_of(tree)
    own = _entry(package.removesuffix("_test").split("."))
    if not own or not package.endswith("_test"):
        return [own] if own else []
    # A test may ask other rules than those of its name; then any of their questions will do.
    asked = [_entry(name_of(one)[1:]) for one in references(tree) if name_of(one)[:1] == ["data"]]
    return list(dict.fromkeys([own, *(one for one in asked if one)]))


def _entry(name: list[str]) -> str:
    return name[1] if len(name) > 1 and name[0] in ("runtime", "tenant") and name[1] in shapes.ENTRIES else ""


class _Reader:
    """Reads one rule."""

    def __init__(self, path: str, entries: list[str], scope: Scope) -> None:
        self._path = path
        self._scope = scope
        self._places = Places(entries, scope)

    def references(self, tree: object) -> Iterator[str]:
        """Paths that lead nowhere."""
        for one in references(tree):
            yield from self._say(one, self._places.missing(one))

    def uses(self, tree: object) -> Iterator[str]:
        """Places that are used as something they never are, and values that no question has there."""
        if isinstance(tree, list):
            for one in tree:
                yield from self.uses(one)
        elif isinstance(tree, dict):
            for kind, node in tree.items():
                if kind in ("BoolExpr", "AssignExpr") and node["op"] != "ColEq":
                    is_exact = node["op"] in ("Eq", "Ne")
                    yield from self._compared(node["lhs"], node["rhs"], is_exact=is_exact)
                    yield from self._compared(node["rhs"], node["lhs"], is_exact=is_exact)
                elif kind == "Membership":
                    yield from self._member(node["value"], node["collection"])
                elif kind in ("SomeIn", "Every"):
                    yield from self._must_be(node["collection" if kind == "SomeIn" else "domain"], _COLLECTIONS)
                elif kind == "Call":
                    yield from self._called(node)
                elif kind == "with_mods":
                    for one in node:
                        place = self._places.find(one["refr"])
                        yield from self._fits(one["as"], place) if place else ()
                yield from self.uses(node)

    def _say(self, node: Node, problem: str) -> Iterator[str]:
        if problem:
            yield f"{self._path}:{line_of(node)}: {problem}"

    def _must_be(self, node: Node, wanted: frozenset[str], how: str = "searched") -> Iterator[str]:
        place = self._places.find(node)
        if place and not shapes.kinds(place.shape) & wanted:
            yield from self._say(node, self._places.never(place, wanted, how))

    def _compared(self, node: Node, other: Node, *, is_exact: bool) -> Iterator[str]:
        place, wanted = self._places.find(node), self._kinds(other)
        if place is None or wanted is None:
            return
        if not shapes.kinds(place.shape) & wanted:
            yield from self._must_be(node, wanted, f"compared with {_words(wanted)}")
        elif is_exact:
            yield from self._say(node, self._places.unlisted(place, [other]))

    def _member(self, value: Node, collection: Node) -> Iterator[str]:
        yield from self._must_be(collection, _COLLECTIONS)
        wanted, inside = self._kinds(value), self._places.find(collection)
        if inside is not None and wanted is not None:
            item = inside.inside(None)
            if item.shape and not shapes.kinds(item.shape) & wanted:
                problem = self._places.never(item, wanted, f"compared with {_words(wanted)}")
                yield from self._say(collection, problem)
        place, written = self._places.find(value), self._scope.expression(collection)
        listed: list[Node] = next((written[kind]["items"] for kind in ("Array", "Set") if kind in written), [])
        kinds = [self._kinds(one) for one in listed]
        if place is None or not listed or None in kinds:
            return
        together = frozenset(one for some in kinds for one in some or ())
        if shapes.kinds(place.shape) & together:
            yield from self._say(value, self._places.unlisted(place, listed))
        else:
            yield from self._must_be(value, together, f"compared with {_words(together)}")

    def _called(self, node: Node) -> Iterator[str]:
        name, given = ".".join(name_of(node["fcn"])), node["params"]
        for index in _STRINGS.get(name, ()):
            if index < len(given):
                yield from self._must_be(given[index], _STRING, f"given to {name} as a string")
        if name == "object.get" and len(given) == 3:
            said = [literal(one) for one in given[1].get("Array", {}).get("items", [given[1]])]
            steps = tuple(one[0] for one in said if one is not None and isinstance(one[0], str))
            if len(steps) == len(said):
                yield from self._say(given[1], self._places.missing(given[0], steps))

    def _kinds(self, node: Node) -> frozenset[str] | None:
        """The types an expression may have; None if nothing is known of it."""
        node = self._scope.expression(node)
        kind = next(iter(node))
        if kind in _KINDS:
            return frozenset({_KINDS[kind]})
        if kind == "Call":
            return _STRING if ".".join(name_of(node["Call"]["fcn"])) in _GIVE_STRINGS else None
        place = self._places.find(node)
        return shapes.kinds(place.shape) if place else None

    def _fits(self, node: Node, place: Place, unions: int = 0) -> Iterator[str]:
        """What is wrong with a value that a test gives. It may lack fields: a test says what matters to it."""
        node = self._scope.expression(node)
        kind = next(iter(node))
        # A union of itself is refused only by the engine.
        if kind == "Call" and name_of(node["Call"]["fcn"]) == ["object", "union"] and unions < _MOST_UNIONS:
            for one in node["Call"]["params"]:
                yield from self._fits(one, place, unions + 1)
        if kind not in _KINDS or shapes.kinds(place.shape) == JSON_KINDS:
            return
        if _KINDS[kind] not in shapes.kinds(place.shape):
            is_here = f"{place} is given as {KIND_WORDS[_KINDS[kind]]}, but in {self._places.what(place)} it is"
            yield from self._say(node, f"{is_here} {shapes.described(place.shape)}{_wrapped(node, place)}")
        elif kind in LITERALS:
            yield from self._say(node, self._places.unlisted(place, [node]))
        elif kind == "Array":
            for one in node["Array"]["items"]:
                yield from self._fits(one, place.inside(None))
        elif kind == "Object":
            for _, key, value in node["Object"]["fields"]:
                said = literal(key)
                if said is None or not isinstance(said[0], str):
                    continue
                inner = place.inside(said[0])
                if inner.shape:
                    yield from self._fits(value, inner)
                else:
                    yield from self._say(key, self._places.absent(inner, place))


def _wrapped(node: Node, place: Place) -> str:
    said, suited = literal(node), place.suited(frozenset({_KINDS[next(iter(node))]}))
    if said is None or len(suited) != 1:
        return "."
    return f"; write {{{json.dumps(suited[0].path[-1])}: {json.dumps(said[0], ensure_ascii=False)}}}."


def _words(kinds: frozenset[str]) -> str:
    return " or ".join(KIND_WORDS[one] for one in sorted(kinds))
