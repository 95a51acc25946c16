"""Many byte streams over one WebSocket that a node dialled: how a node behind any NAT or firewall is reached.

frames.py      what a message is
transport.py   one stream, as an asyncio transport: any HTTP client or server of asyncio can sit on it
mux.py         all streams of one connection: fair, with credit for each, bounded
"""
