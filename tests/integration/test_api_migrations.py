"""The migrations make exactly the schema of ``controlplane/tables.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from controlplane.store import Store, newest_revision
from controlplane.tables import SQLModel


def test_autogenerate_finds_no_difference_after_migrating(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "stockade.db")
    assert store.revision() is None
    store.migrate()
    store.migrate()
    assert store.revision() == newest_revision()
    store.close()
    engine = create_engine(f"sqlite:///{tmp_path / 'stockade.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
    engine.dispose()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_comparison_sees_a_missing_column(tmp_path: Path) -> None:
    store = Store(tmp_path / "stockade.db")
    store.migrate()
    store.close()
    engine = create_engine(f"sqlite:///{tmp_path / 'stockade.db'}")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE run DROP COLUMN priority"))
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) != []
    engine.dispose()
