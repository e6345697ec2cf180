"""The ledger's tables: every answer that was ever given, and who is asking what right now.

SQLAlchemy Core, SQLite (WAL) or PostgreSQL by URL. This module knows no Ray: ``actors/ledger.py``
puts it behind one named actor, so that any number of nodes share one SQLite file.

A claim is a lease: it says "I am asking this" and expires, so a crashed asker blocks nobody for long.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from potstill.errors import LedgerError
from potstill.rows import Request, Response

SCHEMA_VERSION = 1
LEASE_S = 60.0
_CHUNK = 500  # ids in one statement; SQLite allows 32,766 bound values, PostgreSQL 65,535

_metadata = sa.MetaData()
_meta = sa.Table("meta", _metadata, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.String))
_responses = sa.Table(
    "responses",
    _metadata,
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("stage", sa.String),
    sa.Column("task", sa.String),
    sa.Column("provider", sa.String),
    sa.Column("model", sa.String),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("finish_reason", sa.String),
    sa.Column("choice_logprobs", sa.Text, nullable=False),
    sa.Column("residual_mass", sa.Float),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("cost_usd", sa.Float, nullable=False),
    sa.Column("latency_s", sa.Float, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False, index=True),
)
_claims = sa.Table(
    "claims",
    _metadata,
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("owner", sa.String, nullable=False, index=True),
    sa.Column("expires_at", sa.Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Taken:
    """What the ledger says about a batch of requests: answered before, yours to ask, or being asked by others."""

    known: tuple[Response, ...]
    mine: tuple[str, ...]
    others: tuple[str, ...]


class LedgerStore:
    """Reads and writes one ledger. Raises ``LedgerError`` if it can't be opened or is of another schema."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._shown = redact(uri)
        try:
            url = sa.make_url(uri)
            if url.get_backend_name() == "sqlite" and url.database:
                Path(url.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
            self._engine = sa.create_engine(url)
            if url.get_backend_name() == "sqlite":
                sa.event.listen(self._engine, "connect", _tune_sqlite)
            _metadata.create_all(self._engine)
            with self._engine.begin() as connection:
                connection.execute(self._insert(_meta, [{"key": "schema_version", "value": str(SCHEMA_VERSION)}]))
                found = connection.execute(sa.select(_meta.c.value).where(_meta.c.key == "schema_version")).scalar_one()
        except (sa.exc.SQLAlchemyError, ImportError, OSError) as error:
            raise LedgerError(f"ledger.uri = {self._shown!r}: can't be opened as a ledger: {_reason(error)}") from error
        if int(found) != SCHEMA_VERSION:
            raise LedgerError(
                f"ledger.uri = {self._shown!r}: is of schema {found}, this potstill reads {SCHEMA_VERSION}; "
                "use the potstill that wrote it, or another file"
            )

    def take(self, request_ids: Sequence[str], owner: str, lease_s: float = LEASE_S) -> Taken:
        """Look up requests and claim for ``owner`` those that nobody has answered or is asking."""
        now = time.time()
        known: list[Response] = []
        mine: list[str] = []
        with self._write() as connection:
            for chunk in _chunks(list(dict.fromkeys(request_ids))):
                found = self._fetch(connection, chunk)
                known += found
                missing = set(chunk) - {response.request_id for response in found}
                if not missing:
                    continue
                connection.execute(
                    sa.delete(_claims).where(_claims.c.request_id.in_(missing), _claims.c.expires_at < now)
                )
                claims = [{"request_id": name, "owner": owner, "expires_at": now + lease_s} for name in sorted(missing)]
                connection.execute(self._insert(_claims, claims))
                # Somebody may have answered, and given up the claim, since the first look.
                late = self._fetch(connection, sorted(missing))
                known += late
                answered = {response.request_id for response in late}
                own = _claims.c.owner == owner
                if answered:
                    connection.execute(sa.delete(_claims).where(own, _claims.c.request_id.in_(answered)))
                rows = connection.execute(
                    sa.select(_claims.c.request_id).where(own, _claims.c.request_id.in_(missing - answered))
                )
                mine += [row.request_id for row in rows]
        done = {response.request_id for response in known} | set(mine)
        return Taken(tuple(known), tuple(mine), tuple(name for name in dict.fromkeys(request_ids) if name not in done))

    def commit(self, requests: Sequence[Request], responses: Sequence[Response]) -> None:
        """Store good answers and give up the claims on all; an answer that is there already stays.

        Failed requests are not stored, so that the next run asks them again.
        """
        by_id = {request.request_id: request for request in requests}
        rows = [_row(by_id[response.request_id], response) for response in responses if response.error is None]
        with self._write() as connection:
            for chunk in _chunks(rows):
                connection.execute(self._insert(_responses, chunk))
            for names in _chunks([response.request_id for response in responses]):
                connection.execute(sa.delete(_claims).where(_claims.c.request_id.in_(names)))

    def renew(self, owner: str, lease_s: float = LEASE_S) -> None:
        """Extend the leases of ``owner`` and of all below it (``<owner>-...``)."""
        self._update_claims(owner, sa.update(_claims).values(expires_at=time.time() + lease_s))

    def release(self, owner: str) -> None:
        """Give up all claims of ``owner`` and of all below it (``<owner>-...``)."""
        self._update_claims(owner, sa.delete(_claims))

    def count_known(self, request_ids: Sequence[str]) -> int:
        """How many of the requests have an answer."""
        with self._read() as connection:
            return sum(
                connection.execute(
                    sa.select(sa.func.count()).select_from(_responses).where(_responses.c.request_id.in_(chunk))
                ).scalar_one()
                for chunk in _chunks(list(set(request_ids)))
            )

    def fetch(self, request_ids: Sequence[str]) -> list[Response]:
        """The stored answers of those requests that have one."""
        with self._read() as connection:
            return [row for chunk in _chunks(list(request_ids)) for row in self._fetch(connection, chunk)]

    def close(self) -> None:
        """Close all connections; SQLite folds its write-ahead log into the file."""
        self._engine.dispose()

    def _update_claims(self, owner: str, statement: Any) -> None:
        with self._write() as connection:
            below = _claims.c.owner.startswith(f"{owner}-", autoescape=True)
            connection.execute(statement.where(sa.or_(_claims.c.owner == owner, below)))

    @contextlib.contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise LedgerError(f"ledger.uri = {self._shown!r}: can't be read: {_reason(error)}") from error

    @contextlib.contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise LedgerError(f"ledger.uri = {self._shown!r}: can't be written: {_reason(error)}") from error

    def _insert(self, table: sa.Table, rows: list[dict[str, Any]]) -> Any:
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table).values(rows).on_conflict_do_nothing()

    def _fetch(self, connection: sa.Connection, request_ids: Sequence[str]) -> list[Response]:
        rows = connection.execute(sa.select(_responses).where(_responses.c.request_id.in_(request_ids)))
        return [
            Response(
                request_id=row.request_id,
                text=row.text,
                finish_reason=row.finish_reason,
                choice_logprobs=tuple(json.loads(row.choice_logprobs)),
                residual_mass=row.residual_mass,
                prompt_tokens=row.prompt_tokens,
                completion_tokens=row.completion_tokens,
                cost_usd=row.cost_usd,
                latency_s=row.latency_s,
                created_at=row.created_at,
            )
            for row in rows
        ]


def redact(uri: str) -> str:
    """The URI as messages and logs may show it, without its password."""
    try:
        return sa.make_url(uri).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return uri


def _tune_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.execute("PRAGMA journal_mode=WAL")
    # An answer counts as committed only when it survives a power cut: it was paid for.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _row(request: Request, response: Response) -> dict[str, Any]:
    content = asdict(request)
    for name in ("request_id", "stage", "task", "provider", "model"):
        content.pop(name)
    return {
        "request_id": request.request_id,
        "stage": request.stage,
        "task": request.task,
        "provider": request.provider,
        "model": request.model,
        "request": json.dumps(content, ensure_ascii=False),
        "text": response.text,
        "finish_reason": response.finish_reason,
        "choice_logprobs": json.dumps(response.choice_logprobs),
        "residual_mass": response.residual_mass,
        "prompt_tokens": response.prompt_tokens,
        "completion_tokens": response.completion_tokens,
        "cost_usd": response.cost_usd,
        "latency_s": response.latency_s,
        "created_at": response.created_at,
    }


def _chunks(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _reason(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
