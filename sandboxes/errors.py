"""The platform's failures. A guest's failure is a value (``Exited``); these burn no attempt of the step's retries."""

from __future__ import annotations


class DriverFailed(Exception):
    """The driver could not do its part (``message`` says what and, where known, the fix)."""


class TierUnavailable(DriverFailed):
    """This host cannot offer the tier; the message is the probe's own reason."""


class SandboxClosed(DriverFailed):
    """The sandbox was used after its end."""
