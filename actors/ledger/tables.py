"""The ledger's tables, and the conversion of requests and responses to rows.

Rows cross process borders as the tuples that the database takes, in the order of ``COLUMNS``: the many callers convert
JSON and dataclasses, not the one process that owns the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from potstill.rows import RESPONSE, Request, Response, Sampling, from_record

SCHEMA_VERSION = 1

Row = tuple[Any, ...]

metadata = sa.MetaData()
meta = sa.Table("meta", metadata, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.String))
responses = sa.Table(
    "responses",
    metadata,
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
claims = sa.Table(
    "claims",
    metadata,
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("owner", sa.String, nullable=False, index=True),
    sa.Column("expires_at", sa.Float, nullable=False),
)

# Batches at an endpoint, and their requests. The owner of the claim on such a request is the batch.
batches = sa.Table(
    "teacher_batches",
    metadata,
    sa.Column("batch_key", sa.String, primary_key=True),
    sa.Column("provider", sa.String, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("base_url", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("requests", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("file_id", sa.String),
    sa.Column("attempted_at", sa.Float),
    sa.Column("batch_id", sa.String),
    sa.Column("closed_at", sa.Float),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("held_until", sa.Float, nullable=False),
)
batch_requests = sa.Table(
    "teacher_batch_requests",
    metadata,
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("batch_key", sa.String, nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
)

COLUMNS = tuple(column.name for column in responses.columns)
# The columns of a ``Response`` in the order of its fields. There is none for ``error``: failures are not stored.
ANSWER_COLUMNS = ("request_id", *COLUMNS[COLUMNS.index("text") :])
_OWN_COLUMNS = ("request_id", "stage", "task", "provider", "model")
_CONTENT = tuple(field.name for field in fields(Request) if field.name not in _OWN_COLUMNS)
_SAMPLING = tuple(field.name for field in fields(Sampling))
_REQUEST_COLUMNS = COLUMNS[: COLUMNS.index("text")]
_LOGPROBS = ANSWER_COLUMNS.index("choice_logprobs")


def is_below(column: sa.ColumnElement[str], owner: str) -> sa.ColumnElement[bool]:
    """Whether a name is ``owner`` or below it (``<owner>-...``)."""
    return sa.or_(column == owner, column.startswith(f"{owner}-", autoescape=True))


@dataclass(frozen=True, slots=True)
class Taken:
    """A look-up of requests: answered before, claimed for the caller (``mine``), or claimed by ``others``."""

    known: tuple[Response, ...]
    mine: tuple[str, ...]
    others: tuple[str, ...]


def to_rows(requests: Iterable[Request], answers: Sequence[Response]) -> tuple[list[Row], list[str]]:
    """Rows of the good answers, and the ids of all."""
    by_id = {request.request_id: request for request in requests}
    good = [_row(by_id[answer.request_id], answer) for answer in answers if answer.error is None]
    return good, [answer.request_id for answer in answers]


def to_response(row: Row) -> Response:
    """The response in a row of ``ANSWER_COLUMNS``. Raises ``ValueError`` if its JSON is invalid."""
    logprobs = row[_LOGPROBS]
    parsed = () if logprobs == "[]" else tuple(json.loads(logprobs))
    values: Row = (*row[:_LOGPROBS], parsed, *row[_LOGPROBS + 1 :])
    return Response(*values)


def to_response_table(rows: Sequence[Row]) -> pa.Table:
    """Rows of ``ANSWER_COLUMNS`` as a table of responses. Raises ``ValueError`` if their JSON is invalid."""
    if not rows:
        return RESPONSE.empty_table()
    columns = dict(zip(ANSWER_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    # Parsing one array of arrays takes a tenth of the time of parsing each.
    columns["choice_logprobs"] = json.loads(f"[{','.join(columns['choice_logprobs'])}]")
    columns["error"] = [None] * len(rows)
    return pa.Table.from_pydict(columns, schema=RESPONSE)


def to_taken(found: tuple[list[Row], list[str], list[str]]) -> Taken:
    """``Taken`` from the result of ``LedgerStore.write`` for a ``take``."""
    known, mine, others = found
    return Taken(tuple(map(to_response, known)), tuple(mine), tuple(others))


def to_request(row: Row) -> Request:
    """The request in a row of ``COLUMNS``. Raises ``ValueError``, ``TypeError`` or ``KeyError`` if it is invalid."""
    record = dict(zip(COLUMNS, row, strict=True))
    return from_record({**json.loads(record["request"]), **{name: record[name] for name in _OWN_COLUMNS[1:]}}, Request)


def pack_request(request: Request) -> str:
    """A request as text, for ``unpack_request``."""
    return json.dumps(_request_row(request), ensure_ascii=False)


def unpack_request(text: str) -> Request:
    """The request of ``pack_request``. Raises ``ValueError``, ``TypeError`` or ``KeyError`` if it is invalid."""
    answer = (None,) * (len(COLUMNS) - len(_REQUEST_COLUMNS))
    return to_request((*json.loads(text), *answer))


def _request_row(request: Request) -> Row:
    # Not `dataclasses.asdict`: its deep copies took three quarters of a commit's time.
    content = {name: getattr(request, name) for name in _CONTENT}
    content["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
    content["sampling"] = {name: getattr(request.sampling, name) for name in _SAMPLING}
    return (
        request.request_id,
        request.stage,
        request.task,
        request.provider,
        request.model,
        json.dumps(content, ensure_ascii=False),
    )


def _row(request: Request, answer: Response) -> Row:
    return (
        *_request_row(request),
        answer.text,
        answer.finish_reason,
        json.dumps(answer.choice_logprobs) if answer.choice_logprobs else "[]",
        answer.residual_mass,
        answer.prompt_tokens,
        answer.completion_tokens,
        answer.cost_usd,
        answer.latency_s,
        answer.created_at,
    )
