"""An HTTP service on loopback that writes down every call it gets: what a second execution looks like from outside."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.loopback_server import HOLD_SECONDS, HOST, LoopbackHandler, LoopbackServer


@dataclass(frozen=True, kw_only=True)
class Performed:
    """One call as the service saw it: ``key`` is its idempotency key, ``at`` when it came (seconds, wall clock)."""

    id: str
    key: str
    at: float


class CallService(LoopbackServer):
    """``GET /ok/ID?after=N`` answers ``{"id": ID, "after": N, "nth": how often so far}``, or 400 if ID has ``bad``.

    It answers what ``hold`` picks only after ``release``.
    """

    def __init__(self) -> None:
        self._calls: list[Performed] = []
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._hold: Callable[[str, int], bool] = lambda _id, _nth: False
        service = self

        class Handler(LoopbackHandler):
            def do_GET(self) -> None:
                status, answer = service._perform(self.path, self.headers.get("Idempotency-Key", ""))
                content = json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # whoever asked was killed
                    self.close_connection = True

        super().__init__(Handler)

    def settings(self, folder: Path) -> dict[str, str]:
        """What lets a control plane's tools call it; ``folder`` is made for the policy data that grants it."""
        folder.mkdir()
        granted = {"egress": {HOST: [self.port]}}
        (folder / "data.json").write_text(json.dumps({"tenants": {"default": granted}}))
        return {"STOCKADE_POLICY_DIR": str(folder), "STOCKADE_PRIVATE_HOSTS": json.dumps([self.authority])}

    def tool(self) -> dict[str, Any]:
        """The tool that calls it; ``after`` is whatever the caller wants to depend on."""
        properties = {"id": {"type": "string"}, "after": {"type": "integer"}}
        return {
            "kind": "http",
            "description": "Counts its calls.",
            "effect": "none",
            "input": {"type": "object", "required": ["id"], "properties": properties, "additionalProperties": False},
            "http": {"method": "GET", "url": f"http://{self.authority}/ok/{{id}}", "query": ["after"]},
        }

    def hold(self, when: Callable[[str, int], bool]) -> None:
        """Answer calls for whose id and number ``when`` holds only after ``release``."""
        self._hold = when

    def calls(self, prefix: str = "") -> dict[str, list[Performed]]:
        """All calls so far of ids that begin so, by id, in order."""
        found: dict[str, list[Performed]] = defaultdict(list)
        with self._lock:
            for one in self._calls:
                if one.id.startswith(prefix):
                    found[one.id].append(one)
        return found

    def _perform(self, target: str, key: str) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(target)
        id, after = parts.path.rpartition("/")[2], parse_qs(parts.query).get("after")
        with self._lock:
            self._calls.append(Performed(id=id, key=key, at=time.time()))
            self._counts[id] += 1
            nth = self._counts[id]
        if self._hold(id, nth):
            self._release.wait(HOLD_SECONDS)
        if "bad" in id:
            return 400, {"why": "it asked for it"}
        return 200, {"id": id, "after": int(after[0]) if after else None, "nth": nth}
