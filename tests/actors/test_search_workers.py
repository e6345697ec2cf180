"""What trials share, on a real Ray: a pool that pays once for concurrent trials, and rungs computed by one trial."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.backends.identity import identify
from actors.ledger.handle import Ledger
from actors.search_workers import SharedPool, account_of, fetch, start_search_workers
from potstill.config.teacher import OpenAITeacher
from potstill.errors import InputError, TeacherError
from potstill.rows import Message, Request, Sampling
from potstill.search.placement import Placement
from tests.endpoint.client import Endpoint

pytestmark = pytest.mark.slow


def teacher(base_url: str) -> OpenAITeacher:
    return OpenAITeacher(
        kind="openai",
        model="scripted-1",
        base_url=base_url,
        api_key_env="",
        requests_per_minute=60_000,
        concurrency=64,
        price={"prompt": 1.0, "completion": 2.0},
    )


def requests(config: OpenAITeacher, count: int) -> list[Request]:
    identity = identify(config)
    prompts = [(Message("user", f"Write 2 examples. Number {i}."),) for i in range(count)]
    common = ("generate", "t", "s", "codes", identity.provider, identity.model, None)
    return [Request(*common, prompt, Sampling(max_tokens=40)) for prompt in prompts]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(latency_s=0.2) as running:
        yield running


@pytest.fixture
def workers(ray_cluster: Any, endpoint: Endpoint, tmp_path: Path) -> Iterator[tuple[Any, OpenAITeacher, Ledger]]:
    config, ledger = teacher(endpoint.base_url), Ledger(f"sqlite:///{tmp_path}/ledger.db")
    actor = start_search_workers(Placement(4, 1, 1, 0.2, 0.0), config, ledger, str(tmp_path / "logs"))
    assert ray_cluster.get(actor.start.remote()) == 1
    yield actor, config, ledger
    ray_cluster.get(actor.close.remote())
    ray_cluster.kill(actor)


def test_requests_of_concurrent_trials_are_paid_once(
    workers: tuple[Any, OpenAITeacher, Ledger], endpoint: Endpoint
) -> None:
    actor, config, ledger = workers
    wanted = requests(config, 60)
    answered: list[pa.Table] = []

    def ask(first: int, count: int) -> None:
        with SharedPool(actor, config, ledger) as pool:
            answered.append(pool.ask(wanted[first : first + count]))

    # Overlapping, and all within the endpoint's latency, so that the ledger has no answers yet.
    trials = [threading.Thread(target=ask, args=part) for part in ((0, 60), (0, 40), (20, 40), (0, 60))]
    for one in trials:
        one.start()
    for one in trials:
        one.join()
    book = Counter(e.prompt for e in endpoint.book() if e.answered and e.prompt.startswith("Write"))
    assert len(book) == 60
    assert set(book.values()) == {1}
    fresh = [row for table in answered for row in table.to_pylist() if not row["reused"]]
    assert len(fresh) == 60  # each belongs to one trial, so that the trials' costs add up to the total
    account, paid = account_of(actor), sum(row["cost_usd"] for row in fresh)
    assert account is not None
    assert account.spent_usd + account.reserved_usd >= paid - 1e-9 > 0
    last = fetch(actor.close.remote())  # its senders have stopped, so the count is final
    assert last.spent_usd + last.reserved_usd >= paid - 1e-9
    assert account_of(actor) is None
    texts: dict[str, set[str]] = {}
    for table in answered:
        for row in table.to_pylist():
            texts.setdefault(row["request_id"], set()).add(row["text"])
    assert all(len(found) == 1 for found in texts.values())


def test_a_rung_has_one_owner_until_it_is_released(workers: tuple[Any, Any, Any], ray_cluster: Any) -> None:
    actor, _, _ = workers
    ray_cluster.get(actor.claim.remote("rung", "one"))
    ray_cluster.get(actor.claim.remote("rung", "one"))  # an owner may claim its own rung again
    second = actor.claim.remote("rung", "two")
    time.sleep(0.3)
    assert not ray_cluster.wait([second], timeout=0)[0]
    ray_cluster.get(actor.release.remote("one"))
    ray_cluster.get(second, timeout=300)


def test_errors_keep_their_type(workers: tuple[Any, Any, Any], ray_cluster: Any, tmp_path: Path) -> None:
    actor, config, _ = workers
    job = {"labels": ("a", "b"), "student": {"model": "/no/such/model"}, "device": "cpu", "threads": 1, "record": False}
    arm = {"name": "x", "digest": "d", "seed": 0, "folder": str(tmp_path / "arm")}
    with pytest.raises(InputError, match="no/such/model"):
        fetch(actor.train.remote({**job, "arms": [arm]}))
    # The process is available again.
    (rows,) = fetch(actor.embed.remote([["a text"]]))
    assert rows.shape[0] == 1
    lost = start_search_workers(Placement(1, 0, 1, 0.2, 0.0), teacher("http://127.0.0.1:9/v1"), workers[2], None)
    with pytest.raises(TeacherError):
        SharedPool(lost, config, workers[2]).start()
    ray_cluster.kill(lost)
