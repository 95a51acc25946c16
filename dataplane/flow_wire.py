"""The part of the node wire that is about connections of code: ``POST /node/v1/flows  [FlowRecord] -> [Ack]``."""

from __future__ import annotations

from dataplane.protocol import Wire


class FlowRecord(Wire):
    """One connection that code made or tried: ``number`` counts those of the attempt from 1, in no order.

    ``ended`` is empty where the two sides ended it, else the forwarder's code for why it did. ``host`` is the guest's
    word, empty if it named none; ``address`` what was connected to.
    """

    attempt: str
    fence: int
    number: int
    host: str = ""
    port: int = 0
    method: str = ""
    address: str = ""
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0
    ended: str = ""
    decision: str = ""
