# METADATA
# title: May this tool be called with these arguments?
# entrypoint: true
package runtime.tool

import data.lib.grants
import rego.v1

default decision := {"allow": false, "reasons": [], "obligations": []}

# What allows is stated once, positively; `refusals` is evaluated only to explain a denial.
decision := {"allow": true, "reasons": [], "obligations": []} if {
	step_grants
	tenant_grants
	count(tainted) == 0
	count(data.tenant.tool.deny) == 0
} else := {"allow": false, "reasons": [reason | some reason in refusals], "obligations": []}

refusals contains reason if some reason in data.tenant.tool.deny

# The author of a `tool` step wrote this very call; what a guest may call is listed by its step.
step_grants if {
	input.via == "step"
} else if {
	grants.lists(input.granted, input.tool.name)
}

# tenants.T.builtins and tenants.T.tools: {name or pattern: true}
# Binding the tenant first halves the rule: a longer path into `data` is looked for among the rules as well.
tenant_grants if {
	t := data.tenants[input.tenant]
	input.tool.kind == "builtin"
	t.builtins[input.tool.name]
} else if {
	t := data.tenants[input.tenant]
	input.tool.kind in {"http", "mcp"}
	grants.names(t.tools, input.tool.name)
}

refusals contains {
	"code": "tool_not_granted",
	"message": sprintf("This step does not grant %q.", [input.tool.name]),
	"remedy": sprintf("Add %q to the step's `tools`.", [input.tool.name]),
} if {
	not step_grants
}

refusals contains {
	"code": "tool_not_allowed",
	"message": sprintf("Tenant %q may not call %q.", [input.tenant, input.tool.name]),
	"remedy": sprintf("Add \"tools\": {%q: true} to tenants.%s in data.json.", [input.tool.name, input.tenant]),
} if {
	not tenant_grants
}

# What decides where an effect goes may not come from a text that anyone could have written.
tainted contains name if {
	some name in input.tool.critical_args
	input.args[name].labels.integrity == "untrusted"
	not input.tool.effect in {"none", "read"}
}

refusals contains {
	"code": "untrusted_critical_argument",
	"message": sprintf("Argument %q of %s decides an effect and comes from untrusted content.", [name, input.tool.name]),
	"remedy": sprintf("Give it in the workflow or its input; or, if %q decides nothing that matters, leave it out of the tool's critical_args.", [name]),
} if {
	some name in tainted
}
