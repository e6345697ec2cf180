"""Batches against the real endpoint of the tests, with a real ledger, pacer and allowance, in one process.

What the endpoint was sent is read from its batches' input files; what it answered, from its book.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import sqlalchemy as sa

from actors import ledger_tables as tables
from actors.backends.openai import OpenAIBackend
from actors.batch_teacher import BatchTeacherActor
from actors.ledger_store import LedgerStore
from actors.teacher import Answer
from potstill.chat import Abilities, body
from potstill.errors import TeacherError
from potstill.rows import Request
from potstill.teachers import OpenAITeacher
from tests.actors.batch_requests import PRICE, requests, teacher
from tests.actors.near import NearLedger, NearLimiter
from tests.endpoint.behaviour import Script
from tests.endpoint.client import ROOT, Endpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: Endpoint) -> Endpoint:
    """One that behaves, with an empty book and no batches."""
    running.script(**asdict(Script()))
    running.forget_batches()
    running.clear_book()
    return running


@pytest.fixture
def store(uri: str) -> Iterator[LedgerStore]:
    store = LedgerStore(uri)
    yield store
    store.close()


def start(config: OpenAITeacher, store: LedgerStore, owner: str = "job-a", submit: bool = True) -> BatchTeacherActor:
    return BatchTeacherActor(config, NearLedger(store), owner, NearLimiter(config), submit, 0.2, 1.0)


def ask(
    config: OpenAITeacher,
    store: LedgerStore,
    wanted: list[Request],
    owner: str = "job-a",
    then: Callable[[], object] = lambda: None,
) -> list[Answer]:
    """The answers; ``then`` is called after the trial request."""

    async def run() -> list[Answer]:
        actor = start(config, store, owner)
        try:
            await actor.ready()
            then()
            return await asyncio.wait_for(actor.answer(wanted), 60)
        finally:
            await actor.close()

    return asyncio.run(run())


def fetch(endpoint: Endpoint, path: str, method: str = "GET") -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(endpoint.base_url + path, method=method), timeout=30) as response:
        return bytes(response.read())


def batches_of(endpoint: Endpoint) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """All batches, oldest first, with the lines of their input files."""
    batches = json.loads(fetch(endpoint, "/batches?limit=100"))["data"]
    return [
        (one, [json.loads(line) for line in fetch(endpoint, f"/files/{one['input_file_id']}/content").splitlines()])
        for one in reversed(batches)
    ]


def answered(endpoint: Endpoint) -> Counter[str]:
    """How often each request was answered in a batch."""
    return Counter(e.client_request_id for e in endpoint.book() if e.route == "batch" and e.answered)


def left_over(store: LedgerStore) -> tuple[int, int, list[str]]:
    """Claims, requests in batches, and the states of all batches."""
    with store.database.read() as connection:
        counts = [
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in (tables.claims, tables.batch_requests)
        ]
        states = connection.execute(sa.select(tables.batches.c.state)).scalars().all()
    return counts[0], counts[1], sorted(states)


def forsake(store: LedgerStore) -> None:
    """As if the lease of whoever looked after the batches had ended."""
    with store.database.write() as connection:
        connection.execute(sa.update(tables.batches).values(held_until=0.0))


def test_a_batch_asks_what_single_requests_would(endpoint: Endpoint, store: LedgerStore) -> None:
    config = teacher(endpoint)
    wanted = [*requests(config, 30), *requests(config, 30, ("app error", "billing", "refund"))]
    answers = ask(config, store, wanted)
    assert [answer.response.request_id for answer in answers] == [request.request_id for request in wanted]
    assert all(answer.response.error is None and not answer.reused for answer in answers)
    ((batch, lines),) = batches_of(endpoint)
    assert batch["status"] == "completed"
    sent = {line["custom_id"]: line["body"] for line in lines}
    assert sent == {request.request_id: body(request, config.model, Abilities()) for request in wanted}
    assert store.fetch([wanted[0].request_id]) == [answers[0].response]
    used = [answer.response for answer in answers]
    dollars = sum(one.prompt_tokens * 1e-6 + one.completion_tokens * 2e-6 for one in used)
    assert sum(one.cost_usd for one in used) == pytest.approx(dollars)
    assert left_over(store) == (0, 0, ["collected"])
    again = ask(config, store, wanted)
    assert all(answer.reused for answer in again)
    assert len(batches_of(endpoint)) == 1


def test_both_modes_answer_alike(endpoint: Endpoint, store: LedgerStore) -> None:
    config = teacher(endpoint)
    wanted = requests(config, 6, ("app error", "billing", "refund"))
    answers = ask(config, store, wanted)

    async def single() -> list[Any]:
        backend = OpenAIBackend(config)
        await backend.probe()
        return [(await backend.send(request)).response for request in wanted]

    for answer, other in zip(answers, asyncio.run(single()), strict=True):
        assert other is not None
        assert answer.response.choice_logprobs == other.choice_logprobs
        assert answer.response.text == other.text


def test_partial_failures_are_sent_again_and_final_ones_recorded(endpoint: Endpoint, store: LedgerStore) -> None:
    faults = {"500": 0.2, "hang": 0.1, "truncated_json": 0.1, "no_choices": 0.1}
    config = teacher(endpoint, max_attempts=12)
    wanted = requests(config, 60)
    answers = ask(config, store, wanted, then=lambda: endpoint.script(shares=faults, poison={"Number 7.": 400}))
    failed = [answer.response for answer in answers if answer.response.error is not None]
    assert [(one.request_id, one.error[:8]) for one in failed if one.error] == [(wanted[7].request_id, "HTTP 400")]
    assert store.count_known([request.request_id for request in wanted]) == 59
    batches = batches_of(endpoint)
    assert len(batches) > 1
    asked = Counter(line["custom_id"] for _, lines in batches for line in lines)
    assert asked[wanted[7].request_id] == 1
    assert left_over(store) == (0, 0, ["collected"] * len(batches))


def test_rounds_are_bounded(endpoint: Endpoint, store: LedgerStore) -> None:
    config = teacher(endpoint, max_attempts=3)
    answers = ask(config, store, requests(config, 5), then=lambda: endpoint.script(shares={"500": 1.0}))
    assert all("after 3 batches" in (answer.response.error or "") for answer in answers)
    assert len(batches_of(endpoint)) == 3


def test_what_a_batch_did_not_get_to_is_asked_again(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_expired_share=0.5)
    config = teacher(endpoint)
    wanted = requests(config, 40)

    async def run() -> None:
        actor = start(config, store)
        asking = asyncio.create_task(actor.answer(wanted))
        while len(batches_of(endpoint)) < 2:
            await asyncio.sleep(0.05)
        endpoint.script(batch_expired_share=0.0)
        assert all(answer.response.error is None for answer in await asyncio.wait_for(asking, 60))
        await actor.close()

    asyncio.run(run())
    assert set(answered(endpoint).values()) == {1}


def test_a_failed_batch_says_why_and_leaves_nothing_claimed(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_failure="The model is not for the Batch API.")
    config = teacher(endpoint)
    with pytest.raises(TeacherError, match=r"failed batch batch_00000001: The model is not for the Batch API\."):
        ask(config, store, requests(config, 5))
    assert left_over(store) == (0, 0, ["dead"])
    endpoint.script(batch_failure="")
    assert all(answer.response.text for answer in ask(config, store, requests(config, 5)))


def test_a_cancelled_batch_keeps_what_it_answered(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_running_s=3)
    config = teacher(endpoint)

    async def run() -> None:
        actor = start(config, store)
        asking = asyncio.create_task(actor.answer(requests(config, 200)))
        while not (running := batches_of(endpoint)) or running[0][0]["request_counts"]["completed"] < 50:
            await asyncio.sleep(0.05)
        fetch(endpoint, f"/batches/{running[0][0]['id']}/cancel", "POST")
        with pytest.raises(TeacherError, match=r"batch_00000001 was cancelled .*; \d+ of its 200 requests"):
            await asyncio.wait_for(asking, 60)
        await actor.close()

    asyncio.run(run())
    done = store.count_known([request.request_id for request in requests(config, 200)])
    assert 50 <= done < 200
    endpoint.script(batch_running_s=0)
    store.release("job-a")
    answers = ask(config, store, requests(config, 200), "job-b")
    assert sum(answer.reused for answer in answers) == done
    assert set(answered(endpoint).values()) == {1}


def test_more_than_a_file_holds_goes_in_several(
    endpoint: Endpoint, store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.batch_files import Room

    monkeypatch.setattr("actors.batch_runner.Room", lambda: Room(lines=70))
    config = teacher(endpoint)
    answers = ask(config, store, requests(config, 200))
    assert all(answer.response.error is None for answer in answers)
    assert [len(lines) for _, lines in batches_of(endpoint)] == [70, 70, 60]


def test_an_enqueued_token_limit_is_waited_out_with_smaller_files(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_token_limit=1500, batch_running_s=0.3)
    config = teacher(endpoint)
    answers = ask(config, store, requests(config, 60))
    assert all(answer.response.error is None for answer in answers)
    assert set(answered(endpoint).values()) == {1}
    states = Counter(batch["status"] for batch, _ in batches_of(endpoint))
    assert states["failed"] >= 1
    assert states["completed"] >= 3


def test_a_budget_lets_go_what_it_bears_and_no_more(endpoint: Endpoint, store: LedgerStore) -> None:
    config = teacher(endpoint, budget_usd=0.01, price={"prompt": 10.0, "completion": 20.0})
    wanted = requests(config, 200)
    with pytest.raises(TeacherError, match=r"budget_usd = 0\.01 reached"):
        ask(config, store, wanted)
    lines = [entry for entry in endpoint.book() if entry.route == "batch"]
    paid = sum(entry.prompt_tokens * 10e-6 + entry.completion_tokens * 20e-6 for entry in lines)
    assert 0 < len(lines) < 200
    assert paid <= 0.01
    assert len(batches_of(endpoint)) > 1  # what the first did not use was used by others
    assert store.count_known([request.request_id for request in wanted]) == len(lines)


def test_a_creation_without_an_answer_is_found_not_repeated(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_lost_answers=1)
    config = teacher(endpoint)
    assert all(answer.response.error is None for answer in ask(config, store, requests(config, 20)))
    assert len(batches_of(endpoint)) == 1


def test_a_door_that_does_not_always_open(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(
        api_shares={"502": 0.15, "reset_before": 0.1, "reset_midway": 0.05, "truncated_json": 0.1, "not_json": 0.05}
    )
    config = teacher(endpoint, max_attempts=50)
    assert all(answer.response.error is None for answer in ask(config, store, requests(config, 20)))
    endpoint.script(api_shares={})
    assert set(answered(endpoint).values()) == {1}
    assert len(batches_of(endpoint)) == 1


CRASHES = ["open", "uploaded", "attempted", "created_unnoted", "created"]


@pytest.mark.parametrize("crash", CRASHES)
def test_wherever_its_process_dies_a_batch_is_paid_for_once(
    endpoint: Endpoint, store: LedgerStore, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    """The process "dies" by never getting on from there; its leases end, and another takes over."""
    endpoint.script(batch_running_s=1.0)
    config = teacher(endpoint)
    wanted = requests(config, 30)

    async def stuck(*_: Any, **__: Any) -> Any:
        reached.set()
        await asyncio.Event().wait()

    reached = asyncio.Event()

    async def run() -> None:
        from actors.backends.openai_batches import BatchApi
        from actors.ledger_batches import BatchBook

        with monkeypatch.context() as patch:
            note = BatchBook.note

            async def note_until(book: BatchBook, key: str, **values: Any) -> bool:
                if crash == "created_unnoted" and "batch_id" in values:
                    return await stuck()
                return await note(book, key, **values)

            patch.setattr(BatchBook, "note", note_until)
            name = {"open": "upload", "uploaded": None, "attempted": "create", "created": "retrieve"}.get(crash)
            if crash == "uploaded":
                patch.setattr(BatchBook, "note", lambda *a, **v: note(*a, **v) if "file_id" in v else stuck())
            if name:
                patch.setattr(BatchApi, name, stuck)
            actor = start(config, store, "job-a")
            asking = asyncio.create_task(actor.answer(wanted))
            await asyncio.wait_for(reached.wait(), 30)
            asking.cancel()
            await actor.close()
        # Its claims on requests and batches are no more renewed.
        with store.database.write() as connection:
            mine = tables.claims.c.owner == "job-a"
            connection.execute(sa.update(tables.claims).where(mine).values(expires_at=0.0))
        assert store.take([wanted[0].request_id], "job-x").others == (wanted[0].request_id,)
        forsake(store)
        other = start(config, store, "job-b")
        answers = await asyncio.wait_for(other.answer(wanted), 60)
        assert all(answer.response.error is None for answer in answers)
        assert all(answer.reused == crash.startswith("created") for answer in answers)
        await other.close()

    asyncio.run(run())
    assert set(answered(endpoint).values()) == {1}
    assert len(batches_of(endpoint)) == 1
    assert left_over(store)[:2] == (0, 0)


def test_two_processes_never_submit_the_same(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_running_s=0.5)
    config = teacher(endpoint)

    async def run() -> list[list[Answer]]:
        one, two = start(config, store, "job-a"), start(config, store, "job-b")
        wanted = requests(config, 60)
        found = await asyncio.wait_for(asyncio.gather(one.answer(wanted[:40]), two.answer(wanted[20:])), 60)
        await one.close()
        await two.close()
        return list(found)

    first, second = asyncio.run(run())
    assert all(answer.response.error is None for answer in [*first, *second])
    assert set(answered(endpoint).values()) == {1}
    assert sum(answer.reused for answer in [*first, *second]) == 20


def test_what_failed_in_an_adopted_batch_is_not_asked_for_nothing(endpoint: Endpoint, store: LedgerStore) -> None:
    """Its final errors are known; only what may yet work goes into another batch."""
    endpoint.script(poison={"Number 3.": 400}, batch_expired_share=0.2, batch_running_s=0.5)
    config = teacher(endpoint)
    wanted = requests(config, 20)

    async def run() -> list[Answer]:
        actor = start(config, store)
        asking = asyncio.create_task(actor.answer(wanted))
        while not batches_of(endpoint):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        asking.cancel()
        await actor.close()
        store.release("job-a")
        other = start(config, store, "job-b")
        answering = asyncio.create_task(other.answer(wanted))
        while len(batches_of(endpoint)) < 2:
            await asyncio.sleep(0.05)
        endpoint.script(batch_expired_share=0.0)
        answers = await asyncio.wait_for(answering, 60)
        await other.close()
        return answers

    answers = asyncio.run(run())
    assert sum(answer.response.error is not None for answer in answers) == 1
    batches = batches_of(endpoint)
    assert sum(wanted[3].request_id in [line["custom_id"] for line in lines] for _, lines in batches) <= 2
    assert set(answered(endpoint).values()) == {1}


def test_a_batch_that_the_endpoint_does_not_know_is_not_asked_anew(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_running_s=600)
    config = teacher(endpoint, provider="mine")

    async def submit() -> None:
        actor = start(config, store)
        asking = asyncio.create_task(actor.answer(requests(config, 5)))
        while not batches_of(endpoint):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        asking.cancel()
        await actor.close()

    asyncio.run(submit())
    store.release("job-a")
    with Endpoint() as other:
        moved = teacher(other, provider="mine")
        with pytest.raises(TeacherError, match=r"does not know batch batch_00000001, submitted to http"):
            ask(moved, store, requests(moved, 5), "job-b")
        assert batches_of(other) == []
        with store.database.write() as connection:  # two days later
            connection.execute(sa.update(tables.batches).values(created_at=tables.batches.c.created_at - 2 * 86_400))
            connection.execute(sa.update(tables.batches).values(held_until=0.0))
        assert all(a.response.text for a in ask(moved, store, requests(moved, 5), "job-c"))


def test_an_endpoint_without_batches_says_so(endpoint: Endpoint, store: LedgerStore) -> None:
    config = teacher(endpoint, price=PRICE)
    endpoint.script(batches="refused")
    with pytest.raises(TeacherError, match=r"teacher\.mode = 'batch': http.* has no batches"):
        ask(config, store, requests(config, 5))
    assert [entry for entry in endpoint.book() if entry.route == "batch"] == []


def start_driver(uri: str, config: OpenAITeacher, count: int, owner: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.actors.batch_driver", uri, config.model_dump_json(), str(count), owner]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "STARTED\n"
    return driver


@pytest.mark.parametrize("seed", range(2))
def test_a_process_killed_at_any_moment_pays_nothing_twice(
    endpoint: Endpoint, store: LedgerStore, uri: str, seed: int
) -> None:
    """``kill -9`` again and again, then one that may finish: no request is in two batches."""
    endpoint.script(batch_running_s=1.5, batch_validating_s=0.3)
    config = teacher(endpoint)
    moments = random.Random(seed)
    for number in range(4):
        driver = start_driver(uri, config, 120 + 20 * number, f"job-{number}")
        time.sleep(moments.uniform(0.2, 3.0))
        driver.kill()
        driver.communicate()
        forsake(store)
        with store.database.write() as connection:
            own = tables.claims.c.owner.startswith("job-")
            connection.execute(sa.update(tables.claims).where(own).values(expires_at=0.0))
    output, _ = start_driver(uri, config, 200, "job-last").communicate(timeout=300)
    answers = json.loads(output.removeprefix("ANSWERS "))
    assert len(answers) == 200
    assert all(error is None for error, _ in answers)
    asked = Counter(line["custom_id"] for _, lines in batches_of(endpoint) for line in lines)
    assert set(asked.values()) == {1}
    assert answered(endpoint) == asked
    assert left_over(store)[:2] == (0, 0)
