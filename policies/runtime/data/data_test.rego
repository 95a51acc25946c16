package runtime.data_test

import data.runtime.data as reading
import rego.v1

codes(input_) := {reason.code | some reason in reading.decision.reasons with input as input_}

base := {"tenant": "default", "subject": {"id": "p", "kind": "person", "scopes": []}, "now_ns": 1, "run": "r", "workflow": {"name": "w", "version": "1", "digest": "d"}, "step": "s"}

good := object.union(base, {"uri": "data://logs/app.log", "data_name": "logs", "purpose": "mount"})

test_exported_data_is_read if reading.decision.allow with input as good

test_dots_inside_a_name_are_fine if {
	reading.decision.allow with input as object.union(good, {"uri": "data://logs/app..log"})
}

test_climbing_is_denied if {
	codes(object.union(good, {"uri": "data://logs/../etc/passwd"})) == {"data_path_climbs"}
}

test_unlisted_data_is_denied if {
	answer := reading.decision with input as good with data.tenants.default.data as {"traces": true}
	{reason.code | some reason in answer.reasons} == {"data_not_allowed"}
}

test_false_grants_nothing if {
	not reading.decision.allow with input as good with data.tenants.default.data as {"logs": false}
}

test_nothing_given_is_denied if {
	not reading.decision.allow with input as {}
}

test_unknown_tenant_is_denied if {
	not reading.decision.allow with input as object.union(good, {"tenant": "stranger"})
}

test_a_tenant_rule_narrows if {
	denial := {"code": "mine", "message": "no", "remedy": "ask"}
	reading.decision.allow with input as good
	answer := reading.decision with input as good with data.tenant.data.deny as {denial}
	not answer.allow
	denial in answer.reasons
}
