"""Talks to a control plane over HTTP: typed, sync and async.

models.py      what comes back, as immutable pydantic models
errors.py      StockadeError (the server said no), ServerUnreachable (it said nothing), NotStockade (another did)
calls.py       every operation once, as a value both clients send
transport.py   headers, retry of lost connections, problems made exceptions
sse.py         the event stream's lines made events
sync_client.py, async_client.py   the two clients
"""

from stockade.client.async_client import AsyncClient
from stockade.client.errors import NotStockade, ServerUnreachable, StockadeError
from stockade.client.models import (
    Artifact,
    Decision,
    Event,
    Node,
    Problem,
    Reason,
    Run,
    RunError,
    Secret,
    Step,
    Tool,
    Validation,
    Workflow,
)
from stockade.client.sync_client import Client

__all__ = [
    "Artifact",
    "AsyncClient",
    "Client",
    "Decision",
    "Event",
    "Node",
    "NotStockade",
    "Problem",
    "Reason",
    "Run",
    "RunError",
    "Secret",
    "ServerUnreachable",
    "Step",
    "StockadeError",
    "Tool",
    "Validation",
    "Workflow",
]
