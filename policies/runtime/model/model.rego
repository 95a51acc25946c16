# METADATA
# title: May these models be called with this prompt?
# entrypoint: true
package runtime.model

import data.lib.grants
import rego.v1

default decision := {"allow": false, "reasons": [], "obligations": []}

# What allows is stated once, positively; `refusals` is evaluated only to explain a denial.
# Every model of the list may end up answering, so each must be granted.
decision := {"allow": true, "reasons": [], "obligations": [one | some one in obligations]} if {
	count(input.models) > 0
	every model in input.models {
		granted(model)
		reachable(model)
		private(model)
		may_learn(model)
	}
	count(data.tenant.model.deny) == 0
} else := {"allow": false, "reasons": [reason | some reason in refusals], "obligations": []}

refusals contains reason if some reason in data.tenant.model.deny

# tenants.T.models: {name or pattern: true}
granted(model) if {
	t := data.tenants[input.tenant]
	grants.names(t.models, model.name)
}

# What runs elsewhere is reached like any other host: tenants.T.egress: {host: true | [ports]}
reachable(model) if {
	model.destination == null
} else if {
	t := data.tenants[input.tenant]
	grants.reaches(t.egress, model.destination.host, model.destination.port)
}

private(model) if {
	model.destination == null
} else if {
	model.destination.scheme == "https"
} else if {
	model.destination.host in grants.loopback
}

# A prompt that only some may learn is sent to a server elsewhere only if that is one of them.
may_learn(model) if {
	model.destination == null
} else if {
	not input.labels.readers
} else if {
	grants.lists(input.labels.readers, model.destination.host)
}

# tenants.T.caps.max_tokens
obligations contains {"kind": "max_tokens", "limit": limit} if {
	t := data.tenants[input.tenant]
	limit := t.caps.max_tokens
}

# tenants.T.downgrade: {model: the model that is called instead}
obligations contains {"kind": "downgrade", "model": instead} if {
	t := data.tenants[input.tenant]
	instead := t.downgrade[input.models[0].name]
}

refusals contains {
	"code": "no_model",
	"message": "The call names no model.",
	"remedy": "Name one that GET /v1/models lists.",
} if {
	not input.models[0]
}

refusals contains {
	"code": "model_not_allowed",
	"message": sprintf("Tenant %q may not call the model %q.", [input.tenant, model.name]),
	"remedy": sprintf("Add \"models\": {%q: true} to tenants.%s in data.json.", [model.name, input.tenant]),
} if {
	some model in input.models
	not granted(model)
}

refusals contains {
	"code": "model_host_not_listed",
	"message": sprintf("The model %q runs at %s:%d, which tenant %q may not reach.", [model.name, model.destination.host, model.destination.port, input.tenant]),
	"remedy": sprintf(
		"Add to data.json in a directory given with --policy: {\"tenants\": {%q: {\"egress\": {%q: [%d]}}}}",
		[input.tenant, model.destination.host, model.destination.port],
	),
} if {
	some model in input.models
	not reachable(model)
}

refusals contains {
	"code": "model_in_clear",
	"message": sprintf("A prompt may not travel to the model %q unencrypted.", [model.name]),
	"remedy": "Give the deployment an https URL.",
} if {
	some model in input.models
	not private(model)
}

refusals contains {
	"code": "prompt_not_for_model",
	"message": sprintf("The prompt holds what the host of the model %q may not learn.", [model.name]),
	"remedy": "Call a model that runs on a node, or have the host added to the readers of what the prompt was made from.",
} if {
	some model in input.models
	not may_learn(model)
}
