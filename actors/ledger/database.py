"""Opens the database of a ledger, SQLite (WAL) or PostgreSQL. Errors are one line that says what to do."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from actors.ledger import tables
from potstill.errors import LedgerError

LOCK_WAIT_S = 60  # how long a writer waits for another process's transaction
ROOM_BYTES = 32 * 2**20  # a disk with less free space counts as full; room for about 10,000 answers
_LOCK_KEY = 0x706F7473  # PostgreSQL advisory lock: "pots"

# Driver message -> what the user can do.
_FIXES = {
    "file is not a database": "it is not a ledger; name another file",
    "malformed": "the file is damaged; see `potstill ledger verify`; restore a copy, or name another file",
    "disk is full": "free some space there, or name a file on another disk",
    "disk I/O error": "its disk may be full or gone; free some space there, or name a file on another disk",
    "readonly database": "give yourself write access to the file and its folder, or name another file",
    "unable to open": "give yourself write access to the file and its folder, or name another file",
    "File exists": "part of the path is a file, not a folder; name another one",
    "Not a directory": "part of the path is a file, not a folder; name another one",
    "Permission denied": "give yourself write access to the file and its folder, or name another file",
    "Read-only file system": "name a file on a writable disk",
    "database is locked": f"another process has locked it for {LOCK_WAIT_S} s; stop that process, or wait for it",
    "No module named 'psycopg": "run `pip install 'potstill[postgres]'`",
    "Can't load plugin": "a ledger is sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE",
    "Could not parse": "a ledger is sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE",
}


class NoLedgerError(LedgerError):
    """There is no ledger to read yet."""


class LedgerDatabase:
    """An open ledger. ``create=False`` opens an existing one (else ``NoLedgerError``) and changes nothing.

    Raises ``LedgerError`` if it can't be opened, has another schema or is not a ledger.
    """

    def __init__(self, uri: str, create: bool = True) -> None:
        self.uri = uri
        self.shown = redact(uri)
        with self.explained("can't be opened as a ledger"):
            self._url = _with_driver(sa.make_url(uri))
            self.is_sqlite = self._url.get_backend_name() == "sqlite"
            if self.is_sqlite:
                self._find_file(create)
            self.engine = _engine(self._url)
        self._writing = self.engine.execution_options(writing=True)
        try:
            with self.explained("can't be opened as a ledger"):
                self._check(create)
        except LedgerError:
            self.engine.dispose()
            raise

    @property
    def path(self) -> Path | None:
        """The file of an SQLite ledger."""
        return Path(self._url.database or "").expanduser() if self.is_sqlite else None

    def error(self, message: str) -> LedgerError:
        """A ``LedgerError`` about this ledger."""
        return LedgerError(f"ledger.uri = {self.shown!r}: {message}")

    @contextlib.contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn driver errors into one line that starts with ``what`` and ends with what to do."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, sqlite3.Error, ImportError, OSError, UnicodeError) as error:
            raise self.error(f"{what}: {_reason(error)}") from error

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one snapshot (SQLite), or one per statement (PostgreSQL)."""
        with self.explained("can't be read"), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A write transaction. Write transactions of all machines run one after another.

        So two processes can't claim the same request or deadlock. SQLite always works like that; on PostgreSQL an
        advisory lock does it, which ends with the transaction.
        """
        with self.explained("can't be written"), self._writing.begin() as connection:
            if not self.is_sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            yield connection

    def check_writable(self) -> None:
        """Commit a row and delete it. Raises ``LedgerError`` if that fails or the disk is nearly full."""
        key = f"write test {time.time()}"
        mine = tables.meta.c.key == key
        with self.write() as connection:
            connection.execute(sa.insert(tables.meta).values(key=key, value="x" * 65536))
        with self.write() as connection:
            connection.execute(sa.delete(tables.meta).where(mine))
        if self.path is not None:
            free = shutil.disk_usage(self.path.parent).free
            if free < ROOM_BYTES:
                raise self.error(
                    f"its disk has only {free / 2**20:.0f} MiB left, answers would be lost; free some space there, "
                    "or name a file on another disk"
                )

    def close(self) -> None:
        """Close all connections; SQLite folds its write-ahead log into the file."""
        self.engine.dispose()

    def _find_file(self, create: bool) -> None:
        if not self._url.database or self._url.database == ":memory:":
            raise self.error("names no file, so nothing would be kept; name one: sqlite:///FILE")
        path = self.path
        if path is None or self._url.database.startswith("file:"):
            return
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.is_file():
            raise NoLedgerError(str(self.error("there is no ledger; name the one that your jobs use")))
        self._url = self._url.set(database=str(path))

    def _check(self, create: bool) -> None:
        found = self._schema_version()
        if found is None and not create:
            raise NoLedgerError(str(self.error("there is no ledger in it; name the one that your jobs use")))
        if create and self.is_sqlite:
            self._use_wal()
        if found is None:
            with self.write() as connection:
                tables.metadata.create_all(connection)
                # Another process may have created it since.
                if connection.execute(sa.select(sa.func.count()).select_from(tables.meta)).scalar_one() == 0:
                    connection.execute(
                        sa.insert(tables.meta).values(key="schema_version", value=str(tables.SCHEMA_VERSION))
                    )
            found = self._schema_version()
        if found != str(tables.SCHEMA_VERSION):
            raise self.error(
                f"has schema {found}, but this potstill reads schema {tables.SCHEMA_VERSION}; "
                "use the potstill version that wrote it, or name another file"
            )
        if create:
            self._add_tables()

    def _add_tables(self) -> None:
        """Add the tables that an earlier potstill did not create; it can still read the ledger."""
        if set(tables.metadata.tables) - set(sa.inspect(self.engine).get_table_names()):
            with self.write() as connection:
                tables.metadata.create_all(connection)

    def _use_wal(self) -> None:
        """Allow readers beside a writer. The setting is stored in the file, so it is checked first."""
        until = time.monotonic() + LOCK_WAIT_S
        with contextlib.closing(self.engine.raw_connection()) as connection:
            cursor = connection.cursor()
            while cursor.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                try:
                    # Effective only in a new file: pruned pages can then be released bit by bit.
                    cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
                    cursor.execute("PRAGMA journal_mode=WAL")
                except sqlite3.OperationalError as error:
                    # Unlike other statements this one does not wait for a process that has the new file open.
                    if "locked" not in str(error) or time.monotonic() > until:
                        raise
                    time.sleep(0.05)

    def _schema_version(self) -> str | None:
        """``None`` if no ledger has been created yet."""
        with self.engine.connect() as connection:
            names = set(sa.inspect(connection).get_table_names())
            if tables.meta.name in names:
                columns = {column["name"] for column in sa.inspect(connection).get_columns(tables.meta.name)}
                if columns == set(tables.meta.c.keys()):
                    value = sa.select(tables.meta.c.value).where(tables.meta.c.key == "schema_version")
                    found = connection.execute(value).scalar()
                    if found is not None:
                        return str(found)
            # In PostgreSQL a ledger may share the database with other tables of other names.
            foreign = names if self.is_sqlite else names & set(tables.metadata.tables)
            if foreign:
                raise self.error(
                    f"is not a ledger but another database (it has a table {min(foreign)!r}); name another one"
                )
        return None


def redact(uri: str) -> str:
    """The URI without its password, for messages and logs."""
    try:
        return sa.make_url(uri).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return uri


def _with_driver(url: sa.URL) -> sa.URL:
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        # Claims are checked after taking the lock, so each statement must see what others have committed.
        engine = sa.create_engine(url, isolation_level="READ COMMITTED", pool_pre_ping=True)
        if url.get_backend_name() == "postgresql":
            sa.event.listen(engine, "connect", _tune_postgresql)
        return engine
    engine = sa.create_engine(url)
    sa.event.listen(engine, "connect", _tune_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _tune_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we begin transactions, not the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={LOCK_WAIT_S * 1000}")
    # Answers are paid for, so a commit must survive a power cut.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA cache_size=-32768")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once: a reader that starts to write fails if another writer was faster.
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _tune_postgresql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{LOCK_WAIT_S}s'")
        # A machine that dies during a transaction must not keep the writers' lock.
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{LOCK_WAIT_S}s'")
    connection.commit()


def _reason(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    line = text.splitlines()[0]
    fixes = [fix for said, fix in _FIXES.items() if said in line]
    return f"{line}; {fixes[0]}" if fixes else line
