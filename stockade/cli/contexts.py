"""The server and the key of a command: ``stockade.contexts``, whose complaints are refusals here."""

from __future__ import annotations

import os
from collections.abc import Mapping

from stockade import contexts
from stockade.cli.exits import Exit, Refusal
from stockade.contexts import DEFAULT_URL, Context, ContextError, context_file, write

__all__ = ["DEFAULT_URL", "Context", "checked_url", "context_file", "resolve", "write"]


def resolve(url: str | None, api_key: str | None, environ: Mapping[str, str] = os.environ) -> Context:
    """The context of this command."""
    try:
        return contexts.resolve(url, api_key, environ, given="flag")
    except ContextError as error:
        raise _refusal(error) from None


def checked_url(url: str, source: str) -> str:
    """``url`` as the client takes it."""
    try:
        return contexts.checked_url(url, source)
    except ContextError as error:
        raise _refusal(error) from None


def _refusal(error: ContextError) -> Refusal:
    return Refusal(Exit.USAGE, error.message, where=error.where, fix=error.fix)
