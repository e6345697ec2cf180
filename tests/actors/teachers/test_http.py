"""The pool for a teacher behind HTTP: real Ray, a real endpoint that misbehaves, its book against the ledger."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors.backends.identity import identify
from actors.ledger.handle import Ledger
from actors.teachers.http import HTTP_BLOCK
from actors.teachers.pool import TeacherPool
from potstill.config.teacher import OpenAITeacher
from potstill.errors import TeacherError
from potstill.rows import Message, Request, Response, Sampling, from_table, to_table
from tests.endpoint.client import Endpoint

pytestmark = pytest.mark.slow
CLASSES = ("app error", "billing", "refund")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


def teacher(endpoint: Endpoint, **changes: Any) -> OpenAITeacher:
    """A teacher with a known rate, so that tests need not search for it."""
    settings = {
        "requests_per_minute": 60_000,
        "kind": "openai",
        "model": "scripted-1",
        "base_url": endpoint.base_url,
        "api_key_env": "",
    }
    return OpenAITeacher(**{**settings, "concurrency": 32, "price": {"prompt": 1.0, "completion": 2.0}, **changes})


def requests(config: OpenAITeacher, count: int, choices: tuple[str, ...] = ()) -> list[Request]:
    identity = identify(config)
    return [
        Request(
            "generate",
            "t",
            "s",
            "codes",
            identity.provider,
            identity.model,
            None,
            (Message("user", f"Write 2 examples. Number {i}."),),
            Sampling(max_tokens=40),
            choices,
        )
        for i in range(count)
    ]


def ask(config: OpenAITeacher, path: Path, wanted: list[Request]) -> tuple[list[Response], int]:
    """Return the pool's answers, and how many of them came from the ledger."""
    with TeacherPool(config, Ledger(f"sqlite:///{path}")) as pool:
        table = pool.ask(wanted)
    return from_table(table.drop_columns("reused"), Response), sum(table["reused"].to_pylist())


def asked(endpoint: Endpoint) -> dict[str, int]:
    """How often each prompt was answered completely, excluding the trial request."""
    counts: dict[str, int] = {}
    for entry in endpoint.book():
        if entry.answered and entry.prompt.startswith("Write"):
            counts[entry.prompt] = counts.get(entry.prompt, 0) + 1
    return counts


def test_everything_is_asked_once_and_paid_once(endpoint: Endpoint, tmp_path: Path, ray_cluster: Any) -> None:
    endpoint.script(latency_s=0.05)
    config = teacher(endpoint)
    wanted = requests(config, 120)
    answers, reused = ask(config, tmp_path / "ledger.db", wanted)
    assert {answer.request_id for answer in answers} == {request.request_id for request in wanted}
    assert reused == 0
    assert all(answer.error is None and answer.text for answer in answers)
    dollars = sum(answer.prompt_tokens * 1e-6 + answer.completion_tokens * 2e-6 for answer in answers)
    assert sum(answer.cost_usd for answer in answers) == pytest.approx(dollars)
    assert set(asked(endpoint).values()) == {1}
    again, reused = ask(config, tmp_path / "ledger.db", wanted)
    assert reused == 120
    assert {a.request_id: a.text for a in again} == {a.request_id: a.text for a in answers}
    assert set(asked(endpoint).values()) == {1}


def test_transient_failures_are_retried_and_final_ones_recorded(
    endpoint: Endpoint, tmp_path: Path, ray_cluster: Any
) -> None:
    endpoint.script(
        shares={"500": 0.1, "reset_midway": 0.05, "truncated_json": 0.05, "hang": 0.03},
        poison={"Number 7.": 400},
        storm_requests=5,
    )
    config = teacher(endpoint, max_attempts=20, timeout_s=5.0)
    answers, _ = ask(config, tmp_path / "ledger.db", requests(config, 60))
    failed = [answer for answer in answers if answer.error is not None]
    assert len(answers) == 60
    assert len(failed) == 1
    assert failed[0].error.startswith("HTTP 400")
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("select count(*) from responses").fetchone() == (59,)
        assert connection.execute("select count(*) from claims").fetchone() == (0,)


