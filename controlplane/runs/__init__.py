"""Runs: state, pure transitions, the journal, and the controller that advances them."""
