"""A ledger's upkeep: spending, export and import as Parquet, pruning, verification.

All of it works while jobs write: rows are read by key range and deleted a few thousand at a time, so waits are short
and memory is bounded.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from actors.ledger import batches as ledger_batches
from actors.ledger import tables
from actors.ledger.database import LedgerDatabase
from actors.ledger.store import LedgerStore
from actors.ledger.tables import ANSWER_COLUMNS, COLUMNS, Row, to_request, to_response
from potstill.errors import InputError, Problem
from potstill.rows import REQUEST, RESPONSE, Request, Response, from_table

CHUNK = 2000  # rows read or deleted together
FAR_S = 86_400.0  # leases last a minute: a claim a day off is left over, or a clock is wrong
SHOWN = 10  # findings shown per kind
_FREED_PAGES = 1000  # per transaction

# One row per answer: its request, then the answer.
EXPORT = pa.schema([*REQUEST, *(column for column in RESPONSE if column.name not in ("request_id", "error"))])


@dataclass(frozen=True, slots=True)
class Spent:
    """Answers of one model for one stage of one task on one day (UTC)."""

    model: str
    stage: str
    task: str
    day: str
    answers: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Pruned:
    """Answers that are (or would be) deleted, their cost, and expired claims."""

    answers: int
    cost_usd: float
    claims: int


def spent(database: LedgerDatabase) -> list[Spent]:
    """All answers, counted by model (with its provider), stage, task and day."""
    columns = tables.responses.c
    when = columns.created_at
    day: sa.ColumnElement[str] = (
        sa.func.date(when, "unixepoch")
        if database.is_sqlite
        else sa.func.to_char(sa.func.timezone("UTC", sa.func.to_timestamp(when)), "YYYY-MM-DD")
    )
    keys = (columns.provider, columns.model, columns.stage, columns.task, day.label("day"))
    sums = [sa.func.sum(column) for column in (columns.prompt_tokens, columns.completion_tokens, columns.cost_usd)]
    query = sa.select(*keys, sa.func.count(), *sums).group_by(*keys).order_by(*keys)
    with database.read() as connection:
        return [
            Spent(f"{provider} {model}", stage, task, str(date), count, int(prompt), int(completion), float(cost))
            for provider, model, stage, task, date, count, prompt, completion, cost in connection.execute(query)
        ]


def size_bytes(database: LedgerDatabase) -> int:
    """The ledger's size on disk, without SQLite's write-ahead log."""
    with database.read() as connection:
        if database.is_sqlite:
            pages, size = (connection.exec_driver_sql(f"PRAGMA page_{name}").scalar_one() for name in ("count", "size"))
            return pages * size
        return connection.execute(sa.text("SELECT pg_total_relation_size('responses')")).scalar_one()


def export(database: LedgerDatabase, path: Path) -> int:
    """Write all answers with their requests to a Parquet file of schema ``EXPORT``. Returns their number.

    The file appears when it is complete. Raises ``LedgerError`` for an invalid row, ``OSError`` if the file can't be
    written.
    """
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    count = 0
    try:
        with pq.ParquetWriter(part, EXPORT, compression="zstd") as writer:
            for rows in _ranges(database):
                writer.write_table(_table(database, rows))
                count += len(rows)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def restore(store: LedgerStore, path: Path) -> tuple[int, int]:
    """Import the answers of a file that ``export`` wrote. Returns how many it holds and how many were new.

    Stored answers stay as they are. Raises ``InputError`` if the file is not an export or a request does not match its
    id; the answers before it stay imported.
    """
    count = new = 0
    where = f"FILE = {str(path)!r}"
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in EXPORT.names if name not in file.schema_arrow.names]
            if missing:
                raise InputError([Problem(where, f"is not an export of a ledger: it has no column {missing[0]!r}")])
            for batch in file.iter_batches(CHUNK, columns=EXPORT.names):
                table = pa.Table.from_batches([batch])
                requests, responses = from_table(table, Request), from_table(table, Response)
                ids = table["request_id"].to_pylist()
                for request, name in zip(requests, ids, strict=True):
                    if request.request_id != name:
                        raise InputError([Problem(where, f"answer {name}: its request does not match its id")])
                new += len(set(ids)) - store.count_known(ids)
                store.commit(requests, responses)
                count += len(ids)
    except FileNotFoundError:
        raise InputError([Problem(where, "no such file")]) from None
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise InputError([Problem(where, f"can't be read as an export: {str(error).splitlines()[0]}")]) from error
    return count, new


def count_older(database: LedgerDatabase, before: float) -> Pruned:
    """What ``prune`` would delete."""
    columns = tables.responses.c
    old = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(columns.cost_usd), 0.0)).where(
        columns.created_at < before
    )
    with database.read() as connection:
        answers, cost = connection.execute(old).one()
        claims = connection.execute(
            sa.select(sa.func.count()).select_from(tables.claims).where(_left_over())
        ).scalar_one()
    return Pruned(answers, float(cost), claims)


def prune(database: LedgerDatabase, before: float) -> Pruned:
    """Delete answers older than ``before`` (seconds since 1970) and claims that expired long ago."""
    columns = tables.responses.c
    some = sa.select(columns.request_id).where(columns.created_at < before).limit(CHUNK)
    gone = sa.delete(tables.responses).where(columns.request_id.in_(some)).returning(columns.cost_usd)
    answers, cost = 0, 0.0
    while True:
        with database.write() as connection:
            costs = connection.execute(gone).scalars().all()
        if not costs:
            break
        answers, cost = answers + len(costs), cost + math.fsum(costs)
    with database.write() as connection:
        claims = connection.execute(sa.delete(tables.claims).where(_left_over())).rowcount
        ledger_batches.prune(connection, before)
    return Pruned(answers, cost, claims)


def reclaim(database: LedgerDatabase) -> None:
    """Release the space of deleted rows: SQLite's file shrinks, PostgreSQL reuses it."""
    with database.explained("its space can't be reclaimed"):
        if not database.is_sqlite:
            with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                connection.execute(sa.text("VACUUM (ANALYZE) responses, claims"))
            return
        with contextlib.closing(database.engine.raw_connection()) as raw:
            cursor = raw.cursor()

            def ask(pragma: str) -> Any:
                return cursor.execute(f"PRAGMA {pragma}").fetchall()

            if ask("auto_vacuum") != [(2,)]:  # a ledger from before incremental vacuum was set
                ask("auto_vacuum=INCREMENTAL")
                cursor.execute("VACUUM")
            while ask("freelist_count") != [(0,)]:
                ask(f"incremental_vacuum({_FREED_PAGES})")
            ask("wal_checkpoint(TRUNCATE)")


