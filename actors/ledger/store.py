"""What is asked of a ledger while teachers work: take, commit, fetch.

This module knows no Ray: ``actors/ledger/handle.py`` puts it behind one named actor, so that any number of nodes
share one SQLite file. Many calls can share one transaction (``LedgerStore.write``), since what a commit costs
is the disk's answer, whatever it holds.

A claim is a lease: it says "I am asking this" and expires, so a crashed asker blocks nobody for long.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from actors.ledger import batches as ledger_batches
from actors.ledger import tables
from actors.ledger.database import LedgerDatabase, redact
from actors.ledger.tables import ANSWER_COLUMNS, COLUMNS, SCHEMA_VERSION, Row, Taken, to_response, to_rows, to_taken
from potstill.rows import Request, Response

__all__ = ["LEASE_S", "SCHEMA_VERSION", "Call", "LedgerStore", "Taken", "redact"]

LEASE_S = 60.0
Call = tuple[Any, ...]  # the name of a call that writes, and what it is given

_ANSWER = ", ".join(ANSWER_COLUMNS)


class LedgerStore:
    """Reads and writes one ledger. Raises ``LedgerError`` if it can't be opened or is of another schema.

    ``create=False`` opens only what is there already.
    """

    def __init__(self, uri: str, create: bool = True) -> None:
        self.database = LedgerDatabase(uri, create)
        # What $ids stands for in a query: a list of ids is one bound value, whatever its length.
        self._ids = (
            "SELECT value FROM json_each(:ids)" if self.database.is_sqlite else "SELECT unnest(CAST(:ids AS text[]))"
        )
        mark = "?" if self.database.is_sqlite else "%s"
        self._insert = (
            f"INSERT INTO responses ({', '.join(COLUMNS)}) VALUES ({', '.join([mark] * len(COLUMNS))}) "  # noqa: S608
            "ON CONFLICT DO NOTHING"
        )

    def take(self, request_ids: Sequence[str], owner: str, lease_s: float = LEASE_S) -> Taken:
        """Look up requests and claim for ``owner`` those that nobody has answered or is asking."""
        return to_taken(self.write([("take", request_ids, owner, lease_s)])[0])

    def commit(self, requests: Sequence[Request], responses: Sequence[Response]) -> None:
        """Store good answers and give up the claims on all; an answer that is there already stays.

        Failed requests are not stored, so that the next run asks them again.
        """
        self.write([("commit", *to_rows(requests, responses))])

    def renew(self, owner: str, lease_s: float = LEASE_S) -> None:
        """Extend the leases of ``owner`` and of all below it (``<owner>-...``)."""
        self.write([("renew", owner, lease_s)])

    def release(self, owner: str) -> None:
        """Give up all claims of ``owner`` and of all below it (``<owner>-...``)."""
        self.write([("release", owner)])

    def write(self, calls: Sequence[Call]) -> list[Any]:
        """Carry out calls that came at the same time in one transaction: all are durable, or none.

        Calls are ``("commit", rows, request_ids)``, ``("take", request_ids, owner[, lease_s])``,
        ``("renew", owner[, lease_s])``, ``("release", owner)`` and those of ``actors/ledger/batches.py``. Commits go
        first, so that takes find their answers. What ``take`` gives is for ``to_taken``; of the others only those of
        batches give anything.
        """
        results: list[Any] = [None] * len(calls)
        with self.database.write() as connection:
            commits = [call for call in calls if call[0] == "commit"]
            if commits:
                self._commit(
                    connection, [row for call in commits for row in call[1]], [i for c in commits for i in c[2]]
                )
            for number, (name, *args) in enumerate(calls):
                if name == "take":
                    results[number] = self._take(connection, *args)
                elif name in ledger_batches.CALLS:
                    results[number] = ledger_batches.CALLS[name](connection, self._now(connection), *args)
                elif name != "commit":
                    {"renew": self._renew, "release": self._release}[name](connection, *args)
        return results

    def count_known(self, request_ids: Sequence[str]) -> int:
        """How many of the requests have an answer."""
        with self.database.read() as connection:
            return self._run(
                connection,
                "SELECT count(*) FROM responses WHERE request_id IN ($ids)",
                request_ids,
            ).scalar_one()

    def fetch(self, request_ids: Sequence[str]) -> list[Response]:
        """The stored answers of those requests that have one."""
        return [to_response(row) for row in self.fetch_rows(request_ids)]

    def fetch_rows(self, request_ids: Sequence[str]) -> list[Row]:
        """The same as rows of ``ANSWER_COLUMNS``, for ``to_response``."""
        with self.database.read() as connection:
            return self._fetch(connection, request_ids)

    def open_batches(self, provider: str, model: str) -> list[Row]:
        """See ``ledger_batches.under_way``."""
        with self.database.read() as connection:
            return ledger_batches.open_batches(connection, provider, model)

    def batch_requests(self, key: str) -> list[Row]:
        """See ``ledger_batches.BatchBook.members``."""
        with self.database.read() as connection:
            return ledger_batches.requests_of(connection, key)

    def close(self) -> None:
        """Close all connections; SQLite folds its write-ahead log into the file."""
        self.database.close()

    def _take(
        self, connection: sa.Connection, request_ids: Sequence[str], owner: str, lease_s: float = LEASE_S
    ) -> tuple[list[Row], list[str], list[str]]:
        known = self._fetch(connection, request_ids)
        answered = {row[0] for row in known}
        missing = [name for name in dict.fromkeys(request_ids) if name not in answered]
        if not missing:
            return known, [], []
        now = self._now(connection)
        self._run(
            connection,
            "DELETE FROM claims WHERE expires_at < :now AND request_id IN ($ids)",
            missing,
            now=now,
        )
        self._run(
            connection,
            "INSERT INTO claims (request_id, owner, expires_at) SELECT ids.*, :owner, :end FROM ($ids) AS ids "
            "WHERE true ON CONFLICT DO NOTHING",
            missing,
            owner=owner,
            end=now + lease_s,
        )
        claimed = self._run(
            connection,
            "SELECT request_id FROM claims WHERE owner = :owner AND request_id IN ($ids)",
            missing,
            owner=owner,
        )
        mine = {row[0] for row in claimed}
        return known, [name for name in missing if name in mine], [name for name in missing if name not in mine]

    def _commit(self, connection: sa.Connection, rows: list[Row], request_ids: list[str]) -> None:
        if rows:
            connection.exec_driver_sql(self._insert, rows)
        if request_ids:
            self._run(connection, "DELETE FROM claims WHERE request_id IN ($ids)", request_ids)

    def _fetch(self, connection: sa.Connection, request_ids: Sequence[str]) -> list[Row]:
        query = f"SELECT {_ANSWER} FROM responses WHERE request_id IN ($ids)"  # noqa: S608
        return [tuple(row) for row in self._run(connection, query, request_ids)]

    def _renew(self, connection: sa.Connection, owner: str, lease_s: float = LEASE_S) -> None:
        end = self._now(connection) + lease_s
        mine = tables.is_below(tables.claims.c.owner, owner)
        connection.execute(sa.update(tables.claims).where(mine).values(expires_at=end))
        ledger_batches.hold(connection, owner, end)

    def _release(self, connection: sa.Connection, owner: str) -> None:
        connection.execute(sa.delete(tables.claims).where(tables.is_below(tables.claims.c.owner, owner)))
        ledger_batches.hold(connection, owner, 0.0)

    def _now(self, connection: sa.Connection) -> float:
        """Seconds since 1970. Machines that share a PostgreSQL go by its clock, since theirs may differ by a lease."""
        if self.database.is_sqlite:
            return time.time()
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def _run(self, connection: sa.Connection, query: str, request_ids: Sequence[str], **values: Any) -> sa.CursorResult:
        ids = json.dumps(list(request_ids)) if self.database.is_sqlite else list(request_ids)
        return connection.execute(sa.text(query.replace("$ids", self._ids)), {"ids": ids, **values})
