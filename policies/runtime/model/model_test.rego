package runtime.model_test

import data.runtime.model
import rego.v1

codes(input_) := {reason.code | some reason in model.decision.reasons with input as input_}

base := {"tenant": "default", "subject": {"id": "p", "kind": "person", "scopes": []}, "now_ns": 1, "run": null, "workflow": null, "step": null}

here := {"name": "small", "kind": "llamacpp", "destination": null}

there := {"name": "big", "kind": "external", "destination": {"scheme": "https", "host": "api.example.com", "port": 443}}

good := object.union(base, {"models": [here], "operation": "chat", "labels": {}, "tools": [], "max_tokens": null, "via": "api"})

outside := object.union(good, {"models": [there]})

listing := {"api.example.com": [443]}

test_a_model_on_a_node_is_called if model.decision.allow with input as good

test_a_model_elsewhere_needs_its_host_listed if {
	codes(outside) == {"model_host_not_listed"}
	model.decision.allow with input as outside with data.tenants.default.egress as listing
}

test_the_remedy_names_host_and_port if {
	answer := model.decision with input as outside
	some reason in answer.reasons
	contains(reason.remedy, "{\"api.example.com\": [443]}")
}

test_a_tenant_may_list_its_models if {
	not model.decision.allow with input as good with data.tenants.default.models as {"other*": true}
	model.decision.allow with input as good with data.tenants.default.models as {"small": true}
	answer := model.decision with input as good with data.tenants.default.models as {}
	{reason.code | some reason in answer.reasons} == {"model_not_allowed"}
}

test_every_model_of_the_list_must_be_granted if {
	asked := object.union(good, {"models": [here, there]})
	codes(asked) == {"model_host_not_listed"}
	model.decision.allow with input as asked with data.tenants.default.egress as listing
	not model.decision.allow with input as asked with data.tenants.default.egress as listing with data.tenants.default.models as {"small": true}
}

test_no_model_is_denied if codes(object.union(good, {"models": []})) == {"no_model"}

test_nothing_travels_in_clear if {
	open := object.union(there, {"destination": {"scheme": "http", "host": "api.example.com", "port": 443}})
	answer := model.decision with input as object.union(good, {"models": [open]}) with data.tenants.default.egress as listing
	{reason.code | some reason in answer.reasons} == {"model_in_clear"}
}

test_loopback_needs_no_encryption if {
	local := object.union(there, {"destination": {"scheme": "http", "host": "127.0.0.1", "port": 8080}})
	model.decision.allow with input as object.union(good, {"models": [local]}) with data.tenants.default.egress as {"127.0.0.1": [8080]}
}

test_a_restricted_prompt_stays_here if {
	restricted := {"labels": {"integrity": "user", "readers": ["ward-3"]}}
	answer := model.decision with input as object.union(outside, restricted) with data.tenants.default.egress as listing
	{reason.code | some reason in answer.reasons} == {"prompt_not_for_model"}
	model.decision.allow with input as object.union(good, restricted)
}

test_a_reader_may_learn_it if {
	restricted := {"labels": {"integrity": "user", "readers": ["api.example.com"]}}
	model.decision.allow with input as object.union(outside, restricted) with data.tenants.default.egress as listing
}

test_a_cap_on_tokens_is_an_obligation if {
	answer := model.decision with input as good with data.tenants.default.caps.max_tokens as 100
	answer.allow
	answer.obligations == [{"kind": "max_tokens", "limit": 100}]
}

test_a_downgrade_is_an_obligation if {
	answer := model.decision with input as good with data.tenants.default.downgrade as {"small": "tiny"}
	answer.allow
	answer.obligations == [{"kind": "downgrade", "model": "tiny"}]
}

test_nothing_given_is_denied if {
	not model.decision.allow with input as {}
}

test_unknown_tenant_is_denied if {
	not model.decision.allow with input as object.union(good, {"tenant": "stranger"})
}

test_a_tenant_rule_narrows if {
	denial := {"code": "mine", "message": "no", "remedy": "ask"}
	model.decision.allow with input as good
	answer := model.decision with input as good with data.tenant.model.deny as {denial}
	not answer.allow
	denial in answer.reasons
}
