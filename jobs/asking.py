"""Put a stage's requests to the teacher pool: progress counted, tables written, costs added up."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.pool import TeacherPool
from jobs.batch_watch import watched
from jobs.job import Job
from jobs.progress import Meter
from potstill.errors import StageError
from potstill.rows import Request, Response, from_table
from potstill.teachers import OpenAITeacher

MAX_ERROR_RATE = 0.1
FORGIVEN = 9  # failures that are never too many, as long as anything was answered


@dataclass(frozen=True, slots=True)
class Usage:
    """What a stage asked and what that took; ``new_*`` is what the ledger did not have.

    ``prompt_tokens`` and ``completion_tokens`` are of all answers, ``new_tokens`` of both kinds of the new ones.
    """

    requests: int = 0
    new_requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    new_cost_usd: float = 0.0
    seconds: float = 0.0
    new_tokens: int = 0
    retries: int = 0

    @property
    def reused_requests(self) -> int:
        """How many answers the ledger had."""
        return self.requests - self.new_requests

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def ask(
    job: Job, pool: TeacherPool, part: str, requests: Sequence[Request], meter: Meter
) -> tuple[dict[str, Response], Usage]:
    """Answers by request id, and what they took. Writes ``request/<part>`` and ``response/<part>``.

    Requests of the same content are asked once. Raises ``StageError`` with the commonest error when too large a
    share of the requests failed (``teacher.max_error_rate``); single failures only lack in the result.
    """
    distinct = list({request.request_id: request for request in requests}.values())
    job.run.write(Request, part, distinct)
    start = time.monotonic()
    meter.expect(len(distinct))

    def on_batch(batch: pa.Table) -> None:
        used = _usage(batch)
        meter.count(
            new=used.new_requests,
            reused=used.reused_requests,
            tokens=used.new_tokens,
            cost_usd=used.new_cost_usd,
            retries=used.retries,
        )

    with watched(pool, meter):
        table = pool.ask(distinct, on_batch)
    usage = replace(_usage(table), seconds=time.monotonic() - start)
    job.run.write_table("response", part, table)
    responses = from_table(table, Response)
    teacher = job.config.teacher
    _stop_on_errors(part, responses, teacher.max_error_rate if isinstance(teacher, OpenAITeacher) else MAX_ERROR_RATE)
    return {response.request_id: response for response in responses if response.error is None}, usage


def _usage(table: pa.Table) -> Usage:
    """What some answers took, but for the time."""
    fresh = table.filter(pc.invert(table["reused"]))
    return Usage(
        requests=table.num_rows,
        new_requests=fresh.num_rows,
        failed=table.num_rows - table["error"].null_count,
        prompt_tokens=_sum(table["prompt_tokens"]),
        completion_tokens=_sum(table["completion_tokens"]),
        new_cost_usd=float(_sum(fresh["cost_usd"])),
        new_tokens=_sum(fresh["prompt_tokens"]) + _sum(fresh["completion_tokens"]),
    )


def _sum(column: pa.ChunkedArray) -> Any:
    return pc.sum(column).as_py() or 0


def _stop_on_errors(part: str, responses: Sequence[Response], allowed: float) -> None:
    errors = collections.Counter(response.error for response in responses if response.error is not None)
    failed = sum(errors.values())
    # A later round may hold a few requests only, of which one may well fail; nothing but failures is no chance.
    if failed > max(allowed * len(responses), FORGIVEN if failed < len(responses) else 0):
        commonest, count = errors.most_common(1)[0]
        raise StageError(
            f"{part}: {failed} of {len(responses)} requests failed; the commonest error ({count} times): {commonest}. "
            "What was answered is in the ledger; the same command goes on from there."
        )
