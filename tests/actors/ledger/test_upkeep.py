"""Spend, copies, pruning and checks, on both databases and during a job's writes."""

import contextlib
import math
import sqlite3
import threading
import time

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from actors.ledger import upkeep
from actors.ledger.store import LedgerStore
from potstill.errors import LedgerError
from potstill.rows import Message, Request, Response, Sampling, from_table

DAY = 86_400.0
NOON = 1_700_049_600.0  # 2023-11-15 12:00 UTC


def request(i, stage="generate", task="trec6", model="gpt-4o-mini"):
    return Request(
        stage,
        task,
        "few_shot",
        "chat",
        "openai",
        model,
        None,
        (Message("system", "You write."), Message("user", f"ünd {i}")),
        Sampling(0.7, stop=("\n",)),
        choices=("a", "b") if stage == "relabel" else (),
        alpha=0.5 if i % 2 else None,
    )


def answer(request, created_at, cost=0.25):
    logprobs = (-0.5, None) if request.choices else ()
    return Response(request.request_id, "text", "stop", logprobs, None, 10, 3, cost, 0.1, created_at)


@pytest.fixture
def store(uri):
    store = LedgerStore(uri)
    yield store
    store.close()


def fill(store, requests, created_at, cost=0.25):
    answers = [answer(one, created_at, cost) for one in requests]
    store.commit(requests, answers)
    return answers


def change(store, statement, **values):
    with store.database.write() as connection:
        connection.execute(sa.text(statement), values)


def test_spend_is_counted_by_model_stage_task_and_day(store):
    assert upkeep.spent(store.database) == []
    fill(store, [request(i) for i in range(3)], NOON)
    fill(store, [request(i) for i in range(3, 5)], NOON + 0.5 * DAY - 1)
    fill(store, [request(5)], NOON + 0.5 * DAY, cost=1.0)  # midnight
    fill(store, [request(6, stage="relabel", model="other")], NOON)
    assert upkeep.spent(store.database) == [
        upkeep.Spent("openai gpt-4o-mini", "generate", "trec6", "2023-11-15", 5, 50, 15, 1.25),
        upkeep.Spent("openai gpt-4o-mini", "generate", "trec6", "2023-11-16", 1, 10, 3, 1.0),
        upkeep.Spent("openai other", "relabel", "trec6", "2023-11-15", 1, 10, 3, 0.25),
    ]


def test_the_copy_holds_every_answer_and_its_request(store, tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "CHUNK", 7)  # 41 rows: the last range is not full
    requests = [request(i, stage=stage) for i in range(20) for stage in ("generate", "relabel")] + [request(99)]
    answers = fill(store, requests, NOON)
    path = tmp_path / "answers.parquet"
    assert upkeep.export(store.database, path) == 41
    table = pq.read_table(path)
    assert table.schema.equals(upkeep.EXPORT)
    assert table["request_id"].to_pylist() == sorted(one.request_id for one in requests)
    by_id = {one.request_id: one for one in requests}
    for revived in from_table(table, Request):
        assert revived == by_id[revived.request_id]
    assert {one.request_id: one for one in from_table(table, Response)} == {one.request_id: one for one in answers}
    assert [file.name for file in tmp_path.glob("answers*")] == ["answers.parquet"]


def test_an_empty_copy_has_the_schema(store, tmp_path):
    assert upkeep.export(store.database, tmp_path / "none.parquet") == 0
    assert pq.read_table(tmp_path / "none.parquet").schema.equals(upkeep.EXPORT)


def test_a_copy_that_fails_leaves_no_file(store, tmp_path):
    fill(store, [request(i) for i in range(3)], NOON)
    change(store, "update responses set request = '{' where request_id = :id", id=request(1).request_id)
    with pytest.raises(LedgerError, match="potstill ledger verify"):
        upkeep.export(store.database, tmp_path / "answers.parquet")
    change(store, "update responses set request = '{\"messages\": 7}'")
    with pytest.raises(LedgerError, match="potstill ledger verify"):
        upkeep.export(store.database, tmp_path / "answers.parquet")
    assert list(tmp_path.glob("answers*")) == []


def test_pruning_deletes_only_old_rows(store, monkeypatch):
    monkeypatch.setattr(upkeep, "CHUNK", 7)
    old, young = [request(i) for i in range(30)], [request(i) for i in range(30, 40)]
    fill(store, old, NOON - 1)
    fill(store, young, NOON)
    store.take(["left over"], "killed", lease_s=-2 * DAY)
    store.take(["asked now"], "alive")
    store.take(["just ended"], "alive", lease_s=-10)
    expected = upkeep.Pruned(30, 7.5, 1)
    assert upkeep.count_older(store.database, NOON) == expected
    assert upkeep.prune(store.database, NOON) == expected
    upkeep.reclaim(store.database)
    assert upkeep.prune(store.database, NOON) == upkeep.count_older(store.database, NOON) == upkeep.Pruned(0, 0.0, 0)
    assert store.count_known([one.request_id for one in [*old, *young]]) == 10
    assert store.take(["asked now", "just ended", "left over"], "b").others == ("asked now",)
    assert upkeep.verify(store.database) == []


