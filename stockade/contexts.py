"""Which server and which key: argument > ``STOCKADE_URL``, ``STOCKADE_API_KEY`` > context file > default.

The command line and the Python client ask here, so that both talk to the same server. Standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:7373"


class ContextError(ValueError):
    """What was given cannot be used: ``where`` it stands, and the ``fix``."""

    def __init__(self, message: str, *, where: str, fix: str) -> None:
        super().__init__(f"{message} ({where}): {fix}")
        self.message = message
        self.where = where
        self.fix = fix


@dataclass(frozen=True, kw_only=True)
class Context:
    """A server as this call sees it. ``url_from`` and ``key_from`` say which source won.

    ``kept_url`` is the server of the context file's key where that key was not taken because it is another server's.
    """

    url: str
    api_key: str | None
    url_from: str
    key_from: str
    kept_url: str | None = None


def context_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the context is kept."""
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".config")
    return Path(base) / "stockade" / "context.json"


def resolve(
    url: str | None = None,
    api_key: str | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    given: str = "argument",
) -> Context:
    """The context of a call; ``given`` names the source of the first two. Raises ``ContextError``."""
    kept = {} if url and api_key else read(context_file(environ))
    urls = [(url, given), (environ.get("STOCKADE_URL"), "STOCKADE_URL"), (kept.get("url"), "context file")]
    keys = [(api_key, given), (environ.get("STOCKADE_API_KEY"), "STOCKADE_API_KEY")]
    found_url, url_from = next(((value, source) for value, source in urls if value), (DEFAULT_URL, "default"))
    found_url = checked_url(found_url, url_from)
    # The kept key belongs to the kept server: it is not sent to another one.
    kept_url = kept.get("url", "").rstrip("/")
    if kept_url == found_url:
        keys.append((kept.get("api_key"), "context file"))
    found_key, key_from = next(((value, source) for value, source in keys if value), (None, "nowhere"))
    if found_key is not None and not (found_key.isascii() and found_key.isprintable()):
        fix = "copy the key from the admin.key file that `stockade up` names"
        raise ContextError("an API key is plain ASCII", where=key_from, fix=fix)
    another = kept_url if found_key is None and kept.get("api_key") and kept_url != found_url else None
    return Context(url=found_url, api_key=found_key, url_from=url_from, key_from=key_from, kept_url=another)


def checked_url(url: str, source: str) -> str:
    """``url`` without its last slashes. Raises ``ContextError`` for what is no http address."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        address = f"http://{url}" if "://" not in url else DEFAULT_URL
        raise ContextError(f"{url!r} is not an http address", where=source, fix=f"write it as {address}")
    return url.rstrip("/")


def read(path: Path) -> dict[str, str]:
    """The file's members, or none where there is no file. Raises ``ContextError`` for a file that is not ours."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ContextError(f"the context file cannot be read: {error}", where=str(path), fix=f"rm {path}") from None
    if not isinstance(value, dict):
        raise ContextError("the context file is not an object", where=str(path), fix=f"rm {path}")
    return {key: item for key, item in value.items() if isinstance(item, str)}


def write(path: Path, url: str, api_key: str | None) -> None:
    """Keep a context, readable by this user only, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"url": url, **({"api_key": api_key} if api_key else {})}, file)
    temporary.replace(path)
