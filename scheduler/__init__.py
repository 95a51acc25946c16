"""Which node gets which work, and why: pure functions over an immutable snapshot. No clock, no I/O.

demand       what a step asks for
cluster      the nodes, as columns
feasibility  filter: which nodes can take it
scoring      score: what each would cost, in seconds
ledger       reserve: capacity left during one call
scoreboard   filter and score of one shape of demand, kept current
delay        wait for a full node that is better placed, or move
holding      a node held for the demand that starves
blocking     why nothing fits, and the nearest fix
explanation  what a decision says about itself
quick        the same decision for plain tool calls on few nodes
planner      plan(snapshot, demands)
"""
