"""Secrets: written over the API, sealed in the database, lent to one outgoing request at a time, never shown."""
