"""The gateway: OpenAI-compatible, policy in front, and the same for the verbs of workflows.

endpoints.py     the routes under /openai/v1 and /v1
requests.py      bodies read and held against what can be passed on
authority.py     who calls, which models, what policy says: the port, and its adapter in this process
questions.py     runtime.model, and what its obligations make of a call
performing.py    routes, fails over before the first token, passes answers on
routing.py       least outstanding, the prefix's holder first; admission
prefixes.py      who was sent which beginnings of prompts
upstream.py      the port to model servers, and its adapter over HTTP
masking.py       the key of an external server, taken out of what it sends back
reading.py       answers of servers, which are hostile: bounded, and rebuilt from what is known
gathering.py     a stream made into one answer
metering.py      tokens by principal, run and model
models.py        the port ``Models``, for the control plane itself
refusals.py      every "no", in OpenAI's form
assembly.py      the whole, put together within the control plane

As a process of its own:
role.py               the process
remote.py             its port to the control plane, for what ``authority.py`` does in one process; its dialer
wire.py               what the two say to each other
internal_endpoints.py the control plane's side of that
"""
