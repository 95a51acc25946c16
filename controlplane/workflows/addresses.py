"""Addresses of data: ``data://NAME/REL`` beneath an exported root, and ``artifact://…``; of ``near`` also models."""

from __future__ import annotations

import re

_ROOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}\Z")
MODEL = "model:"
_ARTIFACT = re.compile(r"artifact://[A-Za-z0-9][A-Za-z0-9._:/-]{0,255}\Z")


def refuse_address(text: str) -> tuple[str, str] | None:
    """``None`` for a well-formed data or artifact address, else why not and what to write instead.

    Resolved (computed) addresses must pass this too before anything opens them.
    """
    if text.startswith("data://"):
        return _refuse_data(text.removeprefix("data://"))
    if text.startswith("artifact://"):
        well_formed = _ARTIFACT.match(text) and ".." not in text
        return None if well_formed else ("malformed artifact address", "write artifact:// and the artifact's id")
    scheme = _SCHEME.match(text)
    if text.startswith("/") or (scheme is not None and scheme[1].lower() == "file"):
        return (
            "host paths and file:// are not addresses of data",
            "export the folder with `stockade node --data NAME=PATH` and write data://NAME/REL",
        )
    if scheme is not None and scheme[1].lower() == "data":
        return ("data: must be data://NAME/REL", "write data://NAME/REL; inline data goes into args")
    what = f"the scheme {scheme[1]!r} is not an address of data" if scheme else f"{text[:80]!r} is not an address"
    return (what, "write data://NAME/REL, artifact://…, or one whole ${…} that gives such an address")


def refuse_near(text: str) -> tuple[str, str] | None:
    """``refuse_address`` for a member of ``near``, which may also be ``model:NAME``."""
    if text.startswith(MODEL):
        name = text.removeprefix(MODEL)
        return None if _MODEL.match(name) else (f"{name[:80]!r} is not the name of a model", "write model:NAME")
    refused = refuse_address(text)
    if refused is None or text.partition(":")[0].lower() in ("file", "data") or text.startswith("/"):
        return refused
    return refused[0], "write data://NAME, artifact://…, model:NAME, or the id of an earlier step"


def _refuse_data(rest: str) -> tuple[str, str] | None:
    hint = "write data://NAME/REL: a root that a node exports and a path beneath it"
    name, _, path = rest.partition("/")
    if not _ROOT.match(name):
        return (f"{name[:80]!r} is not the name of a data root", hint)
    if len(path) > 1024 or any(character < " " or character in "\\?#\x7f" for character in path):
        return ("a path beneath a data root has no control characters, backslash, '?' or '#', and 1,024 at most", hint)
    segments = path.split("/") if path else []
    if segments and segments[-1] == "":
        segments.pop()
    if any(segment in ("", ".", "..") for segment in segments):
        return ("a path beneath a data root may not have empty, '.' or '..' parts", hint)
    return None
