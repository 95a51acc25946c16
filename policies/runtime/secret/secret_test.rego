package runtime.secret_test

import data.runtime.secret
import rego.v1

codes(input_) := {reason.code | some reason in secret.decision.reasons with input as input_}

base := {"tenant": "default", "subject": {"id": "p", "kind": "person", "scopes": []}, "now_ns": 1, "run": "r", "workflow": {"name": "w", "version": "1", "digest": "d"}, "step": "s"}

to := {"scheme": "https", "host": "api.example.com", "port": 443, "method": "GET", "path": "/"}

good := object.union(base, {"secret": "key", "tool": "weather.now", "destination": to, "step_secrets": ["key"]})

# The shipped data binds nothing; these tests bind one.
bindings := {"key": {"weather.now": ["api.example.com"]}}

test_unbound_is_denied_with_what_to_add if {
	answer := secret.decision with input as good
	some reason in answer.reasons
	reason.code == "secret_not_bound"
	contains(reason.remedy, "api.example.com")
}

test_bound_and_named_is_allowed if {
	secret.decision.allow with input as good with data.tenants.default.secrets as bindings
}

test_bound_to_another_tool_is_denied if {
	asked := object.union(good, {"tool": "mail.send"})
	not secret.decision.allow with input as asked with data.tenants.default.secrets as bindings
}

test_bound_to_another_host_is_denied if {
	asked := object.union(good, {"destination": object.union(to, {"host": "evil.example.com"})})
	not secret.decision.allow with input as asked with data.tenants.default.secrets as bindings
}

test_not_named_by_the_step_is_denied if {
	asked := object.union(good, {"step_secrets": []})
	answer := secret.decision with input as asked with data.tenants.default.secrets as bindings
	{reason.code | some reason in answer.reasons} == {"secret_not_named"}
}

test_in_clear_is_denied if {
	asked := object.union(good, {"destination": object.union(to, {"scheme": "http"})})
	answer := secret.decision with input as asked with data.tenants.default.secrets as bindings
	{reason.code | some reason in answer.reasons} == {"secret_in_clear"}
}

test_in_clear_to_this_machine_is_allowed if {
	asked := object.union(good, {"destination": object.union(to, {"scheme": "http", "host": "127.0.0.1"})})
	secret.decision.allow with input as asked with data.tenants.default.secrets as {"key": {"weather.now": ["127.0.0.1"]}}
}

test_reasons_have_codes if codes(good) == {"secret_not_bound"}

test_nothing_given_is_denied if {
	not secret.decision.allow with input as {}
}

test_unknown_tenant_is_denied if {
	not secret.decision.allow with input as object.union(good, {"tenant": "stranger"})
}

test_a_tenant_rule_narrows if {
	denial := {"code": "mine", "message": "no", "remedy": "ask"}
	secret.decision.allow with input as good with data.tenants.default.secrets as bindings
	answer := secret.decision with input as good with data.tenants.default.secrets as bindings with data.tenant.secret.deny as {denial}
	not answer.allow
	denial in answer.reasons
}

test_bound_to_every_tool_of_a_server if {
	patterns := {"key": {"weather.*": ["api.example.com"]}}
	secret.decision.allow with input as good with data.tenants.default.secrets as patterns
	asked := object.union(good, {"tool": "mail.send"})
	not secret.decision.allow with input as asked with data.tenants.default.secrets as patterns
	elsewhere := object.union(good, {"destination": object.union(to, {"host": "evil.example.com"})})
	not secret.decision.allow with input as elsewhere with data.tenants.default.secrets as patterns
}
