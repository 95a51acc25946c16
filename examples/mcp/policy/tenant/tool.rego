# METADATA
# title: What this tenant refuses of tools that others wrote
package tenant.tool

import rego.v1

granted := {"time.get_current_time"}

deny contains {
	"code": "mcp_tool_not_granted",
	"message": sprintf("%s is a tool of an MCP server and not on our list.", [input.tool.name]),
	"remedy": "Ask for it to be added to `granted` in tenant/tool.rego.",
} if {
	input.tool.kind == "mcp"
	not input.tool.name in granted
}
