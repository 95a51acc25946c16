"""Telling a person that the control plane is not reached: at once, and then ever more rarely while it lasts."""

from __future__ import annotations

import structlog

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
CAUSE_CHARACTERS = 300

log = structlog.get_logger("stockade.node")

_FIXES = (
    (("certificate", "ssl:true", "sslcert"), "give the authority that signed the server's certificate with --ca-file"),
    (("http 5", "http 429"), "it answers but cannot serve: look at the control plane's own log"),
    (("not understood", "messages but"), "what answers there is not this version's control plane: check --url"),
    (("name or service", "getaddrinfo", "resolve", "dns"), "check the host in --url, and this host's name service"),
    (("timeout", "timed out"), "check that nothing between this host and the control plane drops the connection"),
)
_ELSE = "start the control plane, or correct --url; the node goes on trying"


class Outage:
    """One stretch of failures to reach ``url``. ``secret`` never gets into the log, even if the peer echoes it."""

    def __init__(self, url: str, secret: str) -> None:
        self._url = url
        self._secret = secret
        self._since: float | None = None
        self._next = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._failures = 0

    def failed(self, error: Exception, now: float) -> None:
        """One more failure at ``now`` (seconds, monotonic): logged if it is the first or a pause is over."""
        self._failures += 1
        if self._since is None:
            self._since = now
        elif now < self._next:
            return
        else:
            self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        self._next = now + self._pause
        cause = str(error).replace(self._secret, "[join token]") if self._secret else str(error)
        log.warning(
            "control plane not reached, not registered",
            url=self._url,
            cause=cause[:CAUSE_CHARACTERS],
            fix=fix_of(cause),
            failures=self._failures,
            seconds=round(now - self._since, 1),
        )


def fix_of(cause: str) -> str:
    """What a person does about it, by the words of the cause."""
    lowered = cause.lower()
    return next((fix for words, fix in _FIXES if any(word in lowered for word in words)), _ELSE)
