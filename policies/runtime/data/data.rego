# METADATA
# title: May this data be read?
# entrypoint: true
package runtime.data

import data.lib.grants
import rego.v1

default decision := {"allow": false, "reasons": [], "obligations": []}

decision := {"allow": true, "reasons": [], "obligations": []} if {
	count(refusals) == 0
	permitted
} else := {"allow": false, "reasons": [reason | some reason in refusals], "obligations": []}

refusals contains reason if some reason in data.tenant.data.deny

permitted if grants.names(data.tenants[input.tenant].data, input.data_name)

refusals contains {
	"code": "data_not_allowed",
	"message": sprintf("Data root %q may not be read by tenant %q.", [input.data_name, input.tenant]),
	"remedy": sprintf("Add \"data\": {%q: true} to tenants.%s in data.json.", [input.data_name, input.tenant]),
} if {
	not permitted
}

refusals contains {
	"code": "data_path_climbs",
	"message": "The URI climbs out of its root.",
	"remedy": "Name the file by its path below the root, without `..`.",
} if {
	contains(input.uri, "..")
	".." in split(input.uri, "/")
}
