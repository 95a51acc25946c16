"""Every "no" of the forwarder: a code for programs, a reason and a fix for people; all three go to the guest."""

from __future__ import annotations

import json
from enum import StrEnum
from http import HTTPStatus


class Code(StrEnum):
    """Why a flow was refused, or was ended by the node. Stable."""

    BAD_REQUEST = "bad_request"
    LENGTH_REQUIRED = "length_required"
    HOST_NOT_GRANTED = "host_not_granted"
    PORT_NOT_GRANTED = "port_not_granted"
    ADDRESS_REFUSED = "address_refused"
    NAME_NOT_FOUND = "name_not_found"
    CONNECT_FAILED = "connect_failed"
    NOT_TLS = "not_tls"
    NAME_MISSING = "server_name_missing"
    NAME_DIFFERS = "server_name_differs"
    NAME_HIDDEN = "server_name_hidden"
    BYTES = "bytes_exceeded"
    FLOWS = "flows_exceeded"
    IDLE = "idle"
    LEASE = "lease_lapsed"
    ENDED = "step_ended"


_STATUS = {
    Code.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    Code.LENGTH_REQUIRED: HTTPStatus.LENGTH_REQUIRED,
    Code.NAME_NOT_FOUND: HTTPStatus.BAD_GATEWAY,
    Code.CONNECT_FAILED: HTTPStatus.BAD_GATEWAY,
    Code.BYTES: HTTPStatus.TOO_MANY_REQUESTS,
    Code.FLOWS: HTTPStatus.TOO_MANY_REQUESTS,
    Code.LEASE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.IDLE: HTTPStatus.REQUEST_TIMEOUT,
}
TLS_ACCESS_DENIED = bytes((21, 3, 3, 0, 2, 2, 49))
"""A fatal alert ``access_denied``, for a client that has begun its handshake and reads no HTTP any more."""


class Refused(Exception):
    """The flow may not be, or not go on."""

    def __init__(self, code: Code, message: str, fix: str) -> None:
        super().__init__(message)
        self.code, self.fix = code, fix

    def response(self) -> bytes:
        """The whole HTTP answer."""
        status = _STATUS.get(self.code, HTTPStatus.FORBIDDEN)
        body = json.dumps({"type": "egress_refused", "code": self.code, "message": str(self), "fix": self.fix}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Stockade-Reason: {self.code}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body
