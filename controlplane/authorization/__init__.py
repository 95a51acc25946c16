"""Asks policy before anything happens, obeys, and can explain the answer.

values.py        question, decision, reason, obligation; the failure ``PolicyUnavailable``
engine.py        the port: questions in, decisions out
enforcement.py   the enforcement point: total and default-deny, whatever the engine answers
schemas.py       what a question may contain, checked before an engine sees it
answers.py       an engine's raw answer made a decision, or a denial that says what is wrong with it
masking.py       what of a question may be stored
bundle.py        policy files and data, their revision, and where each reason code is written
profile.py       the portable part of Rego, checked when a bundle is loaded
tenant_data.py   data.json read strictly and held against its schema
references.py    what rules and tests say of their question, held against its schema
reasons.py       what rules put into deny, where their text shows it
places.py, scope.py, shapes.py  paths in rules, what their names stand for, what schemas allow there: for these three
syntax.py        walks regorus' syntax tree, for all of these
embedded.py      the engine for one machine: regorus in worker processes
opa/             the engine for production: an OPA server
batch.py         the questions of one call on their way
worker_process.py, worker.py   these processes, seen from outside and from inside
channel.py       frames over the sockets between them
quarantine.py    which questions have cost a worker, so that they run alone the next time
rule_tests.py    runs a bundle's ``test_`` rules with coverage
explanation.py   a decision as text for people
testing.py       StaticEngine, the double that passes the same conformance suite
"""
