"""Asking a stage's requests: memory use, tables, and what remains after a failure."""

from __future__ import annotations

import tracemalloc
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from actors.teachers.answers import Answer, to_answer_table
from jobs.run import folder as runs
from jobs.run.folder import Run
from jobs.runtime.progress import Meter
from jobs.stages import ask as asking
from potstill.config import parse
from potstill.errors import StageError, TeacherError
from potstill.labels.answered import Answered
from potstill.rows import Message, Request, Response, Sampling

PROMPT = "Write a question. " * 200  # 3,600 characters


class Pool:
    """Answers each table in batches of 50."""

    def batch_progress(self) -> None:
        """No batches."""

    def held_because(self) -> None:
        """Nothing."""

    def wind_down(self, reason: str) -> None:
        """No-op: no request is in flight."""

    def stream(self, tables: Iterable[pa.Table], folder: str | None = None) -> Generator[pa.Table, None, None]:
        for table in tables:
            names = table["request_id"].to_pylist()
            for start in range(0, len(names), 50):
                yield to_answer_table(
                    [Answer(Response(name, "a text"), reused=False) for name in names[start : start + 50]]
                )


class BreakingPool(Pool):
    """Fails after 120 answers."""

    def stream(self, tables: Iterable[pa.Table], folder: str | None = None) -> Generator[pa.Table, None, None]:
        for done, batch in enumerate(super().stream(tables)):
            if done == 2:
                yield batch.slice(0, 20)
                raise TeacherError("the teacher broke off")
            yield batch


class FailingPool(Pool):
    """Answers 300 requests; the others fail after three attempts."""

    wound_down = ""
    given = 0

    def stream(self, tables: Iterable[pa.Table], folder: str | None = None) -> Generator[pa.Table, None, None]:
        for table in tables:
            for name in table["request_id"].to_pylist():
                self.given += 1
                error = f"HTTP 400: no room for {self.given} tokens" if self.given > 300 else None
                yield to_answer_table([Answer(Response(name, "a text", error=error), reused=False, retries=2)])

    def wind_down(self, reason: str) -> None:
        self.wound_down = reason


def plan(count: int) -> Iterator[Request]:
    for i in range(count):
        yield Request("s", "t", "s", "chat", "p", "m", None, (Message("user", f"{PROMPT}{i}"),), Sampling())


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(asking, "PLANNED_TOGETHER", 500)
    monkeypatch.setattr(runs, "ROW_GROUP", 500)
    return SimpleNamespace(run=Run(str(tmp_path), "run"), config=parse({"task": "t"}))


def ask(job: Any, pool: Any, count: int) -> Answered:
    return asking.ask(job, pool, "generate-1", plan(count), count, Meter())[0]


def peak_bytes(job: Any, count: int) -> int:
    """Peak memory of Python plus that of Arrow, an upper bound on their joint peak."""
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counting)
    tracemalloc.start()
    try:
        assert sum(text == "a text" for (text,) in ask(job, Pool(), count).rows("text")) == count
        return tracemalloc.get_traced_memory()[1] + counting.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)


def peaks(folder: str) -> tuple[int, int]:
    """``peak_bytes`` of 2,000 and 10,000 requests."""
    asking.PLANNED_TOGETHER = runs.ROW_GROUP = 500
    job = SimpleNamespace(run=Run(folder, "run"), config=parse({"task": "t"}))
    ask(job, Pool(), 10)  # loads modules
    return peak_bytes(job, 2_000), peak_bytes(job, 10_000)


@pytest.mark.slow
def test_prompts_are_not_kept_in_memory(tmp_path: Path) -> None:
    """From 2,000 to 10,000 requests, memory grows by ids and answers only.

    In a process of its own: Ray's threads, which the tests' process may have, crash tracemalloc (cpython issue 128679).
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        few, many = process.submit(peaks, str(tmp_path)).result()
    assert (many - few) / 8_000 < len(PROMPT) / 4


def test_tables_are_written_in_large_pieces(job: Any) -> None:
    ask(job, Pool(), 1_700)
    for table in ("request", "response"):
        file = pa.parquet.ParquetFile(f"{job.run.path}/{table}/generate-1.parquet")
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [500, 500, 500, 200]
    assert job.run.read(Request, "generate-1") == list(plan(1_700))


def test_answers_before_a_failure_are_readable(job: Any) -> None:
    with pytest.raises(TeacherError):
        ask(job, BreakingPool(), 1_000)
    assert [row.text for row in job.run.read(Response, "generate-1")] == ["a text"] * 120
    assert job.run.read(Request, "generate-1") == list(plan(1_000))[:500]
    assert not list(Path(job.run.path).rglob("*.new"))


def test_too_many_failures_stop_a_stage_while_it_runs(job: Any) -> None:
    pool, meter = FailingPool(), Meter()
    with pytest.raises(StageError) as stopped:
        asking.ask(job, pool, "generate-1", plan(5_000), 5_000, meter)
    assert str(stopped.value).startswith("generate-1: ")
    assert "requests failed (teacher.max_error_rate = 0.1); most common error" in str(stopped.value)
    assert "HTTP 400: no room for 301 tokens" in str(stopped.value)
    assert 300 + 50 < pool.given <= 500
    assert pool.wound_down in str(stopped.value)
    assert len([row for row in job.run.read(Response, "generate-1") if row.error is None]) == 300
    assert meter.progress().retries == 2 * pool.given
