package runtime.tool_test

import data.runtime.tool
import rego.v1

codes(input_) := {reason.code | some reason in tool.decision.reasons with input as input_}

base := {"tenant": "default", "subject": {"id": "p", "kind": "person", "scopes": []}, "now_ns": 1, "run": "r", "workflow": {"name": "w", "version": "1", "digest": "d"}, "step": "s"}

noop := {"name": "builtin.noop", "server": "builtin", "kind": "builtin", "digest": "d", "effect": "none"}

mail := {
	"name": "mail.send", "server": "mail", "kind": "http", "digest": "d", "effect": "write",
	"critical_args": ["to"],
}

good := object.union(
	base,
	{"tool": noop, "args": {}, "granted": [], "via": "step", "sandbox": null, "secrets": []},
)

test_a_step_calls_its_tool if tool.decision.allow with input as good

test_a_guest_needs_a_grant if {
	codes(object.union(good, {"via": "guest"})) == {"tool_not_granted"}
}

test_a_guest_with_a_grant_by_name if {
	tool.decision.allow with input as object.union(good, {"via": "guest", "granted": ["builtin.noop"]})
}

test_a_guest_with_a_grant_by_pattern if {
	tool.decision.allow with input as object.union(good, {"via": "guest", "granted": ["builtin.*"]})
}

test_a_guest_with_every_grant if {
	tool.decision.allow with input as object.union(good, {"via": "guest", "granted": ["*"]})
}

test_another_grant_does_not_help if {
	codes(object.union(good, {"via": "guest", "granted": ["mail.*", "builtin.artifact.read"]})) == {"tool_not_granted"}
}

test_an_unknown_builtin_is_denied if {
	codes(object.union(good, {"tool": object.union(noop, {"name": "builtin.shell"})})) == {"tool_not_allowed"}
}

test_a_registered_tool_is_called if {
	tool.decision.allow with input as object.union(good, {"tool": mail, "args": {"to": {"value": "a@b"}}})
}

test_a_tenant_may_list_its_tools if {
	asked := object.union(good, {"tool": mail})
	not tool.decision.allow with input as asked with data.tenants.default.tools as {"weather.*": true}
	tool.decision.allow with input as asked with data.tenants.default.tools as {"mail.*": true}
}

test_an_http_tool_is_no_builtin_by_name if {
	asked := object.union(good, {"tool": object.union(noop, {"kind": "http"})})
	not tool.decision.allow with input as asked with data.tenants.default.tools as {}
}

test_an_mcp_tool_needs_a_grant_of_the_tenant if {
	asked := object.union(good, {"tool": object.union(mail, {"kind": "mcp"})})
	tool.decision.allow with input as asked with data.tenants.default.tools as {"mail.*": true}
	not tool.decision.allow with input as asked with data.tenants.default.tools as {"time.*": true}
}

test_untrusted_recipient_is_denied if {
	asked := {"tool": mail, "args": {"to": {"value": "a@b", "labels": {"integrity": "untrusted"}}}}
	codes(object.union(good, asked)) == {"untrusted_critical_argument"}
}

test_untrusted_body_is_fine if {
	asked := {"tool": mail, "args": {"body": {"value": "x", "labels": {"integrity": "untrusted"}}}}
	tool.decision.allow with input as object.union(good, asked)
}

test_untrusted_argument_without_effect_is_fine if {
	reading := object.union(mail, {"effect": "read"})
	asked := {"tool": reading, "args": {"to": {"value": "a@b", "labels": {"integrity": "untrusted"}}}}
	tool.decision.allow with input as object.union(good, asked)
}

test_nothing_given_is_denied if {
	not tool.decision.allow with input as {}
}

test_unknown_tenant_is_denied if {
	not tool.decision.allow with input as object.union(good, {"tenant": "stranger"})
}

test_a_tenant_rule_narrows if {
	denial := {"code": "mine", "message": "no", "remedy": "ask"}
	tool.decision.allow with input as good
	answer := tool.decision with input as good with data.tenant.tool.deny as {denial}
	not answer.allow
	denial in answer.reasons
}
