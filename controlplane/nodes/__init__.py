"""Nodes: their registrations, what they can do, and the tokens they join with."""