def verify(database: LedgerDatabase) -> list[str]:
    """All faults of a ledger, one line each. Changes nothing.

    Runs SQLite's own check; checks that every request matches its id, that JSON and figures are valid, and that no
    claim expires more than a day before or after now.
    """
    findings = _damage(database)
    kinds: Counter[str] = Counter()
    for rows in _ranges(database):
        for row in rows:
            for fault in _faults(row):
                kinds[fault] += 1
                if kinds[fault] <= SHOWN:
                    findings.append(f"answer {row[0]}: {fault}")
    findings += [f"... and {count - SHOWN} more answers: {fault}" for fault, count in kinds.items() if count > SHOWN]
    return findings + _claim_faults(database)


def _damage(database: LedgerDatabase) -> list[str]:
    if not database.is_sqlite:
        return []
    with database.read() as connection:
        said = connection.exec_driver_sql(f"PRAGMA integrity_check({SHOWN})").scalars().all()
    return [] if said == ["ok"] else [f"file: {line}" for line in "\n".join(said).splitlines()]


def _faults(row: Row) -> Iterator[str]:
    record = dict(zip(COLUMNS, row, strict=True))
    try:
        if to_request(row).request_id != record["request_id"]:
            yield "its request does not match its id"
    except (ValueError, TypeError, KeyError, AttributeError):
        yield "its request can't be read"
    try:
        logprobs = to_response(tuple(record[name] for name in ANSWER_COLUMNS)).choice_logprobs
        if not all(value is None or isinstance(value, int | float) for value in logprobs):
            yield "its log-probabilities are not numbers"
    except (ValueError, TypeError):
        yield "its log-probabilities can't be read"
    figures = [record[name] for name in ("prompt_tokens", "completion_tokens", "cost_usd", "latency_s", "created_at")]
    if not all(isinstance(figure, int | float) and math.isfinite(figure) and figure >= 0 for figure in figures):
        yield "its tokens, cost or times are not valid figures"


def _claim_faults(database: LedgerDatabase) -> list[str]:
    def count(connection: sa.Connection, which: sa.ColumnElement[bool]) -> int:
        return connection.execute(sa.select(sa.func.count()).select_from(tables.claims).where(which)).scalar_one()

    with database.read() as connection:
        past = count(connection, _left_over())
        ahead = count(
            connection, sa.and_(tables.claims.c.expires_at > time.time() + FAR_S, ~ledger_batches.is_of_a_batch())
        )
    findings = []
    if past:
        findings.append(
            f"claims: {past} expired more than a day ago, left by killed jobs; `potstill ledger prune` deletes them"
        )
    if ahead:
        findings.append(
            f"claims: {ahead} expire more than a day from now and block their requests; a clock may be wrong"
        )
    return findings


def _left_over() -> sa.ColumnElement[bool]:
    return tables.claims.c.expires_at < time.time() - FAR_S


def _ranges(database: LedgerDatabase) -> Iterator[list[Row]]:
    """All rows ordered by id, ``CHUNK`` at a time, each chunk in its own transaction."""
    key = tables.responses.c.request_id
    last = ""
    while True:
        with database.read() as connection:
            query = sa.select(tables.responses).where(key > last).order_by(key).limit(CHUNK)
            rows = [tuple(row) for row in connection.execute(query)]
        if not rows:
            return
        yield rows
        last = rows[-1][0]


def _table(database: LedgerDatabase, rows: list[Row]) -> pa.Table:
    records = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    try:
        for record in records:
            record |= {**json.loads(record["request"]), "choice_logprobs": json.loads(record["choice_logprobs"])}
        return pa.Table.from_pylist(records, schema=EXPORT)
    except (ValueError, TypeError) as error:
        raise database.error(
            f"one of the answers {rows[0][0]} to {rows[-1][0]} can't be read; "
            "`potstill ledger verify` says which and why"
        ) from error
