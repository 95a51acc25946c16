"""``python -m controlplane.health``: ask this host's control plane whether it is ready, for probes without curl.

It reads the variables that the control plane reads, and exits with 0 if ``/readyz`` answers 200, else with 1 and why.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys

from controlplane.config import Settings, SettingsRefused, from_environment

ANSWER_SECONDS = 3.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - to be asked, not to be bound


def failure(settings: Settings) -> str | None:
    """Why it is not ready; None if it is. Blocks for up to three seconds."""
    connection = _connection(settings)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(4096)
    except (OSError, http.client.HTTPException) as error:
        return f"{settings.url} does not answer: {error}"
    finally:
        connection.close()
    return None if answer.status == 200 else f"HTTP {answer.status}: {body.decode(errors='replace')}"


def _connection(settings: Settings) -> http.client.HTTPConnection:
    host = _EVERYWHERE.get(settings.host, settings.host)
    if settings.tls_certificate_file is None:
        return http.client.HTTPConnection(host, settings.port, timeout=ANSWER_SECONDS)
    # Whoever has the port must have this very certificate; the names in it are for others.
    context = ssl.create_default_context(cafile=str(settings.tls_certificate_file))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return http.client.HTTPSConnection(host, settings.port, timeout=ANSWER_SECONDS, context=context)


def main() -> int:
    """The exit status."""
    try:
        why = failure(from_environment())
    except (SettingsRefused, OSError) as refused:
        why = str(refused)
    print(json.dumps({"ready": why is None, "why": why or ""}))
    return 0 if why is None else 1


if __name__ == "__main__":
    sys.exit(main())
