"""The ``stockade`` command: ``stockade <noun> <verb> [NAME] [flags]``, and shortcuts without a noun.

main.py        the entry point; answers --version before anything heavy is imported
app.py         the tree of commands; each command's module is imported when it runs
exits.py       exit codes, and an error as four lines: what, where, why, fix
contexts.py    which server and key: flag > environment > context file > default (stockade/contexts.py)
output.py      -o table|wide|json|jsonl|yaml|name
inputs.py      --input, workflow files, @last and unique prefixes
runs.py        run, ps, cancel, approve, reject
validating.py  run validate
logs.py        what steps wrote, also while they write
explaining.py  why: decisions, and a run's steps with placement, approvals and attempts
tree.py        the live tree of a run
watching.py    follows a run and keeps the tree current
resources.py   nodes, secrets, tools, workflows, artifacts, decisions
policies.py    policy test and check
up.py          one machine: what to start, checked
supervisor.py  what `up` becomes: keeps control plane and node alive
node.py        a node daemon in this process
doctor.py      what this host can do, with a FIX line for what it cannot
"""
