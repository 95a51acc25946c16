"""Tools: arguments cannot choose the host or climb out of the path; schemas are self-contained."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from controlplane.tools.registry import match
from controlplane.tools.requests import ArgumentsRefused, resolve
from controlplane.tools.schemas import Schema, SchemaInvalid
from controlplane.tools.spec import HttpSpec, SecretBinding, digest_of


def _spec(**changed: Any) -> HttpSpec:
    return HttpSpec.model_validate({"method": "GET", "url": "https://api.test:8443/p/{project}/x?v=1"} | changed)


@pytest.mark.parametrize("value", ["a/b", "//evil.test", "@evil.test", "a?b#c", "%2e%2e", "ü", "a\r\nHost: x"])
def test_an_argument_stays_one_path_segment_of_the_same_host(value: str) -> None:
    call, destination = resolve(_spec(), {"project": value})
    assert (destination.scheme, destination.host, destination.port) == ("https", "api.test", 8443)
    assert destination.path.count("/") == 3
    assert call.url.startswith("https://api.test:8443/p/")
    assert call.url.endswith("/x?v=1")
    assert call.url.isascii()
    assert "\n" not in call.url


@pytest.mark.parametrize("value", ["..", ".", "", None, ["a"], {"a": 1}, "a\x00"])
def test_an_argument_that_would_change_the_path_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentsRefused):
        resolve(_spec(), {"project": value})


def test_query_and_body_take_their_arguments() -> None:
    spec = _spec(method="POST", query=["tag"], body="json")
    call, _ = resolve(spec, {"project": "p", "tag": ["a&b", 2, True], "title": "t"})
    assert call.url == "https://api.test:8443/p/p/x?v=1&tag=a%26b&tag=2&tag=true"
    assert call.body == {"title": "t"}


def test_an_argument_without_a_place_is_refused() -> None:
    with pytest.raises(ArgumentsRefused, match="no place"):
        resolve(_spec(), {"project": "p", "other": 1})


@pytest.mark.parametrize(
    "changed",
    [
        {"url": "https://{host}/x"},
        {"url": "https://user:pw@api.test/x"},
        {"url": "ftp://api.test/x"},
        {"url": "https://api.test/x?q={q}"},
        {"url": "https://api.test/x#f"},
        {"url": "https://api.test/{a.b}"},
        {"url": "https://api.test/{a!r}"},
        {"url": "https://api.test/{"},
        {"url": "https://api.test:99999/x"},
        {"url": "https://api.test\\@evil.test/x"},
        {"headers": {"Host": "evil.test"}},
        {"headers": {"X-A": "a\r\nB: c"}},
        {"unknown": 1},
    ],
)
def test_a_dangerous_request_cannot_be_registered(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _spec(**changed)


@pytest.mark.parametrize("form", ["Bearer", "{}{}", "{0}", "{} {x}"])
def test_a_secret_has_exactly_one_place(form: str) -> None:
    with pytest.raises(ValidationError):
        SecretBinding(name="a", header="Authorization", format=form)


def test_schemas_never_fetch_references_and_report_pointers() -> None:
    with pytest.raises(SchemaInvalid):
        Schema({"$ref": "https://evil.test/schema.json"})
    with pytest.raises(SchemaInvalid):
        Schema({"type": "nothing"})
    problems = Schema({"type": "object", "properties": {"a/b": {"type": "integer"}}}).check({"a/b": "x"})
    assert [problem.pointer for problem in problems] == ["/a~1b"]


def test_grants_match_names_and_servers_only() -> None:
    assert match(["a.b"], "a.b")
    assert match(["a.*"], "a.b.c")
    assert not match(["a.*"], "ab.c")
    assert not match(["a.*", "b"], "a")
    assert not match([], "a.b")


def test_the_digest_pins_name_and_spec() -> None:
    assert digest_of("a.b", {"x": 1}) == digest_of("a.b", {"x": 1})
    assert len({digest_of("a.b", {"x": 1}), digest_of("a.c", {"x": 1}), digest_of("a.b", {"x": 2})}) == 3
