"""Which server and which key: flag > ``STOCKADE_URL``, ``STOCKADE_API_KEY`` > context file > default."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stockade.cli.exits import Exit, Refusal

DEFAULT_URL = "http://127.0.0.1:7373"


@dataclass(frozen=True, kw_only=True)
class Context:
    """A server as this command sees it. ``url_from`` and ``key_from`` say which source won."""

    url: str
    api_key: str | None
    url_from: str
    key_from: str


def context_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the context is kept."""
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".config")
    return Path(base) / "stockade" / "context.json"


def resolve(url: str | None, api_key: str | None, environ: Mapping[str, str] = os.environ) -> Context:
    """The context of this call."""
    kept = read(context_file(environ))
    urls = [(url, "flag"), (environ.get("STOCKADE_URL"), "STOCKADE_URL"), (kept.get("url"), "context file")]
    keys = [(api_key, "flag"), (environ.get("STOCKADE_API_KEY"), "STOCKADE_API_KEY")]
    found_url, url_from = next(((value, source) for value, source in urls if value), (DEFAULT_URL, "default"))
    # The kept key belongs to the kept server: it is not sent to another one.
    if kept.get("url") == found_url:
        keys.append((kept.get("api_key"), "context file"))
    found_key, key_from = next(((value, source) for value, source in keys if value), (None, "nowhere"))
    return Context(url=found_url, api_key=found_key, url_from=url_from, key_from=key_from)


def read(path: Path) -> dict[str, str]:
    """The file's members, or none where there is no file. Raises ``Refusal`` for a file that is not ours."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Refusal(
            Exit.USAGE, "the context file cannot be read", where=str(path), why=str(error), fix=f"rm {path}"
        ) from None
    if not isinstance(value, dict):
        raise Refusal(Exit.USAGE, "the context file is not an object", where=str(path), fix=f"rm {path}")
    return {key: item for key, item in value.items() if isinstance(item, str)}


def write(path: Path, url: str, api_key: str | None) -> None:
    """Keep a context, readable by this user only, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"url": url, **({"api_key": api_key} if api_key else {})}, file)
    temporary.replace(path)