@pytest.mark.parametrize("made_before", [False, True])
def test_the_file_shrinks_even_if_created_without_auto_vacuum(tmp_path, made_before):
    path = tmp_path / "ledger.db"
    store = LedgerStore(f"sqlite:///{path}")
    if made_before:
        with store.database.engine.connect() as connection:
            connection.connection.cursor().execute("PRAGMA auto_vacuum=NONE").execute("VACUUM")
    requests = [request(i) for i in range(1000)]
    store.commit(requests, [Response(one.request_id, "x" * 3000, created_at=NOON) for one in requests])
    before = upkeep.size_bytes(store.database)
    upkeep.prune(store.database, NOON + 1)
    assert upkeep.size_bytes(store.database) == before
    upkeep.reclaim(store.database)
    assert upkeep.size_bytes(store.database) < before / 20
    assert path.stat().st_size == upkeep.size_bytes(store.database)
    assert upkeep.verify(store.database) == []
    store.close()


def test_a_sound_ledger_has_no_findings(store, monkeypatch):
    monkeypatch.setattr(upkeep, "CHUNK", 7)
    fill(store, [request(i, stage=stage) for i in range(20) for stage in ("generate", "relabel")], NOON)
    store.take(["x"], "alive")
    assert upkeep.verify(store.database) == []


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        (
            "set request = replace(request, 'You write.', 'You lie.')",
            "its request does not match its id",
        ),
        ("set model = 'cheaper'", "its request does not match its id"),
        ("set request = substr(request, 1, 40)", "its request can't be read"),
        ("set request = '[]'", "its request can't be read"),
        ('set request = \'{"messages": [], "new": 1}\'', "its request can't be read"),
        ("set choice_logprobs = '[1,'", "its log-probabilities can't be read"),
        ("set choice_logprobs = '[\"a\"]'", "its log-probabilities are not numbers"),
        ("set cost_usd = -1", "its tokens, cost or times are not valid figures"),
    ],
)
def test_invalid_answers_are_found(store, statement, finding):
    fill(store, [request(i) for i in range(5)], NOON)
    change(store, f"update responses {statement} where request_id = :id", id=request(3).request_id)
    assert upkeep.verify(store.database) == [f"answer {request(3).request_id}: {finding}"]


def test_many_findings_of_a_kind_are_counted(store):
    fill(store, [request(i) for i in range(35)], NOON)
    change(store, "update responses set cost_usd = -1")
    findings = upkeep.verify(store.database)
    assert len(findings) == upkeep.SHOWN + 1
    assert findings[-1] == "... and 25 more answers: its tokens, cost or times are not valid figures"


def test_stale_claims_are_found(store):
    store.take(["a", "b"], "killed", lease_s=-2 * DAY)
    store.take(["c"], "wrong clock", lease_s=2 * DAY)
    past, ahead = upkeep.verify(store.database)
    assert past.startswith("claims: 2 expired more than a day ago")
    assert ahead.startswith("claims: 1 expire more than a day from now")


@pytest.fixture
def file(tmp_path):
    """A closed ledger file with 500 answers."""
    store = LedgerStore(f"sqlite:///{tmp_path}/ledger.db")
    fill(store, [request(i) for i in range(500)], NOON)
    store.close()
    return tmp_path / "ledger.db"


def verify(file):
    store = LedgerStore(f"sqlite:///{file}")
    try:
        return upkeep.verify(store.database)
    finally:
        store.close()


def test_an_inconsistent_index_is_found(file):
    """All rows are readable, but SQLite would miss some."""
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, '(created_at)', '(latency_s)') WHERE type = 'index'"
        )
    findings = verify(file)
    assert findings
    assert all(line.startswith("file: ") for line in findings)


def test_overwritten_pages_are_found(file):
    content = bytearray(file.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 3 * 4096] = b"coffee" * 2048
    file.write_bytes(content)
    try:
        findings = verify(file)
    except LedgerError as error:
        findings = [str(error)]
        assert "malformed; the file is damaged" in findings[0]
    assert findings
    assert all("\n" not in line for line in findings)


@pytest.mark.slow
def test_upkeep_works_while_a_job_writes(uri, store, tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "CHUNK", 50)
    fill(store, [request(i) for i in range(1000)], NOON)
    stop, written, failures = threading.Event(), [], []

    def work():
        job = LedgerStore(uri)
        try:
            number = 10_000
            while not stop.is_set():
                batch = [request(i) for i in range(number, number + 8)]
                number += 8
                assert len(job.take([one.request_id for one in batch], "job").mine) == 8
                job.commit(batch, [answer(one, time.time()) for one in batch])
                written.extend(one.request_id for one in batch)
        except Exception as error:
            failures.append(error)
        finally:
            job.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while not written and not failures:
            time.sleep(0.01)
        assert upkeep.verify(store.database) == []
        assert upkeep.export(store.database, tmp_path / "answers.parquet") >= 1000
        assert upkeep.prune(store.database, NOON + 1).answers == 1000
        upkeep.reclaim(store.database)
        assert math.isclose(sum(one.cost_usd for one in upkeep.spent(store.database)) % 0.25, 0)
    finally:
        stop.set()
        thread.join(300)
    assert failures == []
    assert store.count_known(written) == len(written)
    assert upkeep.verify(store.database) == []
