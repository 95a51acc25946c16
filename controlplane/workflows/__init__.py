"""The workflow format: what users write, checked completely before anything runs. Values in, values out.

    bytes --documents--> JSON --spec--> models --graph--> CompiledWorkflow (templates over a Scope)

Every refusal is a ``Problem`` with a JSON pointer, a cause and a hint; see ``docs/workflow.md``.
"""
