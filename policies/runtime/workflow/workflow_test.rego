package runtime.workflow_test

import data.runtime.workflow
import rego.v1

codes(input_) := {reason.code | some reason in workflow.decision.reasons with input as input_}

base := {"tenant": "default", "subject": {"id": "p", "kind": "person", "scopes": []}, "now_ns": 1, "run": "r", "workflow": {"name": "w", "version": "1", "digest": "d"}, "step": "s"}

definition := {
	"verbs": ["code", "tool", "map"], "tools": ["builtin.*", "weather.now"], "secrets": ["key"], "tiers": ["wasm"],
	"data": ["data://logs/a.log"], "steps": 3, "resources": {"cpu": 1, "memory_bytes": 1024},
}

good := object.union(base, {"definition": definition})

changed(part) := object.union(base, {"definition": object.union(definition, part)})

test_an_ordinary_workflow_is_admitted if workflow.decision.allow with input as good

test_an_unknown_verb_is_denied if codes(changed({"verbs": ["flow"]})) == {"verb_not_allowed"}

test_an_unknown_tier_is_denied if codes(changed({"tiers": ["vm"]})) == {"tier_not_allowed"}

test_too_many_steps_are_denied if codes(changed({"steps": 10001})) == {"too_many_steps"}

test_too_much_memory_is_denied if {
	codes(changed({"resources": {"memory_bytes": 1000000000000000}})) == {"resources_over_cap"}
}

test_a_resource_without_cap_is_denied if codes(changed({"resources": {"tape": 1}})) == {"resources_over_cap"}

test_data_that_is_no_data_uri_is_denied if {
	answer := workflow.decision with input as changed({"data": ["file:///etc/passwd"]})
		with data.tenants.default.data as {"logs": true}
	{reason.code | some reason in answer.reasons} == {"workflow_data_not_allowed"}
}

test_unlisted_tool_is_denied if {
	answer := workflow.decision with input as good with data.tenants.default.tools as {"builtin.*": true}
	{reason.code | some reason in answer.reasons} == {"workflow_tool_not_allowed"}
}

test_unknown_tenant_says_so if codes(object.union(good, {"tenant": "stranger"})) == {"tenant_unknown"}

test_nothing_given_is_denied if {
	not workflow.decision.allow with input as {}
}

test_unknown_tenant_is_denied if {
	not workflow.decision.allow with input as object.union(good, {"tenant": "stranger"})
}

test_a_tenant_rule_narrows if {
	denial := {"code": "mine", "message": "no", "remedy": "ask"}
	workflow.decision.allow with input as good
	answer := workflow.decision with input as good with data.tenant.workflow.deny as {denial}
	not answer.allow
	denial in answer.reasons
}
