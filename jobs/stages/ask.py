"""Sends a stage's requests to the teacher pool, counts progress and costs, and writes the tables."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.teachers.answers import ANSWER
from actors.teachers.batch_queue import BatchProgress
from actors.teachers.pool import TeacherPool, chunks
from jobs.run.folder import TableStream
from jobs.run.job import Job
from jobs.runtime.progress import Meter
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.error_rate import ErrorRate
from potstill.errors import StageError
from potstill.labels.answered import PLANNED, Answered
from potstill.rows import REQUEST, Request, to_table

MAX_ERROR_RATE = 0.1  # for teachers without that setting
EVERY_S = 2.0  # between checks of running batches
PLANNED_TOGETHER = 1000  # requests per table; stopping a job waits for at most one


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests of a stage and their cost; ``new_*`` counts answers that the ledger did not have.

    ``prompt_tokens``, ``completion_tokens`` and ``cost_usd`` cover all answers, regardless of which run paid for them;
    ``new_tokens`` is prompt and completion tokens together.
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
    cost_usd: float = 0.0

    @property
    def reused_requests(self) -> int:
        """Number of answers from the ledger."""
        return self.requests - self.new_requests

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def ask(
    job: Job,
    pool: TeacherPool,
    part: str,
    requests: Iterable[Request],
    expected: int,
    meter: Meter,
) -> tuple[Answered, Usage]:
    """The plan with its answers, and the usage.

    Writes ``request/<part>`` and ``response/<part>`` while it runs; prompts are not kept in memory. ``expected``: at most
    how many requests there are. Equal requests are asked once; failed ones get null answers. Raises ``StageError`` with
    the most common error as soon as the share of failures exceeds ``teacher.max_error_rate`` and running requests are
    in the ledger.
    """
    start = time.monotonic()
    meter.expect(expected)
    teacher = job.config.teacher
    allowed = teacher.max_error_rate if isinstance(teacher, OpenAITeacher) else MAX_ERROR_RATE
    usage, errors = Usage(), ErrorRate(allowed, expected)
    plan = [REQUEST.empty_table().select(PLANNED)]
    with (
        job.run.stream("request", part, REQUEST) as asked,
        job.run.stream("response", part, ANSWER) as answered,
        closing(pool.stream(_distinct(requests, plan, asked), f"{job.run.path}/asking/{part}")) as batches,
        watched(pool, meter),
    ):
        for batch in batches:
            answered.write(batch)
            used = _usage(batch)
            usage += used
            errors.add(used.requests, used.new_requests, batch["error"].drop_null().to_pylist())
            meter.count(
                new=used.new_requests,
                reused=used.reused_requests,
                tokens=used.new_tokens,
                cost_usd=used.new_cost_usd,
                retries=used.retries,
            )
            if reason := errors.too_many():
                pool.wind_down(reason)
                raise _stopped(part, reason)
    meter.expect(usage.requests - expected)
    if reason := errors.too_many(at_end=True):
        raise _stopped(part, reason)
    found = Answered(pa.concat_tables(plan), job.run.open_table("response", part))
    return found, replace(usage, seconds=time.monotonic() - start)


def _distinct(requests: Iterable[Request], plan: list[pa.Table], asked: TableStream) -> Iterator[pa.Table]:
    """Tables of the distinct requests. Appends the ``PLANNED`` columns of all requests to ``plan``; writes the tables to ``asked``."""
    seen: set[bytes] = set()
    for some in chunks(requests, PLANNED_TOGETHER):
        table = to_table(some, Request)
        plan.append(table.select(PLANNED))
        new = []
        for request in some:
            name = bytes.fromhex(request.request_id)
            new.append(name not in seen)
            seen.add(name)
        table = table.filter(pa.array(new))
        asked.write(table)
        yield table


def _usage(table: pa.Table) -> Usage:
    """The usage of some answers, without the time."""
    fresh = table.filter(pc.invert(table["reused"]))
    return Usage(
        requests=table.num_rows,
        new_requests=fresh.num_rows,
        failed=table.num_rows - table["error"].null_count,
        prompt_tokens=_sum(table["prompt_tokens"]),
        completion_tokens=_sum(table["completion_tokens"]),
        new_cost_usd=float(_sum(fresh["cost_usd"])),
        new_tokens=_sum(fresh["prompt_tokens"]) + _sum(fresh["completion_tokens"]),
        retries=_sum(table["retries"]),
        cost_usd=float(_sum(table["cost_usd"])),
    )


def _sum(column: pa.ChunkedArray) -> Any:
    return pc.sum(column).as_py() or 0


def _stopped(part: str, reason: str) -> StageError:
    return StageError(
        f"{part}: {reason.rstrip('.')}. The answers so far are in the ledger; rerun the command to resume."
    )


@contextlib.contextmanager
def watched(pool: TeacherPool, meter: Meter, every_s: float = EVERY_S) -> Iterator[None]:
    """Shows in the meter's note the progress of batches, or what requests are waiting for."""
    left = threading.Event()

    def watch() -> None:
        while not left.wait(every_s):
            progress = pool.batch_progress()
            note = format_batches(progress) if progress else pool.held_because() or ""
            if not left.is_set():
                meter.note(note)

    thread = threading.Thread(target=watch, name="batches", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        meter.note("")


def format_batches(progress: BatchProgress) -> str:
    """``2 batches 1,204/4,000 (in_progress)``."""
    word = "batch" if progress.batches == 1 else "batches"
    return f"{progress.batches} {word} {progress.done:,}/{progress.total:,} ({', '.join(progress.states)})"
