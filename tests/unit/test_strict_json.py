"""What bounds a guest's JSON, against text made to be counted wrong."""

from __future__ import annotations

import json

import pytest

from sandboxes import strict_json


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"[]," * 1000 + b"[]]",
        b"[" + b'"",' * 1000 + b'""]',
        b"{" + b",".join(b'"%d":{}' % number for number in range(1000)) + b"}",
        b"[" + b'"\\\\",' * 1000 + b'""]',
        b"[" + b'"\\\\\\"",' * 1000 + b"1]",
    ],
    ids=["lists", "strings", "objects", "strings that end in a backslash", "strings with quotes"],
)
def test_too_many_values_are_refused_before_there_are_any(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert strict_json.load(text, 3000) == json.loads(text)
    monkeypatch.setattr("sandboxes.strict_json.json.loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(ValueError, match="more than 900 values"):
        strict_json.load(text, 900)


def test_what_is_within_a_string_is_no_value() -> None:
    table = ',[{"\\' * 1000
    assert strict_json.load(json.dumps([table, {table: 1}]).encode(), 10) == [table, {table: 1}]


def test_the_bounds_of_a_result() -> None:
    assert strict_json.parse(b"[" * 128 + b"]" * 128)
    with pytest.raises(ValueError, match="128 levels"):
        strict_json.parse(b"[" * 129 + b"]" * 129)
    with pytest.raises(ValueError, match="1000000 values"):
        strict_json.parse(b"[" + b"0," * 1_000_000 + b"0]")
    assert len(strict_json.parse(b"[" + b"[]," * 999_000 + b"{}]")) == 999_001
    with pytest.raises(ValueError, match="bytes"):
        strict_json.parse(b'"' + b"x" * strict_json.BYTES_MOST + b'"')


@pytest.mark.parametrize("text", [b'"\\ud800"', b'{"\\uDFFF": 1}', b'["\\\\ok", "\\uD801"]'])
def test_lone_surrogates_are_refused_and_pairs_are_not(text: bytes) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        strict_json.parse(text)
    assert strict_json.parse(b'"\\ud83d\\udc22"') == "\U0001f422"
