"""A server-sent event stream's lines made events (the part of the format our server speaks, read strictly)."""

from __future__ import annotations

from stockade.client.models import Event


class EventLines:
    """Feed it lines; it gives an event at each blank line that ends one. Comments (heartbeats) give none."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> Event | None:
        """The event that ``line`` completed, if it did."""
        if line == "":
            data, self._data = "\n".join(self._data), []
            return Event.model_validate_json(data) if data else None
        if line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
        return None