def test_the_slowest_request_of_a_batch_delays_no_other(endpoint: Endpoint, tmp_path: Path, ray_cluster: Any) -> None:
    """One in fifty hangs forever: the pool still sends the rest of its batch, and later batches."""
    endpoint.script(latency_s=0.02, shares={"hang": 0.02}, decided_by="attempt")
    config = teacher(endpoint, timeout_s=3600.0, concurrency=64)
    wanted = requests(config, 4 * HTTP_BLOCK)  # the maximum in flight

    def hanging() -> int:
        """The number of hanging requests once all were sent and the others answered; 0 before that."""
        sent = [entry for entry in endpoint.book() if entry.prompt.startswith("Write")]
        left = [entry for entry in sent if not entry.answered]
        return len(left) if len(sent) == len(wanted) and all(entry.fault == "hang" for entry in left) else 0

    with TeacherPool(config, Ledger(f"sqlite:///{tmp_path}/ledger.db")) as pool, ThreadPoolExecutor(1) as thread:
        asking = thread.submit(pool.ask, wanted)
        wait_for(lambda: hanging() > 0)
        pool.close()
        assert isinstance(asking.exception(), TeacherError)


def wait_for(happened: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_classes_are_chosen_with_probabilities(endpoint: Endpoint, tmp_path: Path, ray_cluster: Any) -> None:
    endpoint.script(options=("A", "B", "C"))
    config = teacher(endpoint)
    answers, _ = ask(config, tmp_path / "ledger.db", requests(config, 40, CLASSES))
    assert all(len(answer.choice_logprobs) == 3 and None not in answer.choice_logprobs for answer in answers)


def test_a_wrong_key_stops_before_anything_is_asked(endpoint: Endpoint, tmp_path: Path, ray_cluster: Any) -> None:
    endpoint.script(keys=("right",))
    config = teacher(endpoint)
    with pytest.raises(TeacherError, match=r"teacher\.api_key_env"):
        ask(config, tmp_path / "ledger.db", requests(config, 50))
    assert len(endpoint.book()) <= 2


def test_one_process_probes_for_the_whole_pool(endpoint: Endpoint, tmp_path: Path, ray_cluster: Any) -> None:
    endpoint.script(logprobs="refused", options=("A", "B", "C"))
    config = teacher(endpoint, actors=3)
    answers, _ = ask(config, tmp_path / "ledger.db", requests(config, 60, CLASSES))
    assert all(answer.error is None for answer in answers)
    tried = [entry for entry in endpoint.book() if not entry.prompt.startswith("Write")]
    assert [entry.status for entry in tried] == [400, 200]
    assert {entry.status for entry in endpoint.book() if entry.prompt.startswith("Write")} == {200}


def test_a_budget_is_kept_and_paid_answers_stay(endpoint: Endpoint, tmp_path: Path, ray_cluster: Any) -> None:
    config = teacher(endpoint, budget_usd=0.01, price={"prompt": 10.0, "completion": 20.0})
    wanted = requests(config, 200)
    with pytest.raises(TeacherError, match=r"budget.*the same command resumes"):
        ask(config, tmp_path / "ledger.db", wanted)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        count, dollars = connection.execute("select count(*), sum(cost_usd) from responses").fetchone()
    assert 0 < count < 200
    paid = sum(e.prompt_tokens * 10e-6 + e.completion_tokens * 20e-6 for e in endpoint.book() if "Write" in e.prompt)
    assert paid <= 0.01
    assert dollars == pytest.approx(paid)


def test_retries_are_counted(endpoint: Endpoint, tmp_path: Path, ray_cluster: Any) -> None:
    endpoint.script(shares={"500": 0.2}, storm_requests=6, poison={"Number 7.": 400})
    config = teacher(endpoint, max_attempts=12)
    wanted = requests(config, 40)
    with TeacherPool(config, Ledger(f"sqlite:///{tmp_path}/ledger.db")) as pool:
        table = pool.ask(wanted)
    sent = [entry for entry in endpoint.book() if entry.prompt.startswith("Write")]
    assert sum(table["retries"].to_pylist()) == len(sent) - 40 > 0


def test_requests_in_flight_when_a_stage_stops_are_kept(endpoint: Endpoint, tmp_path: Path, ray_cluster: Any) -> None:
    endpoint.script(latency_s=1.5, poison={f"Number {i}.": 400 for i in range(64)})
    config = teacher(endpoint)
    with TeacherPool(config, Ledger(f"sqlite:///{tmp_path}/ledger.db")) as pool:
        answers = pool.stream([to_table(requests(config, 400), Request)])
        next(answers)
        pool.wind_down("enough")
        answers.close()
    sent = asked(endpoint)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("select count(*) from responses").fetchone() == (len(sent),)
        assert connection.execute("select count(*) from claims").fetchone() == (0,)
    assert 0 < len(sent) <= 3 * HTTP_BLOCK  # the requests in flight
    assert set(sent.values()) == {1}


@pytest.mark.parametrize("end", ["fatal", "interrupted"])
def test_requests_in_flight_when_a_job_ends_are_kept(
    endpoint: Endpoint, tmp_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """One request in one of many batches gets 402, or the user presses Ctrl-C."""
    monkeypatch.setattr("actors.teachers.pool.INTERRUPTED_S", 30.0)  # enough on a busy machine
    config = teacher(endpoint)
    # The last one of its batch, so the requests then in flight belong to other batches.
    wanted = requests(config, 2000)
    prompts = sorted(request.messages[0].content for request in wanted)
    endpoint.script(latency_s=0.4, poison={prompts[2 * HTTP_BLOCK - 1]: 402} if end == "fatal" else {})

    def work() -> None:
        with TeacherPool(config, Ledger(f"sqlite:///{tmp_path}/ledger.db")) as pool:
            for _ in pool.stream([to_table(wanted, Request)]):
                if end == "interrupted":
                    raise KeyboardInterrupt

    with pytest.raises(TeacherError if end == "fatal" else KeyboardInterrupt):
        work()
    sent = [entry for entry in endpoint.book() if entry.prompt.startswith("Write")]
    assert all(entry.answered or entry.status == 402 for entry in sent)
    good = sum(entry.answered for entry in sent)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("select count(*) from responses").fetchone() == (good,)
        assert connection.execute("select count(*) from claims").fetchone() == (0,)
    assert HTTP_BLOCK - 1 <= good < len(wanted) / 2  # all of its batch except the one that ended the job


def test_a_limit_that_blocks_every_request_is_reported(endpoint: Endpoint, tmp_path: Path, ray_cluster: Any) -> None:
    config = teacher(endpoint)
    told = "waiting for the endpoint's rate limit (429), next try in"
    with TeacherPool(config, Ledger(f"sqlite:///{tmp_path}/ledger.db")) as pool, ThreadPoolExecutor(1) as thread:
        assert pool.held_because() is None
        pool.start()
        endpoint.script(storm_requests=1000, storm_retry_after_s=60)
        asking = thread.submit(pool.ask, requests(config, 20))
        wait_for(lambda: (pool.held_because() or "").startswith(told))
        pool.close()
        assert isinstance(asking.exception(), TeacherError)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "gpt-99"}, r"^teacher\.model = 'gpt-99': .*; name one that it has$"),
        (
            {"base_url": "http://127.0.0.1:1/v1"},
            r"^teacher\.base_url = .*; start the server, or correct host and port$",
        ),
        ({"base_url": ""}, r"^teacher\.base_url = .* for most endpoints it ends in /v1$"),
    ],
    ids=["model", "host", "v1"],
)
def test_an_endpoints_fault_reaches_the_driver_as_one_line(
    endpoint: Endpoint, tmp_path: Path, ray_cluster: Any, changes: dict[str, str], expected: str
) -> None:
    changes = {name: value or endpoint.root_url for name, value in changes.items()}
    with TeacherPool(teacher(endpoint, **changes), Ledger(f"sqlite:///{tmp_path}/ledger.db")) as pool:
        with pytest.raises(TeacherError, match=expected) as caught:
            pool.start()
        assert "\n" not in str(caught.value)
