"""Open Policy Agent behind the port ``PolicyEngine``: a server of its own that fetches its bundle from us.

    decide ──query_rule──▶ OPA          one request a question, one answer or none within the deadline
    OPA ──GET bundle, token──▶ control plane          again and again; a new revision replaces the old

engine.py     the engine: deadlines, what is unavailable and what is a wrong answer
address.py    where it listens, and the token
transport.py  opa-python-client without what is dangerous in it
archive.py    a bundle in OPA's own format
endpoints.py  where OPA gets it
server/       OPA's configuration, and who may ask it what; used by `stockade up` and by services alike
"""
