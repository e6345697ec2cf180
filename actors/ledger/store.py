"""The ledger's operations for teacher processes: take, commit, fetch. Uses no Ray.

``actors/ledger/handle.py`` puts it behind one named actor, so that all nodes share one SQLite file. Many calls share a
transaction (``LedgerStore.write``): a commit costs one wait for the disk, regardless of its size.

A claim is a lease: the request is reserved for one process until the lease expires, so a crash blocks it only briefly.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from actors.ledger import batches as ledger_batches
from actors.ledger import tables
from actors.ledger.database import LedgerDatabase
from actors.ledger.tables import ANSWER_COLUMNS, COLUMNS, Row, Taken, to_response, to_rows, to_taken
from potstill.rows import Request, Response

LEASE_S = 60.0
Call = tuple[Any, ...]  # name and arguments of a call that writes

_ANSWER = ", ".join(ANSWER_COLUMNS)


class LedgerStore:
    """Reads and writes one ledger. Raises ``LedgerError`` if it can't be opened or has another schema.

    ``create=False`` opens only an existing ledger.
    """

    def __init__(self, uri: str, create: bool = True) -> None:
        self.database = LedgerDatabase(uri, create)
        # Replaces $ids in a query: a list of ids is one bound value, regardless of its length.
        self._ids = (
            "SELECT value FROM json_each(:ids)" if self.database.is_sqlite else "SELECT unnest(CAST(:ids AS text[]))"
        )
        mark = "?" if self.database.is_sqlite else "%s"
        self._insert = (
            f"INSERT INTO responses ({', '.join(COLUMNS)}) VALUES ({', '.join([mark] * len(COLUMNS))}) "  # noqa: S608
            "ON CONFLICT DO NOTHING"
        )

    def take(self, request_ids: Sequence[str], owner: str, lease_s: float = LEASE_S) -> Taken:
        """Look up requests, and claim for ``owner`` those that are neither answered nor claimed."""
        return to_taken(self.write([("take", request_ids, owner, lease_s)])[0])

    def commit(self, requests: Sequence[Request], responses: Sequence[Response]) -> None:
        """Store the good answers and release the claims on all. An answer that is already stored stays.

        Failed requests are not stored, so the next run asks them again.
        """
        self.write([("commit", *to_rows(requests, responses))])

    def renew(self, owner: str, lease_s: float = LEASE_S) -> None:
        """Extend the leases of ``owner`` and of all owners below it (``<owner>-...``)."""
        self.write([("renew", owner, lease_s)])

    def release(self, owner: str) -> None:
        """Release all claims of ``owner`` and of all owners below it (``<owner>-...``)."""
        self.write([("release", owner)])

    def write(self, calls: Sequence[Call]) -> list[Any]:
        """Carry out calls in one transaction: all become durable, or none.

        Calls are ``("commit", rows, request_ids)``, ``("take", request_ids, owner[, lease_s])``,
        ``("renew", owner[, lease_s])``, ``("release", owner)`` and those of ``actors/ledger/batches.py``. Commits run
        first, so that takes find their answers. Returns one result per call: for ``take`` the argument of ``to_taken``,
        for batch calls theirs, else ``None``.
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
        """The number of requests that have an answer."""
        with self.database.read() as connection:
            return self._run(
                connection,
                "SELECT count(*) FROM responses WHERE request_id IN ($ids)",
                request_ids,
            ).scalar_one()

    def fetch(self, request_ids: Sequence[str]) -> list[Response]:
        """The stored answers to the requests, where there are any."""
        return [to_response(row) for row in self.fetch_rows(request_ids)]

    def fetch_rows(self, request_ids: Sequence[str]) -> list[Row]:
        """``fetch`` as rows of ``ANSWER_COLUMNS``, for ``to_response``."""
        with self.database.read() as connection:
            return self._fetch(connection, request_ids)

    def open_batches(self, provider: str, model: str) -> list[Row]:
        """See ``batch_book.under_way``."""
        with self.database.read() as connection:
            return ledger_batches.open_batches(connection, provider, model)

    def batch_requests(self, key: str) -> list[Row]:
        """See ``BatchBook.members``."""
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
        """Seconds since 1970, by PostgreSQL's clock if there is one: its clients' clocks may differ by more than a lease."""
        if self.database.is_sqlite:
            return time.time()
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def _run(self, connection: sa.Connection, query: str, request_ids: Sequence[str], **values: Any) -> sa.CursorResult:
        ids = json.dumps(list(request_ids)) if self.database.is_sqlite else list(request_ids)
        return connection.execute(sa.text(query.replace("$ids", self._ids)), {"ids": ids, **values})
