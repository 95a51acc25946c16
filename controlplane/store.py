"""The database: one connection that writes (the journal's), a few that read. SQLite in WAL mode.

    store = Store(path); store.migrate()
    rows  = await store.read(lambda session: session.exec(select(RunRow)).all())
    await journal.write([upsert(RunRow, {...})])            # runs/journal.py commits groups of these

Reads go through SQLModel sessions in a worker thread and never pass through the writer. Writes are values
(``Write``): a prepared statement of one table and its rows, so that a batch is a few ``executemany`` calls.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import anyio.to_thread
import msgspec
from sqlalchemy import Engine, event, inspect, text
from sqlmodel import Session, SQLModel, create_engine

T = TypeVar("T")
_MIGRATIONS = Path(__file__).parent / "migrations"


class Write(NamedTuple):
    """One row for one statement. Statements of different tables are independent of each other's order."""

    sql: str
    row: tuple[Any, ...]


def canonical(value: Any) -> str:
    """JSON text with sorted keys and no spaces: what digests are taken over and what columns hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def encoded(value: Any) -> str:
    """JSON text for a column, fast, in no order of keys: nothing is compared or digested by it."""
    try:
        return _encode(value).decode()
    except (OverflowError, UnicodeError):  # integers past 64 bits, lone surrogates
        return canonical(value)


_encode = msgspec.json.Encoder().encode


@cache
def _statement(table: type[SQLModel], update: bool, columns: tuple[str, ...]) -> str:
    name = table.__table__.name  # type: ignore[attr-defined]
    marks = ",".join("?" * len(columns))
    keys = [column.name for column in table.__table__.primary_key]  # type: ignore[attr-defined]
    # The table and column names come from the models above, never from input.
    sql = f'INSERT INTO "{name}" ({",".join(columns)}) VALUES ({marks})'  # noqa: S608
    if update:
        sets = ",".join(f"{column}=excluded.{column}" for column in columns if column not in keys)
        sql += f" ON CONFLICT ({','.join(keys)}) DO UPDATE SET {sets}"
    return sql


def upsert(table: type[SQLModel], row: Mapping[str, Any]) -> Write:
    """Insert, or replace the named columns of the row with the same key."""
    columns = tuple(row)
    return Write(_statement(table, True, columns), tuple(row.values()))


def insert(table: type[SQLModel], row: Mapping[str, Any]) -> Write:
    """Insert; a row with the same key fails the transition."""
    columns = tuple(row)
    return Write(_statement(table, False, columns), tuple(row.values()))


def newest_revision() -> str:
    """That of the last migration: their files' names begin with it, and sort."""
    return max(file.name for file in (_MIGRATIONS / "versions").glob("[0-9]*.py")).partition("_")[0]


class Store:
    """Where everything durable is. ``path`` is the SQLite file; its folder must exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = _engine(path)

    def migrate(self) -> None:
        """Bring the schema to the newest revision. Blocking; call before serving."""
        if self.revision() == newest_revision():
            return
        # Only now: they bring 10 MB, which a process would keep that serves for weeks.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revision(self) -> str | None:
        """What the schema is at; ``None`` for an empty database."""
        with self._engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar())

    async def read(self, query: Callable[[Session], T]) -> T:
        """Run ``query`` in a read session of its own, in a worker thread."""

        def work() -> T:
            with Session(self._engine) as session:
                return query(session)

        return await anyio.to_thread.run_sync(work)

    def read_now(self, query: Callable[[Session], T]) -> T:
        """The same, blocking: for start-up and for the command line."""
        with Session(self._engine) as session:
            return query(session)

    def writer(self) -> sqlite3.Connection:
        """The connection of the journal's thread: autocommit off by hand, full durability."""
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=256)
        _pragmas(connection)
        return connection

    def close(self) -> None:
        self._engine.dispose()


def _pragmas(connection: sqlite3.Connection) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False})
    event.listen(engine, "connect", lambda connection, _record: _pragmas(connection))
    return engine
