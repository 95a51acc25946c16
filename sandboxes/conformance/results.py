"""The result: strict JSON, from the call, else output.json, else the last expression."""

from __future__ import annotations

from typing import Any

from sandboxes.conformance.check import Check, Outcome, after, ended, python, returns
from sandboxes.testing import Play


def _refused(outcome: Outcome) -> bool:
    return ended(outcome) and not outcome.end.has_result and bool(outcome.end.schema_error)


def _gives(name: str, source: str, value: Any, call: str | None = None, args: tuple[Any, ...] = ()) -> Check:
    play = Play(result=value, has_result=True)
    return Check(name=name, programs=python(source, play, call=call, args=args), verify=returns(value))


def _refuses(name: str, source: str) -> Check:
    return Check(name=name, programs=python(source, Play(schema_error="not strict JSON")), verify=after(_refused))


CHECKS = (
    _gives(
        "the_last_expression",
        "x = 20\n{'answer': x * 2 + 2, 'list': [1, 2.5, None, True]}",
        {"answer": 42, "list": [1, 2.5, None, True]},
    ),
    _gives(
        "the_return_of_the_call",
        "def add(a, b): return {'sum': a + b, 'text': 'ż'}",
        {"sum": 5, "text": "ż"},
        "add",
        (2, 3),
    ),
    _gives("a_call_may_return_none", "def nothing(): return None", None, "nothing"),
    _gives("output_json", "open('/outputs/output.json', 'w').write('{\"a\": [1]}')\n'last'", {"a": [1]}),
    _gives(
        "the_call_counts_before_output_json",
        "def both():\n    open('/outputs/output.json', 'w').write('1')\n    return 2",
        2,
        "both",
    ),
    _gives("large_numbers_and_text_survive", "[2 ** 80, 1e-300, '\\u0000\\u2028🐢']", [2**80, 1e-300, "\0\u2028🐢"]),
    Check(
        name="no_result",
        programs=python("x = 1", Play()),
        verify=after(lambda o: ended(o) and not o.end.has_result and o.end.schema_error is None),
    ),
    Check(
        name="a_missing_function_is_the_guests_failure",
        programs=python("y = 1", Play(code=1, stderr=b"NameError: absent"), call="absent"),
        verify=after(lambda o: ended(o, 1) and b"absent" in o.stderr and not o.end.has_result),
    ),
    _refuses("nan_is_not_json", "float('nan')"),
    _refuses("infinity_in_a_list_is_not_json", "[1.0, float('-inf')]"),
    _refuses("an_object_is_not_json", "{'a': object()}"),
    _refuses("a_result_above_16_mib_is_refused", "'x' * (16 * 1024 * 1024 + 1)"),
    _refuses("an_output_json_that_is_not_json", "open('/outputs/output.json', 'w').write('{\"a\": NaN}')\nNone"),
)
