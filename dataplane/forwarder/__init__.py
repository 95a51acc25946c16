"""The node's egress forwarder: the only way out of a sandbox, to the hosts its step was granted.

guest ── HTTP to 127.0.0.1:3128 ──► forwarder ── resolve, judge, connect ──► granted host

request.py       the guest's request, read strictly          refusals.py   every "no": code, reason, fix
client_hello.py  the name inside a TLS handshake             flow_log.py   one record a flow, on its way out
forwarder.py     one attempt's flows, from request to record
"""
