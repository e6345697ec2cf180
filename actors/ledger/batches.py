"""The ledger's records of batches at an endpoint, so that none is paid for twice if a process dies.

A batch is recorded before it is created: it takes over the claims on its requests and keeps them until it is closed.
The process that polls it (its holder) has a lease on it; when the lease expires another process takes the batch over.
Each step at the endpoint is noted before (``attempted_at``) and after (``file_id``, ``batch_id``), so a successor knows
where to begin: an attempt without a ``batch_id`` may have created a batch, which the endpoint then lists under its key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from actors.ledger import tables
from actors.ledger.tables import Row

HOLD_S = 60.0
KEPT_S = 30 * 86_400.0  # how long endpoints keep the answers of a batch
CHUNK = 1000  # requests written together

_batches, _requests, _claims = tables.batches.c, tables.batch_requests.c, tables.claims.c
_OWNER = "batch-"


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A row of the table. Times in seconds since 1970. ``attempted_at``: last try to create it at the endpoint."""

    batch_key: str
    provider: str
    model: str
    base_url: str
    state: str
    requests: int
    created_at: float
    file_id: str | None = None
    attempted_at: float | None = None
    batch_id: str | None = None


_FIELDS = tuple(getattr(_batches, field.name) for field in fields(BatchRecord))


def open_batches(connection: sa.Connection, provider: str, model: str) -> list[Row]:
    """See ``batch_book.under_way``."""
    of_teacher = sa.and_(_batches.state == "open", _batches.provider == provider, _batches.model == model)
    return [tuple(row) for row in connection.execute(sa.select(*_FIELDS).where(of_teacher))]


def requests_of(connection: sa.Connection, key: str) -> list[Row]:
    """See ``BatchBook.members``."""
    query = sa.select(_requests.attempt, _requests.request).where(_requests.batch_key == key)
    return [tuple(row) for row in connection.execute(query.order_by(_requests.request_id))]


def hold(connection: sa.Connection, owner: str, until: float) -> None:
    """Set the end of the leases on batches of ``owner`` and of all owners below it."""
    mine = sa.and_(_batches.state == "open", tables.is_below(tables.batches.c.holder, owner))
    connection.execute(sa.update(tables.batches).where(mine).values(held_until=until))


def prune(connection: sa.Connection, before: float) -> None:
    """Delete batches that were closed before ``before``."""
    connection.execute(sa.delete(tables.batches).where(_batches.closed_at < before))


def is_of_a_batch() -> sa.ColumnElement[bool]:
    """Whether a claim belongs to a batch."""
    return _claims.owner.startswith(_OWNER, autoescape=True)


def _open(
    connection: sa.Connection, now: float, key: str, provider: str, model: str, base_url: str, holder: str
) -> Row:
    row = (key, provider, model, base_url, "open", 0, now, None, None, None)
    values = dict(zip((column.name for column in _FIELDS), row, strict=True))
    connection.execute(sa.insert(tables.batches).values(**values, holder=holder, held_until=now + HOLD_S))
    return row


def _add(connection: sa.Connection, now: float, key: str, holder: str, rows: Sequence[Row]) -> list[str]:
    if not _is_held(connection, key, holder):
        return []
    mine = sa.and_(_claims.owner == holder, _claims.request_id.in_([row[0] for row in rows]))
    taken = sa.update(tables.claims).where(mine).values(owner=_OWNER + key, expires_at=now + KEPT_S)
    added = set(connection.execute(taken.returning(_claims.request_id)).scalars())
    records = [
        {"request_id": name, "batch_key": key, "attempt": attempt, "request": text}
        for name, attempt, text in rows
        if name in added
    ]
    if records:
        # Left from a batch that was not collected before its claims expired.
        connection.execute(sa.delete(tables.batch_requests).where(_requests.request_id.in_(sorted(added))))
        connection.execute(sa.insert(tables.batch_requests), records)
        more = _batches.requests + len(records)
        connection.execute(sa.update(tables.batches).where(_batches.batch_key == key).values(requests=more))
    return sorted(added)


def _note(connection: sa.Connection, now: float, key: str, holder: str, values: Mapping[str, Any]) -> bool:
    changed = sa.update(tables.batches).where(_held_by(key, holder)).values(**values, held_until=now + HOLD_S)
    return connection.execute(changed).rowcount == 1


def _adopt(connection: sa.Connection, now: float, provider: str, model: str, holder: str) -> list[Row]:
    free = sa.and_(
        _batches.state == "open",
        _batches.provider == provider,
        _batches.model == model,
        sa.or_(_batches.holder == holder, _batches.held_until < now),
    )
    adopted = sa.update(tables.batches).where(free).values(holder=holder, held_until=now + HOLD_S)
    return [tuple(row) for row in connection.execute(adopted.returning(*_FIELDS))]


def _close(connection: sa.Connection, now: float, key: str, holder: str, state: str, keep: Sequence[str]) -> bool:
    if not _is_held(connection, key, holder):
        return False
    theirs = _claims.owner == _OWNER + key
    for start in range(0, len(keep), CHUNK):
        kept = sa.and_(theirs, _claims.request_id.in_(keep[start : start + CHUNK]))
        connection.execute(sa.update(tables.claims).where(kept).values(owner=holder, expires_at=now + HOLD_S))
    connection.execute(sa.delete(tables.claims).where(theirs))
    connection.execute(sa.delete(tables.batch_requests).where(_requests.batch_key == key))
    ended = sa.update(tables.batches).where(_batches.batch_key == key)
    connection.execute(ended.values(state=state, closed_at=now, held_until=0.0))
    return True


def _held_by(key: str, holder: str) -> sa.ColumnElement[bool]:
    return sa.and_(_batches.batch_key == key, _batches.holder == holder, _batches.state == "open")


def _is_held(connection: sa.Connection, key: str, holder: str) -> bool:
    return connection.execute(sa.select(sa.func.count()).where(_held_by(key, holder))).scalar_one() == 1


CALLS: dict[str, Callable[..., Any]] = {
    "batch_open": _open,
    "batch_add": _add,
    "batch_note": _note,
    "batch_adopt": _adopt,
    "batch_close": _close,
}
"""Calls of ``LedgerStore.write``; each is passed a connection in a transaction, the time, and its own arguments."""
