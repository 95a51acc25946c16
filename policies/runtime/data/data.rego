# METADATA
# title: May this data be read?
# entrypoint: true
package runtime.data

import data.lib.grants
import rego.v1

default decision := {"allow": false, "reasons": [], "obligations": []}

# What allows is stated once, positively; `refusals` is evaluated only to explain a denial.
decision := {"allow": true, "reasons": [], "obligations": []} if {
	granted
	contained
	count(data.tenant.data.deny) == 0
} else := {"allow": false, "reasons": [reason | some reason in refusals], "obligations": []}

refusals contains reason if some reason in data.tenant.data.deny

granted if {
	t := data.tenants[input.tenant]
	grants.names(t.data, input.data_name)
}

contained if not contains(input.uri, "..")

contained if not ".." in split(input.uri, "/")

refusals contains {
	"code": "data_not_allowed",
	"message": sprintf("Data root %q may not be read by tenant %q.", [input.data_name, input.tenant]),
	"remedy": sprintf("Add \"data\": {%q: true} to tenants.%s in data.json.", [input.data_name, input.tenant]),
} if {
	not granted
}

refusals contains {
	"code": "data_path_climbs",
	"message": "The URI climbs out of its root.",
	"remedy": "Name the file by its path below the root, without `..`.",
} if {
	not contained
}
