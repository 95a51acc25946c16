# METADATA
# title: Tables of names and patterns, looked up by key before by pattern
package lib.grants

import rego.v1

# `table` is an object whose keys are names or patterns (`*` within one dot-separated part, `**` across parts;
# `*` alone is everything). Values that are false grant nothing.
# Looking for the plain name and for `*` first keeps patterns off the common path.
names(table, name) if {
	table[name]
} else if {
	table["*"]
} else if {
	some pattern, granted in table
	granted
	contains(pattern, "*")
	glob.match(pattern, ["."], name)
}

# `patterns` is a list of the same kind.
lists(patterns, name) if {
	name in patterns
} else if {
	"*" in patterns
} else if {
	some pattern in patterns
	contains(pattern, "*")
	glob.match(pattern, ["."], name)
}

# A table of ports by host: `true` is every port, a list is these.
reaches(table, host, port) if {
	port_matches(table[host], port)
} else if {
	some pattern, ports in table
	contains(pattern, "*")
	glob.match(pattern, ["."], host)
	port_matches(ports, port)
}

port_matches(ports, port) if {
	ports == true
} else if {
	port in ports
}

loopback := {"127.0.0.1", "localhost", "::1"}
