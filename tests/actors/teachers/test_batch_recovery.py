"""Batches whose process dies, runs beside another, or adopts another's batches: nothing is asked or paid for twice."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa

from actors.ledger import tables
from actors.ledger.store import LedgerStore
from actors.teachers.answers import Answer
from potstill.config.teacher import OpenAITeacher
from potstill.errors import TeacherError
from tests.endpoint.client import ROOT, Endpoint
from tests.support.batch_asking import answered, ask, batches_of, expire_leases, left_over, start
from tests.support.batch_requests import PRICE, requests, teacher

pytestmark = pytest.mark.slow


def test_a_creation_without_an_answer_is_found_not_repeated(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_lost_answers=1)
    config = teacher(endpoint)
    assert all(answer.response.error is None for answer in ask(config, store, requests(config, 20)))
    assert len(batches_of(endpoint)) == 1


def test_intermittent_failures_of_the_endpoint(endpoint: Endpoint, store: LedgerStore) -> None:
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
    """The process "dies" by blocking at that call; its leases expire, and another takes over."""
    endpoint.script(batch_running_s=1.0)
    config = teacher(endpoint)
    wanted = requests(config, 30)

    async def stuck(*_: Any, **__: Any) -> Any:
        reached.set()
        await asyncio.Event().wait()

    reached = asyncio.Event()

    async def run() -> None:
        from actors.backends.openai_batches import BatchApi
        from actors.ledger.batch_book import BatchBook

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
            await asyncio.wait_for(reached.wait(), 300)
            asking.cancel()
            await actor.close()
        # Its claims on requests and batches are no longer renewed.
        with store.database.write() as connection:
            mine = tables.claims.c.owner == "job-a"
            connection.execute(sa.update(tables.claims).where(mine).values(expires_at=0.0))
        assert store.take([wanted[0].request_id], "job-x").others == (wanted[0].request_id,)
        expire_leases(store)
        other = start(config, store, "job-b")
        answers = await asyncio.wait_for(other.answer(wanted), 300)
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
        found = await asyncio.wait_for(asyncio.gather(one.answer(wanted[:40]), two.answer(wanted[20:])), 300)
        await one.close()
        await two.close()
        return list(found)

    first, second = asyncio.run(run())
    assert all(answer.response.error is None for answer in [*first, *second])
    assert set(answered(endpoint).values()) == {1}
    assert sum(answer.reused for answer in [*first, *second]) == 20


def test_final_failures_of_an_adopted_batch_are_not_asked_again(endpoint: Endpoint, store: LedgerStore) -> None:
    """Final errors are known; only transient failures go into another batch."""
    endpoint.script(poison={"Number 3.": 400}, batch_expired_share=0.2, batch_running_s=600)
    config = teacher(endpoint)
    wanted = requests(config, 20)

    async def run() -> list[Answer]:
        actor = start(config, store)
        asking = asyncio.create_task(actor.answer(wanted))
        while not any(batch["status"] == "in_progress" for batch, _ in batches_of(endpoint)):
            await asyncio.sleep(0.05)
        # A batch decides at its start which requests it leaves unprocessed; only the first leaves any.
        endpoint.script(batch_expired_share=0.0, batch_running_s=0)
        endpoint.hurry_batches()
        asking.cancel()
        await actor.close()
        store.release("job-a")
        other = start(config, store, "job-b")
        answers = await asyncio.wait_for(other.answer(wanted), 300)
        await other.close()
        return answers

    answers = asyncio.run(run())
    assert sum(answer.response.error is not None for answer in answers) == 1
    # The second holds the fifth left unprocessed by the first, without the final failures.
    assert [len(lines) for _, lines in batches_of(endpoint)] == [20, 4]
    assert set(answered(endpoint).values()) == {1}


def test_a_batch_unknown_to_the_endpoint_is_not_submitted_again(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_running_s=600)
    config = teacher(endpoint, provider="mine")

    def is_noted() -> bool:
        with store.database.read() as connection:
            return connection.execute(sa.select(tables.batches.c.batch_id)).scalar() is not None

    async def submit() -> None:
        actor = start(config, store)
        asking = asyncio.create_task(actor.answer(requests(config, 5)))
        while not is_noted():
            await asyncio.sleep(0.05)
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


def test_an_endpoint_without_batches_is_reported(endpoint: Endpoint, store: LedgerStore) -> None:
    config = teacher(endpoint, price=PRICE)
    endpoint.script(batches="refused")
    with pytest.raises(TeacherError, match=r"teacher\.mode = 'batch': http.* has no batches"):
        ask(config, store, requests(config, 5))
    assert [entry for entry in endpoint.book() if entry.route == "batch"] == []


def start_driver(uri: str, config: OpenAITeacher, count: int, owner: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.batch_driver", uri, config.model_dump_json(), str(count), owner]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "STARTED\n"
    return driver


@pytest.mark.parametrize("seed", range(2))
def test_a_process_killed_at_any_moment_pays_nothing_twice(
    endpoint: Endpoint, store: LedgerStore, uri: str, seed: int
) -> None:
    """``kill -9`` repeatedly, then let one finish: no request is in two batches."""
    endpoint.script(batch_running_s=1.5, batch_validating_s=0.3)
    config = teacher(endpoint)
    moments = random.Random(seed)
    for number in range(4):
        driver = start_driver(uri, config, 120 + 20 * number, f"job-{number}")
        time.sleep(moments.uniform(0.2, 3.0))
        driver.kill()
        driver.communicate()
        expire_leases(store)
        with store.database.write() as connection:
            own = tables.claims.c.owner.startswith("job-")
            connection.execute(sa.update(tables.claims).where(own).values(expires_at=0.0))
    output, _ = start_driver(uri, config, 200, "job-last").communicate(timeout=800)
    answers = json.loads(output.removeprefix("ANSWERS "))
    assert len(answers) == 200
    assert all(error is None for error, _ in answers)
    asked = Counter(line["custom_id"] for _, lines in batches_of(endpoint) for line in lines)
    assert set(asked.values()) == {1}
    assert answered(endpoint) == asked
    assert left_over(store)[:2] == (0, 0)
