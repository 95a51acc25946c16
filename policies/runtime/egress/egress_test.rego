package runtime.egress_test

import data.runtime.egress
import rego.v1

codes(input_) := {reason.code | some reason in egress.decision.reasons with input as input_}

base := {"tenant": "default", "subject": {"id": "p", "kind": "person", "scopes": []}, "now_ns": 1, "run": "r", "workflow": {"name": "w", "version": "1", "digest": "d"}, "step": "s"}

to := {"scheme": "https", "host": "api.example.com", "port": 443, "method": "GET", "path": "/"}

good := object.union(base, {"destination": to, "tool": "weather.now", "declared_hosts": ["api.example.com"]})

listing := {"api.example.com": [443]}

test_unlisted_is_denied_with_what_to_add if {
	answer := egress.decision with input as good
	some reason in answer.reasons
	reason.code == "egress_not_listed"
	contains(reason.remedy, "api.example.com")
}

test_listed_and_declared_is_allowed if {
	egress.decision.allow with input as good with data.tenants.default.egress as listing
}

by_code := object.union(good, {"tool": null, "destination": {"scheme": "any", "host": "api.example.com", "port": 443, "method": "*", "path": "*"}})

test_code_reaches_what_its_own_list_names if {
	egress.decision.allow with input as by_code with data.tenants.default.network as listing
}

test_code_does_not_reach_what_tools_may if {
	answer := egress.decision with input as by_code with data.tenants.default.egress as {"api.example.com": true}
	some reason in answer.reasons
	reason.code == "egress_not_listed"
	contains(reason.remedy, "\"network\"")
}

test_a_tool_does_not_reach_what_code_may if {
	not egress.decision.allow with input as good with data.tenants.default.network as {"api.example.com": true}
}

test_code_reaches_no_metadata_service if {
	asked := object.union(by_code, {"destination": object.union(to, {"host": "169.254.169.254"})})
	not egress.decision.allow with input as asked with data.tenants.default.network as {"169.254.169.254": true}
}

test_every_port_is_allowed_by_true if {
	asked := object.union(good, {"destination": object.union(to, {"port": 8443})})
	egress.decision.allow with input as asked with data.tenants.default.egress as {"api.example.com": true}
}

test_another_port_is_denied if {
	asked := object.union(good, {"destination": object.union(to, {"port": 8443})})
	not egress.decision.allow with input as asked with data.tenants.default.egress as listing
}

test_a_pattern_is_one_label_deep if {
	table := {"*.example.com": [443]}
	egress.decision.allow with input as good with data.tenants.default.egress as table
	deep := object.union(good, {
		"destination": object.union(to, {"host": "a.b.example.com"}),
		"declared_hosts": ["a.b.example.com"],
	})
	not egress.decision.allow with input as deep with data.tenants.default.egress as table
}

test_undeclared_is_denied if {
	asked := object.union(good, {"declared_hosts": ["other.example.com"]})
	answer := egress.decision with input as asked with data.tenants.default.egress as listing
	{reason.code | some reason in answer.reasons} == {"host_not_declared"}
}

test_metadata_service_is_denied_even_if_listed if {
	asked := object.union(good, {
		"destination": object.union(to, {"host": "169.254.169.254"}),
		"declared_hosts": ["169.254.169.254"],
	})
	answer := egress.decision with input as asked with data.tenants.default.egress as {"169.254.169.254": true}
	{reason.code | some reason in answer.reasons} == {"egress_metadata_service"}
}

test_reasons_have_codes if codes(good) == {"egress_not_listed"}

test_nothing_given_is_denied if {
	not egress.decision.allow with input as {}
}

test_unknown_tenant_is_denied if {
	not egress.decision.allow with input as object.union(good, {"tenant": "stranger"})
}

test_a_tenant_rule_narrows if {
	denial := {"code": "mine", "message": "no", "remedy": "ask"}
	egress.decision.allow with input as good with data.tenants.default.egress as listing
	answer := egress.decision with input as good with data.tenants.default.egress as listing with data.tenant.egress.deny as {denial}
	not answer.allow
	denial in answer.reasons
}
