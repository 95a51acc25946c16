"""What a registered tool is. The spec's digest pins it: a changed description is another tool."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from string import Formatter
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from controlplane.store import canonical

NAME_PATTERN = r"^[a-z][a-z0-9_-]*(\.[A-Za-z][A-Za-z0-9_-]*)+$"
_TOKEN = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$"  # noqa: S105
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FORBIDDEN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "te"})

HeaderName = Annotated[str, StringConstraints(pattern=_TOKEN)]
HeaderValue = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]*$", max_length=4096)]
ArgumentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
Effect = Literal["none", "stageable", "immediate"]


class Sent(BaseModel):
    """What users send: nothing unknown, nothing changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def private_headers(names: Iterable[str]) -> None:
    """Raises ``ValueError`` for a header that only the platform may set."""
    for header in names:
        if header.lower() in _FORBIDDEN_HEADERS:
            raise ValueError(f"the header {header} is the platform's to set")


class HttpSpec(Sent):
    """How arguments become a request. Those in ``url`` and ``query`` go there; the rest are the JSON body."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
    url: Annotated[str, StringConstraints(min_length=8, max_length=2048, pattern=r"^[\x21-\x7e]+$")]
    """``https://host/path/{arg}``: placeholders in the path only, each filled percent-encoded."""
    query: list[ArgumentName] = []
    headers: dict[HeaderName, HeaderValue] = {}
    body: Literal["json"] | None = None
    timeout: float = Field(default=30.0, gt=0, le=600)
    """Seconds."""

    @model_validator(mode="after")
    def _safe(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must be http://host/… or https://host/…")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must not hold credentials; use secrets")
        if parts.fragment or "#" in self.url:
            raise ValueError("url must not have a fragment")
        outside_path = parts.netloc + parts.query
        if "{" in outside_path or "}" in outside_path or "\\" in self.url:
            raise ValueError("placeholders belong in the path of url; arguments of the query string in query")
        # Raises ValueError itself for a port that is no number or out of range.
        if parts.port == 0:
            raise ValueError("url has port 0")
        for name in self.path_arguments():
            if not _ARGUMENT.match(name):
                raise ValueError(f"{{{name}}} is not a placeholder: write {{argument}}")
        private_headers(self.headers)
        return self

    def path_arguments(self) -> list[str]:
        """Names of the placeholders. Raises ValueError for unbalanced braces, formats and conversions."""
        names: list[str] = []
        for _, name, format_spec, conversion in Formatter().parse(urlsplit(self.url).path):
            if name is None:
                continue
            if format_spec or conversion:
                raise ValueError("a placeholder in url is {argument} and nothing more")
            names.append(name)
        return names


class SecretBinding(Sent):
    """The header a secret's value is put into, on the node, after policy allowed it."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]*$", max_length=64)]
    header: HeaderName
    format: HeaderValue = "Bearer {}"

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.format.count("{}") != 1 or self.format.count("{") != 1 or self.format.count("}") != 1:
            raise ValueError("format has exactly one {} for the value")
        private_headers([self.header])
        return self


class ToolSpec(Sent):
    """What ``PUT /v1/tools/{name}`` takes."""

    kind: Literal["http"] = "http"
    description: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    effect: Effect
    input: dict[str, Any]
    """JSON Schema of the arguments, an object."""
    output: dict[str, Any] | None = None
    """JSON Schema of the response body."""
    critical_args: list[ArgumentName] | None = Field(default=None, max_length=64)
    """Arguments that decide what the effect does, and to whom. Not given: all, for a tool that has an effect."""
    http: HttpSpec
    secrets: list[SecretBinding] = Field(default=[], max_length=8)


def digest_of(name: str, spec: dict[str, Any]) -> str:
    """Pins a tool: SHA-256 over its name and canonical spec."""
    return f"sha256:{hashlib.sha256(canonical({'name': name, 'spec': spec}).encode()).hexdigest()}"
