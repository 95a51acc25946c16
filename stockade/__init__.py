"""Stockade runs what agents write. The Python client, and the version of the whole product.

    from stockade import Client
    with Client() as client:  # the server and key of `stockade up`, or STOCKADE_URL and STOCKADE_API_KEY
        run = client.submit({"stockade": "1", "name": "hello", "steps": [{"id": "a", "set": 1}]})

Importing this package costs nothing: the client is loaded when it is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stockade.client import AsyncClient, Client, StockadeError

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "StockadeError", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "Client", "StockadeError"):
        from stockade import client

        return getattr(client, name)
    raise AttributeError(name)
