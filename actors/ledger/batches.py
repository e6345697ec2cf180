"""What the ledger knows of batches that run at an endpoint: so that none is paid for twice, whoever dies.

A batch is recorded before it exists: its requests' claims go over to it, and stay with it until it is closed. Whoever
looks after it (its holder) keeps a lease on it that ends with his process; then another takes it over. What he does at
the endpoint is noted before (``attempted_at``) and after (``file_id``, ``batch_id``), so a successor knows where to
begin: an attempt without a ``batch_id`` may have made a batch, which is then found by its key among the endpoint's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from actors.ledger import tables
from actors.ledger.tables import Row

HOLD_S = 60.0
KEPT_S = 30 * 86_400.0  # so long endpoints keep what a batch has answered; nobody can collect it later
CHUNK = 1000  # requests written together

_batches, _requests, _claims = tables.batches.c, tables.batch_requests.c, tables.claims.c
_OWNER = "batch-"


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A row of the table. Times are seconds since 1970; ``attempted_at``: last try to create it at the endpoint."""

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
    """See ``under_way``."""
    of_teacher = sa.and_(_batches.state == "open", _batches.provider == provider, _batches.model == model)
    return [tuple(row) for row in connection.execute(sa.select(*_FIELDS).where(of_teacher))]


def requests_of(connection: sa.Connection, key: str) -> list[Row]:
    """See ``BatchBook.members``."""
    query = sa.select(_requests.attempt, _requests.request).where(_requests.batch_key == key)
    return [tuple(row) for row in connection.execute(query.order_by(_requests.request_id))]


def hold(connection: sa.Connection, owner: str, until: float) -> None:
    """Move the end of the leases on batches of ``owner`` and of all below it."""
    mine = sa.and_(_batches.state == "open", tables.is_below(tables.batches.c.holder, owner))
    connection.execute(sa.update(tables.batches).where(mine).values(held_until=until))


def prune(connection: sa.Connection, before: float) -> None:
    """Forget batches that were closed before ``before``."""
    connection.execute(sa.delete(tables.batches).where(_batches.closed_at < before))


def is_of_a_batch() -> sa.ColumnElement[bool]:
    """Of a claim: whether a batch has it."""
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
        # A leftover of a batch that nobody collected in time, so that its claims ended.
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
"""Calls of ``LedgerStore.write``: each takes a connection in a transaction, the time, and its own arguments."""
