"""The ledger behind its named actor: shared, replaced when it dies, gone when idle."""

import asyncio
import contextlib
import os
import signal
import time

import pytest
import ray

from actors.ledger.handle import Ledger
from potstill.errors import LedgerError
from potstill.rows import Message, Request, Response, Sampling

MESSAGES = (Message("prompt", "hi"),)
REQUESTS = [
    Request("generate", "t", "s", "list", "embedded", "m", None, MESSAGES, Sampling(), occurrence=i) for i in range(20)
]
IDS = [request.request_id for request in REQUESTS]


def answers(requests):
    return [Response(request.request_id, f"text {request.occurrence}") for request in requests]


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def uri(tmp_path):
    """SQLite only: the handle and its actor make the same store calls for either database."""
    return f"sqlite:///{tmp_path}/deep/ledger.db"


def process_id(ledger):
    """The current owner process of the ledger; one that ends between the two calls is replaced."""
    while True:
        ledger.read("count_known", [])
        with contextlib.suppress(ray.exceptions.RayActorError):
            return ray.get(ledger._actor.__ray_call__.remote(lambda actor: os.getpid()))


def test_two_handles_share_one_actor(uri):
    one, two = Ledger(uri), Ledger(uri)
    assert set(one.take(IDS, "one").mine) == set(IDS)
    assert set(two.take(IDS, "two").others) == set(IDS)
    one.commit(REQUESTS, answers(REQUESTS))
    assert {response.text for response in two.take(IDS, "two").known} == {f"text {i}" for i in range(20)}
    assert one._actor._actor_id == two._actor._actor_id


def test_a_handle_works_in_other_processes(ray_cluster, uri):
    ledger = Ledger(uri)
    ledger.commit(REQUESTS[:3], answers(REQUESTS[:3]))
    count = ray_cluster.remote(num_cpus=0)(lambda handle: handle.read("count_known", IDS))
    assert ray_cluster.get(count.remote(ledger)) == 3


def test_a_killed_actor_is_replaced_and_nothing_is_lost(uri):
    ledger = Ledger(uri)
    ledger.commit(REQUESTS[:5], answers(REQUESTS[:5]))
    first = process_id(ledger)
    os.kill(first, signal.SIGKILL)
    taken = ledger.take(IDS, "one")
    assert {response.request_id for response in taken.known} == set(IDS[:5])
    assert set(taken.mine) == set(IDS[5:])
    assert process_id(ledger) != first


def test_an_idle_actor_ends_and_comes_back(uri):
    ledger = Ledger(uri, idle_s=1.0)
    ledger.commit(REQUESTS[:2], answers(REQUESTS[:2]))
    first = process_id(ledger)
    deadline = time.monotonic() + 120
    while os.path.exists(f"/proc/{first}") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not os.path.exists(f"/proc/{first}")
    assert ledger.read("count_known", IDS) == 2


def test_a_file_that_is_not_a_ledger_is_reported_in_one_line(ray_cluster, tmp_path):
    (tmp_path / "notes.txt").write_text("just some text that is long enough to be no database header at all")
    with pytest.raises(LedgerError) as caught:
        Ledger(f"sqlite:///{tmp_path}/notes.txt").read("count_known", IDS)
    text = str(caught.value)
    assert text.startswith("ledger.uri = ")
    assert "notes.txt': can't be opened as a ledger: file is not a database" in text
    assert "\n" not in text


def test_a_ledger_that_breaks_in_use_raises_an_error(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.take(IDS, "one")
    owner = process_id(ledger)
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "ledger.db").write_bytes(b"spilled coffee " * 1000)
    os.kill(owner, signal.SIGKILL)
    with pytest.raises(LedgerError, match=r"ledger.uri = .*can't be opened as a ledger: file is not a database"):
        ledger.commit(REQUESTS, answers(REQUESTS))


def test_coroutines_commit_together_and_each_returns_once_its_answer_is_durable(uri):
    ledger = Ledger(uri)

    async def one(request, response, seen):
        await ledger.acommit([request], [response])
        seen += await asyncio.to_thread(ledger.fetch, [request.request_id])

    async def all_of_them():
        taken = await ledger.atake(IDS, "one")
        assert set(taken.mine) == set(IDS)
        assert set((await ledger.atake(IDS, "two")).others) == set(IDS)
        seen = []
        await asyncio.gather(*(one(*pair, seen) for pair in zip(REQUESTS, answers(REQUESTS), strict=True)))
        again = await ledger.atake([*IDS, "new"], "two")
        await asyncio.to_thread(ledger.release, "two")
        return seen, again

    seen, again = asyncio.run(all_of_them())
    assert {response.request_id: response for response in seen} == {r.request_id: r for r in answers(REQUESTS)}
    assert len(again.known) == 20
    assert again.mine == ("new",)
    assert ledger.take(["new"], "three").mine == ("new",)


def test_coroutines_survive_the_owners_death_and_a_cancelled_one_leaves_the_others_alone(uri):
    ledger = Ledger(uri)
    process = process_id(ledger)

    async def work():
        await ledger.acommit(REQUESTS[:1], answers(REQUESTS[:1]))
        os.kill(process, signal.SIGKILL)
        commits = [
            asyncio.create_task(ledger.acommit([request], [response]))
            for request, response in zip(REQUESTS[1:], answers(REQUESTS[1:]), strict=True)
        ]
        await asyncio.sleep(0)
        commits[3].cancel()
        results = await asyncio.gather(*commits, return_exceptions=True)
        assert [result for result in results if result is not None] == [results[3]]
        return len(await asyncio.to_thread(ledger.fetch, IDS))

    assert asyncio.run(work()) == 20
    assert process_id(ledger) != process


def test_errors_reach_the_coroutine_that_made_them(uri):
    ledger = Ledger(uri)

    async def work():
        good = ledger.acommit(REQUESTS[:1], answers(REQUESTS[:1]))
        bad = ledger.acommit(REQUESTS[1:2], [Response(IDS[1], text=None)])
        return await asyncio.gather(good, bad, return_exceptions=True)

    good, bad = asyncio.run(work())
    assert isinstance(bad, LedgerError)
    assert "can't be written" in str(bad)
    assert "\n" not in str(bad)
    assert good is None
    assert [response.request_id for response in ledger.fetch(IDS)] == IDS[:1]
    assert Ledger(uri).take(IDS[1:2], "next").mine == (IDS[1],)
