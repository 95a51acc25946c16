"""Measurements one can repeat: ``python -m benchmarks engine|sandboxes|placement|policy [--json]``."""
