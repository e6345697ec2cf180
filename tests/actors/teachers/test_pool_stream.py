"""The pool as a stream: memory, look-ups in the ledger, and where batches go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from actors.ledger.handle import Ledger
from actors.ledger.store import LedgerStore
from actors.ledger.tables import to_response_table
from actors.teachers import pool as pool_module
from actors.teachers.pool import TeacherPool, _cut, chunks
from potstill.config import EmbeddedTeacher
from potstill.errors import TeacherError
from potstill.rows import Message, Request, Response, Sampling, from_table, to_table


def requests(count: int, words: str = "w") -> list[Request]:
    """Prompts with a few common prefixes, unordered."""
    return [
        Request(
            "generate",
            "t",
            "s",
            "list",
            "p",
            "m",
            None,
            (Message("user", f"{words} {i % 7}"),),
            Sampling(),
            occurrence=i,
        )
        for i in range(count)
    ]


def test_batches_group_prompts_by_prefix_and_repeat_none() -> None:
    wanted = requests(50)
    batches = [from_table(batch, Request) for batch in _cut(to_table(wanted, Request).slice(10), 8)]
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8]
    # Stable: equal prefixes keep the plan's order.
    expected = sorted(wanted[10:], key=lambda request: request.messages[0].content)
    assert [request for batch in batches for request in batch] == expected


def test_a_batch_leaves_the_rest_of_its_table_behind() -> None:
    table = to_table(requests(1000, "long " * 200), Request)
    (batch, *_) = _cut(table, 10)
    assert batch.get_total_buffer_size() < table.nbytes / 20


def test_ledger_rows_as_a_table_are_the_responses(tmp_path: Path) -> None:
    wanted = requests(4)
    answers = [
        Response(wanted[0].request_id, "a \u00e4", "stop", (-0.5, None), 0.25, 3, 4, 0.5, 0.1, 7.0),
        Response(wanted[1].request_id, "", None, (), None),
        Response(wanted[2].request_id, "c", "length", (-1.0,), None, 1, 2, 0.0, 0.0, 1.0),
    ]
    store = LedgerStore(f"sqlite:///{tmp_path}/ledger.db")
    store.commit(wanted, answers)
    rows = store.fetch_rows([request.request_id for request in wanted])
    store.close()
    assert sorted(from_table(to_response_table(rows), Response), key=lambda one: one.text) == sorted(
        answers, key=lambda one: one.text
    )
    assert to_response_table([]).equals(to_table([], Response))


@pytest.fixture
def pool(tmp_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[TeacherPool]:
    """Two processes that answer at once; every odd request of the first 400 is in the ledger."""

    # A class defined in a function is pickled by value: the workers can't import this file.
    class Instant:
        def __init__(self) -> None:
            self.batches: list[list[str]] = []

        def answer_table(self, asked: pa.Table) -> pa.Table:
            from actors.teachers.answers import Answer, to_answer_table

            names = asked["request_id"].to_pylist()
            self.batches.append(names)
            if any(
                content == "poison 0"
                for (message,) in asked["messages"].to_pylist()
                for content in [message["content"]]
            ):
                raise RuntimeError("out of order")
            return to_answer_table([Answer(Response(name, "new"), False) for name in names])

        def seen(self) -> list[list[str]]:
            return self.batches

    monkeypatch.setattr(pool_module, "LOOK_UP", 30)
    monkeypatch.setattr(pool_module, "CHUNK", 100)
    uri = f"sqlite:///{tmp_path}/ledger.db"
    store = LedgerStore(uri)
    odd = requests(400)[1::2]
    store.commit(odd, [Response(request.request_id, "old") for request in odd])
    store.close()
    made = TeacherPool(EmbeddedTeacher(batch_size=4), Ledger(uri))
    made.actors = [ray.remote(Instant).options(num_cpus=0).remote() for _ in range(2)]
    yield made
    made.close()


@pytest.mark.slow
def test_a_stream_is_read_as_it_is_answered(pool: TeacherPool) -> None:
    """Regardless of the stream's length, the pool reads at most a few tables ahead of its answers."""
    planned = answered = furthest = 0

    def plan() -> Iterator[pa.Table]:
        nonlocal planned
        for some in chunks(requests(2000), 30):  # a chunk is four of these
            planned += len(some)
            yield to_table(some, Request)

    texts: dict[str, str] = {}
    for batch in pool.stream(plan()):
        furthest = max(furthest, planned - answered)
        answered += batch.num_rows
        texts |= dict(zip(batch["request_id"].to_pylist(), batch["text"].to_pylist(), strict=True))
        assert batch["reused"].to_pylist() == [text == "old" for text in batch["text"].to_pylist()]
    assert answered == len(texts) == 2000
    assert texts == {one.request_id: "old" if i < 400 and i % 2 else "new" for i, one in enumerate(requests(2000))}
    # The table being answered, the one being looked up, and those in flight.
    assert furthest <= 3 * 120
    assert sum(len(batch) for one in ray.get([one.seen.remote() for one in pool.actors]) for batch in one) == 1800


@pytest.mark.slow
def test_an_abandoned_stream_is_read_no_further(pool: TeacherPool) -> None:
    planned = 0

    def plan() -> Iterator[pa.Table]:
        nonlocal planned
        for some in chunks(requests(2000), 10):
            planned += len(some)
            yield to_table(some, Request)

    batches = pool.stream(plan())
    next(batches)
    batches.close()
    read = planned
    time.sleep(0.5)
    assert planned == read < 400


@pytest.mark.slow
def test_one_process_sees_the_same_batches_every_time(pool: TeacherPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "CHUNK", 1000)
    pool.actors = pool.actors[:1]
    wanted = requests(600)
    for _ in range(2):
        pool.ask(iter(wanted))
    seen = ray.get(pool.actors[0].seen.remote())
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    by_id = {request.request_id: request.messages[0].content for request in wanted}
    contents = [by_id[name] for batch in seen[: len(seen) // 2] for name in batch]
    assert contents == sorted(contents)


@pytest.mark.slow
def test_many_requests_go_through_ray_data(pool: TeacherPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool hands out some before their number is known; Ray Data hands out the rest once, in bounded batches."""
    monkeypatch.setattr(pool_module, "LARGE", 300)
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "of an earlier run.parquet").write_bytes(b"broken off")
    wanted = requests(1000)
    tables = list(pool.stream((to_table(some, Request) for some in chunks(wanted, 100)), str(folder)))
    texts = {row["request_id"]: row["text"] for table in tables for row in table.to_pylist()}
    assert sum(table.num_rows for table in tables) == len(texts) == 1000
    assert texts == {one.request_id: "old" if i < 400 and i % 2 else "new" for i, one in enumerate(wanted)}
    seen = [batch for one in ray.get([one.seen.remote() for one in pool.actors]) for batch in one]
    assert sum(map(len, seen)) == 800
    assert max(map(len, seen)) <= 4
    assert all(ray.get([one.seen.remote() for one in pool.actors]))
    assert not folder.exists()


@pytest.mark.slow
def test_a_process_that_raises_ends_the_stream_in_one_line(pool: TeacherPool) -> None:
    with pytest.raises(TeacherError, match=r"the teacher failed: .*out of order; 200 answers were returned") as caught:
        pool.ask([*requests(400)[1::2], *requests(1, "poison")])
    assert "\n" not in str(caught.value)
