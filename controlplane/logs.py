"""The control plane's log: one JSON object a line on standard error, tracebacks without values of variables."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs() -> None:
    """Once, before anything logs. Local variables are never shown: they hold keys and other people's data."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
