"""Model servers on the node: kept as the control plane wants them, adopted or ended after a crash of the daemon."""
