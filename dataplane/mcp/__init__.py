"""Tools of MCP servers, called for the control plane. Everything a server says is hostile input.

calls.py         one authorized call or listing -> its outcome; loads the rest when first asked
processes.py     stdio servers: at most one process for each, started on demand, ended when idle
process.py       one of them: its sandbox, its streams, its end
remote.py        Streamable HTTP servers, through the node's egress rules
guard.py         what a server may say: sizes, storms, requests of its own
conversation.py  the MCP client over guarded streams: list, compare with what was reviewed, call
results.py       what a call came to, as JSON; pictures and other bytes as artifacts
failures.py      why a call failed, in words and as a stable reason
"""
