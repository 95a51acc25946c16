"""What a rule puts into ``deny``, where that is plain from its text: a set of reasons, nothing else is one.

A reason of another shape denies, but as ``malformed_answer``, without a word of what its rule wanted to say. What is
written by name or comes from a function is left to that.
"""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.authorization.scope import scopes
from controlplane.authorization.shapes import KIND_WORDS, nearest
from controlplane.authorization.syntax import Node, name_of, rule_line, rule_name

REASON = '{"code": "…", "message": "…", "remedy": "…"}'
_FIELDS = ["code", "message", "remedy"]
_REQUIRED = ("code", "message")
_NOT_OBJECTS = {
    **{"String": "string", "RawString": "string", "Number": "number", "Bool": "boolean", "Null": "null"},
    **{"Array": "array", "ArrayCompr": "array", "Set": "set", "SetCompr": "set"},
}
_GIVE_STRINGS = ("sprintf", "concat", "lower", "upper", "replace", "trim", "format_int")


def findings(path: str, tree: Node, text: str) -> Iterator[str]:
    """Rules that add no reason to ``deny`` or ``refusals``, as ``file:line: …``."""
    for rule, scope in scopes(tree, text):
        head = rule.get("Spec", {}).get("head", {}).get("Set")
        if head is None or rule_name(rule) not in ("deny", "refusals") or head["key"] is None:
            continue
        added = scope.expression(head["key"])
        for problem in _problems(added):
            yield f"{path}:{rule_line(rule)}: {problem}"


def _problems(added: Node) -> Iterator[str]:
    kind = next(iter(added))
    is_text = kind == "Call" and ".".join(name_of(added["Call"]["fcn"])) in _GIVE_STRINGS
    if kind in _NOT_OBJECTS or is_text:
        what = "a string" if is_text else KIND_WORDS[_NOT_OBJECTS[kind]]
        yield f"deny holds reasons, not {what}: write `deny contains {REASON} if {{…}}`."
    if kind != "Object":
        return
    fields = [(key.get("String", {}).get("value"), value) for _, key, value in added["Object"]["fields"]]
    names = [name for name, _ in fields]
    for name, value in fields:
        if name is not None and name not in _FIELDS:
            near = nearest(name, _FIELDS)
            hint = f'did you mean "{near}"?' if near else f"a reason is {REASON}."
            yield f'a reason has no "{name}"; {hint}'
        elif next(iter(value)) in _NOT_OBJECTS.keys() - {"String", "RawString"} | {"Object", "ObjectCompr"}:
            yield f'"{name}" of a reason is a string.'
    if None not in names:
        for name in _REQUIRED:
            if name not in names:
                yield f'a reason needs "{name}": write {REASON}.'
