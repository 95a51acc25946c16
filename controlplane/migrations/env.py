"""Alembic's entry point: uses the connection in ``config.attributes``, configures no logging, prints nothing."""

from __future__ import annotations

from alembic import context

from controlplane.tables import RunRow

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=RunRow.metadata,
    # SQLite cannot alter most things in place: later migrations copy tables.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
