"""Secrets in the forms that services echo them in, honest ones and others."""

from __future__ import annotations

import base64
import html
import json
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from dataplane.scrubbing import Scrubber

SECRET = 'S3cr/et+Val&ue~01"aZ 🐢\n'


def _characters(form: str) -> Callable[[str], str]:
    return lambda text: "".join(form.format(ord(one)) for one in text)


def _percent(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": json.dumps,
    "json without ascii": lambda text: json.dumps(text, ensure_ascii=False),
    "json with escaped slashes": lambda text: json.dumps(text).replace("/", "\\/"),
    "json in json": lambda text: json.dumps(json.dumps(text).replace("/", "\\/")),
    "json in json in json": lambda text: json.dumps(json.dumps(json.dumps(text))),
    "every character as \\u": lambda text: "".join(
        f"\\u{unit.hex()}"
        for unit in (text.encode("utf-16-be")[at : at + 2] for at in range(0, len(text.encode("utf-16-be")), 2))
    ),
    "url": quote,
    "url, whole": lambda text: quote(text, safe=""),
    "form": quote_plus,
    "url in lower case": lambda text: _percent(text),
    "url in both cases": lambda text: quote(text, safe="").replace("%2F", "%2f"),
    "url twice": lambda text: quote(quote(text, safe=""), safe=""),
    "html": html.escape,
    "html in json": lambda text: json.dumps(html.escape(text)),
    "html twice": lambda text: html.escape(html.escape(text)),
    "decimal entities": _characters("&#{};"),
    "hexadecimal entities": _characters("&#x{:X};"),
    "entities with zeros": _characters("&#x{:06x};"),
    "url in html in json": lambda text: json.dumps(html.escape("?a=1&b=" + quote(text))),
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal in both cases": lambda text: text.encode().hex().title(),
    "base64": lambda text: base64.b64encode(b"x" + text.encode()).decode(),
    "base64 with escaped slashes": lambda text: base64.b64encode(text.encode()).decode().replace("/", "\\/"),
    "base64 in a url": lambda text: quote(base64.b64encode(text.encode()).decode(), safe=""),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", [SECRET, "p%20q&amp;r\\ns-0123", "a b+c d", "\\u0041\\", "?" * 12 + "~" * 12])
def test_no_form_of_a_secret_is_left(secret: str, form: str) -> None:
    echoed = FORMS[form](secret)
    said = Scrubber([secret]).text(f"before {echoed} after")
    assert "***" in said
    assert said.startswith("before ")
    assert said.endswith(" after")
    # Of base64 the characters at both ends are the neighbours' too; of all else nothing is left but quotes.
    left = said.removeprefix("before ").removesuffix(" after").replace("***", "")
    around = "?a=1&b=" if "?a=1" in said else ""
    assert len(left) <= (8 if "base64" in form else 20 if around else 14), said


def test_what_is_around_a_secret_stays() -> None:
    said = Scrubber(["s3cr/et"]).text("%41 &lt;b&gt; s3cr%2fet &amp; \\u0041 s3cr\\/et s3cr/et \\n")
    assert said == "%41 &lt;b&gt; *** &amp; \\u0041 *** *** \\n"


def test_keys_values_and_neighbouring_secrets() -> None:
    scrubber = Scrubber(["abcdef", "cdefgh"])
    assert scrubber.json({"x-abcdef": ["abcdefgh", 1, None, True, 1.5]}) == {"x-***": ["***", 1, None, True, 1.5]}


def test_no_secrets_change_nothing() -> None:
    assert Scrubber([]).text("%41\\u0041") == "%41\\u0041"
    assert Scrubber([""]).json({"a": "%41"}) == {"a": "%41"}


@pytest.mark.parametrize(
    "piece", ["\\", "%25", "%25x", "&amp;", "&amp;x", "\\u005c", "k" * 2900 + "x", "%6b" * 500 + "x", "&#x26;#"]
)
def test_no_answer_makes_the_search_slow(piece: str) -> None:
    scrubber = Scrubber(["k" * 3000])

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        began = time.process_time()
        scrubber.text(text)
        return time.process_time() - began

    assert seconds(1 << 19) < 5
