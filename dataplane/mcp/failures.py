"""Why a call of an MCP server failed. ``reason`` is stable and for machines; the message is for people."""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    "mcp_changed",  # the tool is not the one that was reviewed
    "mcp_missing",  # the server offers no such tool any more
    "mcp_timeout",
    "mcp_exited",  # the server ended, or closed the connection
    "mcp_garbage",  # what it said is not MCP
    "mcp_flood",  # it said more than anybody asked for, or than fits
    "mcp_requests",  # it keeps asking the client for things
    "mcp_deaf",  # it does not read what it is told
    "mcp_error",  # it answered with an error
    "mcp_tool_error",  # the tool itself failed
    "mcp_input_required",  # it wants to be asked back, which nobody here can be
    "mcp_unavailable",  # it cannot be started or reached from here
    "mcp_busy",  # this node runs as many servers as it may
    "egress_refused",
]


class McpFailed(Exception):
    """One call has failed. ``retryable``: the same call may succeed later."""

    def __init__(self, reason: Reason, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable
