# METADATA
# title: Tables of names and patterns, looked up by key before by pattern
package lib.grants

import rego.v1

# `table` is an object whose keys are names or patterns (`*` within one dot-separated part, `**` across parts;
# `*` alone is everything). Values that are false grant nothing.
names(table, name) if table[name]

names(table, _) if table["*"]

names(table, name) if {
	some pattern, granted in table
	granted
	contains(pattern, "*")
	glob.match(pattern, ["."], name)
}

# `patterns` is a list of the same kind.
lists(patterns, name) if name in patterns

lists(patterns, _) if "*" in patterns

lists(patterns, name) if {
	some pattern in patterns
	contains(pattern, "*")
	glob.match(pattern, ["."], name)
}

# A table of ports by host: `true` is every port, a list is these.
reaches(table, host, port) if {
	some pattern, ports in table
	host_matches(pattern, host)
	port_matches(ports, port)
}

host_matches(pattern, host) if pattern == host

host_matches(pattern, host) if {
	contains(pattern, "*")
	glob.match(pattern, ["."], host)
}

port_matches(ports, _) if ports == true

port_matches(ports, port) if port in ports

loopback := {"127.0.0.1", "localhost", "::1"}
