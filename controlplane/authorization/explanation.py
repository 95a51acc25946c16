"""A recorded decision as lines for a person: what was asked, the answer, why, by which rule, what to do.

Takes the decision's JSON, because that is what the log and the API hold. Text in it may come from guests, so control
characters are shown, never sent to a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SAYS = {
    "": "",
    "policy_unavailable": " — the policy engine did not answer; nothing was executed and the step asks again",
    "malformed_answer": " — the policy's answer was not a decision",
    "unknown_obligation": " — the policy asked for something this version cannot do",
    "invalid_input": " — the question did not fit its schema",
}
_SUBJECTS = {
    "runtime.workflow": "admit the workflow {workflow}",
    "runtime.data": "read {uri} ({purpose})",
    "runtime.tool": "call {tool} with {args} (asked by {via})",
    "runtime.secret": "send the secret {secret} with {tool} to {destination}",
    "runtime.egress": "let {tool} reach {destination}",
    "runtime.model": "call the model {models}",
}


def explain(decision: Mapping[str, Any]) -> list[str]:
    """The lines ``stockade explain DECISION`` prints, without colours."""
    answer = "ALLOWED" if decision["allow"] is True else "DENIED"
    lines = [
        f"{decision['id']}  {answer}{_SAYS.get(decision.get('failure', ''), '')}",
        f"  asked     {decision['entry']}: may it {_asked(decision)}?",
        f"  for       {_who(decision['input'])}",
    ]
    for reason in decision["reasons"]:
        lines.append(f"  because   {reason['code']}: {reason['message']}")
        if reason["rule"]:
            lines.append(f"  rule      {reason['rule']}")
        if reason["remedy"]:
            lines.append(f"  remedy    {reason['remedy']}")
    if decision["allow"] is True and not decision["reasons"]:
        lines.append(f"  because   every condition of {decision['entry']} holds and no tenant rule denies")
    for obligation in decision["obligations"]:
        args = ", ".join(f"{key}={value!r}" for key, value in obligation["args"].items())
        lines.append(f"  provided  {obligation['kind']}({args})")
    lines.append(f"  policy    revision {decision['revision']}, engine {decision['engine']}")
    lines.append(f"  input     {decision['input_digest'] or 'not JSON'}")
    return [_visible(line) for line in lines]


def _asked(decision: Mapping[str, Any]) -> str:
    given = decision["input"]
    to = given.get("destination") or {}
    tool = given.get("tool", "?")
    workflow = given.get("workflow") or {}
    names: dict[str, Any] = {
        "workflow": f"{workflow.get('name', '?')}@{workflow.get('version', '?')}",
        "uri": given.get("uri", "?"),
        "purpose": given.get("purpose", "?"),
        "tool": tool.get("name", "?") if isinstance(tool, Mapping) else tool or "the step's code",
        "args": ", ".join(given.get("args") or {}) or "no arguments",
        "via": {"step": "the workflow's own step", "agent": "an agent's model", "guest": "code in a sandbox"}.get(
            given.get("via", ""), "?"
        ),
        "secret": given.get("secret", "?"),
        "models": ", else ".join(str(one.get("name", "?")) for one in given.get("models") or ()) or "?",
        "destination": f"{to.get('method', '?')} {to.get('scheme', '?')}://{to.get('host', '?')}:{to.get('port', '?')}"
        f"{to.get('path', '')}",
    }
    return _SUBJECTS.get(decision["entry"], "do this").format(**names)


def _who(given: Mapping[str, Any]) -> str:
    subject = given.get("subject") or {}
    where = f", run {given['run']}" if given.get("run") else ""
    step = f", step {given['step']}" if given.get("step") else ""
    return f"{subject.get('kind', '?')} {subject.get('id', '?')} of tenant {given.get('tenant', '?')}{where}{step}"


def _visible(text: str) -> str:
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
