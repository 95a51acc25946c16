# METADATA
# title: May this workflow be admitted?
# entrypoint: true
package runtime.workflow

import data.lib.grants
import rego.v1

default decision := {"allow": false, "reasons": [], "obligations": []}

# What allows is stated once, positively; `refusals` is evaluated only to explain a denial.
decision := {"allow": true, "reasons": [], "obligations": []} if {
	t := data.tenants[input.tenant]
	d := input.definition
	every verb in d.verbs { t.verbs[verb] }
	every tier in d.tiers { t.tiers[tier] }
	every tool in d.tools { grants.names(t.tools, tool) }
	every uri in d.data { root_granted(t, uri) }
	d.steps <= t.caps.steps
	every resource, asked in d.resources { asked <= t.caps[resource] }
	count(data.tenant.workflow.deny) == 0
} else := {"allow": false, "reasons": [reason | some reason in refusals], "obligations": []}

refusals contains reason if some reason in data.tenant.workflow.deny

# data://NAME/REL; anything else has no root, so nothing grants it.
root_of(uri) := split(uri, "/")[2] if startswith(uri, "data://")

refusals contains {
	"code": "tenant_unknown",
	"message": sprintf("Tenant %q has no policy data.", [input.tenant]),
	"remedy": sprintf("Add {\"tenants\": {%q: {…}}} to data.json in a directory given with --policy.", [input.tenant]),
} if {
	not data.tenants[input.tenant]
}

refusals contains {
	"code": "verb_not_allowed",
	"message": sprintf("Verb %q is not allowed here.", [verb]),
	"remedy": sprintf("Use another verb, or set tenants.%s.verbs.%s to true in data.json.", [input.tenant, verb]),
} if {
	t := data.tenants[input.tenant]
	some verb in input.definition.verbs
	not t.verbs[verb]
}

refusals contains {
	"code": "tier_not_allowed",
	"message": sprintf("Sandbox tier %q is not allowed here.", [tier]),
	"remedy": sprintf("Use tier auto, or set tenants.%s.tiers.%s to true in data.json.", [input.tenant, tier]),
} if {
	t := data.tenants[input.tenant]
	some tier in input.definition.tiers
	not t.tiers[tier]
}

refusals contains {
	"code": "workflow_tool_not_allowed",
	"message": sprintf("Tool %q is not allowed here.", [tool]),
	"remedy": sprintf("Drop it, or add \"tools\": {%q: true} to tenants.%s in data.json.", [tool, input.tenant]),
} if {
	t := data.tenants[input.tenant]
	some tool in input.definition.tools
	not grants.names(t.tools, tool)
}

refusals contains {
	"code": "workflow_data_not_allowed",
	"message": sprintf("The data of %q may not be read here.", [uri]),
	"remedy": sprintf("Use other data, or add its name to tenants.%s.data in data.json.", [input.tenant]),
} if {
	t := data.tenants[input.tenant]
	some uri in input.definition.data
	not root_granted(t, uri)
}

root_granted(t, uri) if grants.names(t.data, root_of(uri))

refusals contains {
	"code": "too_many_steps",
	"message": sprintf("%d steps; at most %d are allowed.", [input.definition.steps, t.caps.steps]),
	"remedy": sprintf("Use a map over the items, split it, or raise tenants.%s.caps.steps.", [input.tenant]),
} if {
	t := data.tenants[input.tenant]
	not input.definition.steps <= t.caps.steps
}

refusals contains {
	"code": "resources_over_cap",
	"message": sprintf("A step asks for %v %s; the cap is %v.", [asked, resource, object.get(t.caps, resource, 0)]),
	"remedy": sprintf("Ask for less, or raise tenants.%s.caps.%s in data.json.", [input.tenant, resource]),
} if {
	t := data.tenants[input.tenant]
	some resource, asked in input.definition.resources
	not asked <= object.get(t.caps, resource, 0)
}
