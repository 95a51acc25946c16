# Who may ask this OPA: whoever has the token, data only, and not before there is a policy. An OPA that has just
# started would answer every question with nothing, and nothing is a wrong answer; so it refuses until it can decide.
package system.authz

import rego.v1

default allow := false

allow if {
	token := opa.runtime().env.STOCKADE_OPA_TOKEN
	count(token) >= 32
	input.identity == token
	input.method == "POST"
	array.slice(input.path, 0, 2) == ["v1", "data"]
	data.system.bundles.stockade.manifest.revision
}

allow if {
	input.method == "GET"
	input.path == ["health"]
}
