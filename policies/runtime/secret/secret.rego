# METADATA
# title: May this secret be bound to this request?
# entrypoint: true
package runtime.secret

import data.lib.grants
import rego.v1

default decision := {"allow": false, "reasons": [], "obligations": []}

# What allows is stated once, positively; `refusals` is evaluated only to explain a denial.
decision := {"allow": true, "reasons": [], "obligations": []} if {
	named
	bound
	private
	count(data.tenant.secret.deny) == 0
} else := {"allow": false, "reasons": [reason | some reason in refusals], "obligations": []}

refusals contains reason if some reason in data.tenant.secret.deny

named if input.secret in input.step_secrets

# tenants.T.secrets: {secret: {tool or pattern: [hosts]}}
bound if {
	t := data.tenants[input.tenant]
	hosts := t.secrets[input.secret][input.tool]
	grants.lists(hosts, input.destination.host)
} else if {
	t := data.tenants[input.tenant]
	some pattern, hosts in t.secrets[input.secret]
	contains(pattern, "*")
	glob.match(pattern, ["."], input.tool)
	grants.lists(hosts, input.destination.host)
}

private if {
	input.destination.scheme == "https"
} else if {
	input.destination.host in grants.loopback
}

refusals contains {
	"code": "secret_not_named",
	"message": sprintf("The step does not name the secret %q.", [input.secret]),
	"remedy": sprintf("Add %q to the step's `secrets`.", [input.secret]),
} if {
	not named
}

refusals contains {
	"code": "secret_not_bound",
	"message": sprintf("No binding lets %s send the secret %q to %s.", [input.tool, input.secret, input.destination.host]),
	"remedy": sprintf(
		"Add to data.json in a directory given with --policy: {\"tenants\": {%q: {\"secrets\": {%q: {%q: [%q]}}}}}",
		[input.tenant, input.secret, input.tool, input.destination.host],
	),
} if {
	not bound
}

refusals contains {
	"code": "secret_in_clear",
	"message": sprintf("A secret may not travel to %s unencrypted.", [input.destination.host]),
	"remedy": "Declare the tool with an https URL.",
} if {
	not private
}
