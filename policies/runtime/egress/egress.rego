# METADATA
# title: May this request leave?
# entrypoint: true
package runtime.egress

import data.lib.grants
import rego.v1

default decision := {"allow": false, "reasons": [], "obligations": []}

# What allows is stated once, positively; `refusals` is evaluated only to explain a denial.
decision := {"allow": true, "reasons": [], "obligations": []} if {
	declared
	listed
	not metadata_service
	count(data.tenant.egress.deny) == 0
} else := {"allow": false, "reasons": [reason | some reason in refusals], "obligations": []}

refusals contains reason if some reason in data.tenant.egress.deny

declared if grants.lists(input.declared_hosts, input.destination.host)

# tenants.T.egress: {host: true | [ports]}, for tools
listed if {
	is_string(input.tool)
	t := data.tenants[input.tenant]
	grants.reaches(t.egress, input.destination.host, input.destination.port)
}

# tenants.T.network: the same for code in a sandbox, which no tool holds to what was reviewed
listed if {
	is_null(input.tool)
	t := data.tenants[input.tenant]
	grants.reaches(t.network, input.destination.host, input.destination.port)
}

who := input.tool if is_string(input.tool)

who := "The step" if is_null(input.tool)

table := "egress" if is_string(input.tool)

table := "network" if is_null(input.tool)

refusals contains {
	"code": "host_not_declared",
	"message": sprintf("%s does not declare the host %s.", [who, input.destination.host]),
	"remedy": "Declare the host with the tool, or call the tool that declares it.",
} if {
	not declared
}

refusals contains {
	"code": "egress_not_listed",
	"message": sprintf("Tenant %q may not reach %s:%d.", [input.tenant, input.destination.host, input.destination.port]),
	"remedy": sprintf(
		"Add to data.json in a directory given with --policy: {\"tenants\": {%q: {%q: {%q: [%d]}}}}",
		[input.tenant, table, input.destination.host, input.destination.port],
	),
} if {
	not listed
}

# Clouds hand credentials to whoever asks there; no listing opens it.
metadata_service if startswith(input.destination.host, "169.254.")

refusals contains {
	"code": "egress_metadata_service",
	"message": "Link-local addresses (cloud metadata) are never reached.",
	"remedy": "Store what you need as a secret.",
} if {
	metadata_service
}
