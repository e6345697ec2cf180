"""A ledger's upkeep: what was spent, a copy as Parquet and back, pruning, a check of every row.

All of it works beside jobs that write: rows are read by ranges of their key and deleted a few thousand at a
time, so nobody waits long and memory stays bounded whatever the ledger holds.
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

CHUNK = 2000  # rows read, or deleted, together
FAR_S = 86_400.0  # a lease lasts a minute; a claim a day off is a leftover, or a wrong clock's
SHOWN = 10  # findings of one kind
_FREED_PAGES = 1000  # given back in one transaction

# One row an answer, its request before it.
EXPORT = pa.schema([*REQUEST, *(column for column in RESPONSE if column.name not in ("request_id", "error"))])


@dataclass(frozen=True, slots=True)
class Spent:
    """What one model answered for one stage of one task on one day (UTC)."""

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
    """Answers that are, or would be, deleted, what they had cost, and claims that nobody holds any more."""

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
    """What the ledger takes on its disk, SQLite's write-ahead log not counted."""
    with database.read() as connection:
        if database.is_sqlite:
            pages, size = (connection.exec_driver_sql(f"PRAGMA page_{name}").scalar_one() for name in ("count", "size"))
            return pages * size
        return connection.execute(sa.text("SELECT pg_total_relation_size('responses')")).scalar_one()


def export(database: LedgerDatabase, path: Path) -> int:
    """Write all answers with their requests to a Parquet file of the schema ``EXPORT``; how many.

    The file appears when it is whole. Raises ``LedgerError`` where a row is broken, ``OSError`` where the file
    can't be written.
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
    """Take in the answers of a file that ``export`` wrote: how many it holds, and how many of them are new here.

    What is known stays as it is. Raises ``InputError`` where the file is none, or a request in it is not the one that
    its id stands for; what came before is then taken in.
    """
    count = new = 0
    where = f"FILE = {str(path)!r}"
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in EXPORT.names if name not in file.schema_arrow.names]
            if missing:
                raise InputError([Problem(where, f"is no export of a ledger: it has no column {missing[0]!r}")])
            for batch in file.iter_batches(CHUNK, columns=EXPORT.names):
                table = pa.Table.from_batches([batch])
                requests, responses = from_table(table, Request), from_table(table, Response)
                ids = table["request_id"].to_pylist()
                for request, told in zip(requests, ids, strict=True):
                    if request.request_id != told:
                        raise InputError([Problem(where, f"answer {told}: its request is not the one of that id")])
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
    """Delete the answers given before ``before`` (seconds since 1970) and claims that ended long ago."""
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
    """Give the space of deleted rows back: SQLite's file shrinks, PostgreSQL uses it for new rows."""
    with database.explained("its space can't be reclaimed"):
        if not database.is_sqlite:
            with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                connection.execute(sa.text("VACUUM (ANALYZE) responses, claims"))
            return
        with contextlib.closing(database.engine.raw_connection()) as raw:
            cursor = raw.cursor()

            def ask(pragma: str) -> Any:
                return cursor.execute(f"PRAGMA {pragma}").fetchall()

            if ask("auto_vacuum") != [(2,)]:  # made before ledgers were set up for giving back bit by bit
                ask("auto_vacuum=INCREMENTAL")
                cursor.execute("VACUUM")
            while ask("freelist_count") != [(0,)]:
                ask(f"incremental_vacuum({_FREED_PAGES})")
            ask("wal_checkpoint(TRUNCATE)")


def verify(database: LedgerDatabase) -> list[str]:
    """All that is wrong with a ledger, a line each; nothing is changed.

    SQLite's own check; every stored request is the one its id says; JSON and figures can be read; no claims that
    ended, or that will end, a day off.
    """
    findings = _damage(database)
    kinds: Counter[str] = Counter()
    for rows in _ranges(database):
        for row in rows:
            for what in _faults(row):
                kinds[what] += 1
                if kinds[what] <= SHOWN:
                    findings.append(f"answer {row[0]}: {what}")
    findings += [f"... and {count - SHOWN} more answers: {what}" for what, count in kinds.items() if count > SHOWN]
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
            yield "its request is not the one that its id stands for"
    except (ValueError, TypeError, KeyError, AttributeError):
        yield "its request can't be read"
    try:
        logprobs = to_response(tuple(record[name] for name in ANSWER_COLUMNS)).choice_logprobs
        if not all(value is None or isinstance(value, int | float) for value in logprobs):
            yield "its log-probabilities are no numbers"
    except (ValueError, TypeError):
        yield "its log-probabilities can't be read"
    figures = [record[name] for name in ("prompt_tokens", "completion_tokens", "cost_usd", "latency_s", "created_at")]
    if not all(isinstance(figure, int | float) and math.isfinite(figure) and figure >= 0 for figure in figures):
        yield "its tokens, cost or times are no possible figures"


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
            f"claims: {past} ended more than a day ago, left by jobs that were killed; `potstill ledger prune` clears them"
        )
    if ahead:
        findings.append(
            f"claims: {ahead} end more than a day from now, so nobody else can ask those requests; is a clock wrong?"
        )
    return findings


def _left_over() -> sa.ColumnElement[bool]:
    return tables.claims.c.expires_at < time.time() - FAR_S


def _ranges(database: LedgerDatabase) -> Iterator[list[Row]]:
    """All rows in the order of their ids, ``CHUNK`` at a time; no transaction stays open between them."""
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
            "`potstill ledger verify` tells which, and what is wrong"
        ) from error
