"""What every component can: say whether it is here, and get here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class State:
    """``path`` is "" exactly when it is not here; then ``why`` says why not."""

    version: str
    path: str = ""
    why: str = ""
    detail: str = ""


class Component(Protocol):
    """One thing to install. ``install`` is idempotent and may be killed at any moment."""

    name: str

    def state(self) -> State:
        """Whether it is here and works, found by asking it."""

    def install(self) -> None:
        """Get it; returns when it works. Raises: ComponentFailed."""
