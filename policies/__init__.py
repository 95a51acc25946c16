"""The shipped policy bundle: Rego, data and input schemas, carried as package data."""
