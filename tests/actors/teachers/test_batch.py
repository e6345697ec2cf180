"""Batches against the test endpoint, with a real ledger, pacer and allowance, in one process.

The requests are read from the batches' input files at the endpoint, the answers from its book.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from actors.backends.openai import OpenAIBackend
from actors.ledger.store import LedgerStore
from potstill.endpoint.chat import Abilities, body
from potstill.errors import TeacherError
from tests.endpoint.client import Endpoint
from tests.support.batch_asking import answered, ask, batches_of, fetch, left_over, start
from tests.support.batch_requests import requests, teacher

pytestmark = pytest.mark.slow


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


def test_requests_left_unprocessed_by_a_batch_are_asked_again(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_expired_share=0.5)
    config = teacher(endpoint, max_attempts=50)
    wanted = requests(config, 40)

    async def run() -> None:
        actor = start(config, store)
        asking = asyncio.create_task(actor.answer(wanted))
        while len(batches_of(endpoint)) < 2:
            await asyncio.sleep(0.05)
        endpoint.script(batch_expired_share=0.0)
        assert all(answer.response.error is None for answer in await asyncio.wait_for(asking, 300))
        await actor.close()

    asyncio.run(run())
    assert set(answered(endpoint).values()) == {1}


def test_a_failed_batch_reports_why_and_leaves_nothing_claimed(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_failure="The model is not for the Batch API.")
    config = teacher(endpoint)
    with pytest.raises(TeacherError, match=r"failed batch batch_00000001: The model is not for the Batch API\."):
        ask(config, store, requests(config, 5))
    assert left_over(store) == (0, 0, ["dead"])
    endpoint.script(batch_failure="")
    assert all(answer.response.text for answer in ask(config, store, requests(config, 5)))


def test_a_cancelled_batch_keeps_its_answers(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(batch_running_s=600)  # after the first 50, which are answered at once
    config = teacher(endpoint)

    async def run() -> None:
        actor = start(config, store)
        asking = asyncio.create_task(actor.answer(requests(config, 200)))
        while not (running := batches_of(endpoint)) or running[0][0]["request_counts"]["completed"] < 50:
            await asyncio.sleep(0.05)
        fetch(endpoint, f"/batches/{running[0][0]['id']}/cancel", "POST")
        with pytest.raises(TeacherError, match=r"batch_00000001 was cancelled .*; \d+ of its 200 requests"):
            await asyncio.wait_for(asking, 300)
        await actor.close()

    asyncio.run(run())
    done = store.count_known([request.request_id for request in requests(config, 200)])
    assert 50 <= done < 200
    endpoint.script(batch_running_s=0)
    store.release("job-a")
    answers = ask(config, store, requests(config, 200), "job-b")
    assert sum(answer.reused for answer in answers) == done
    assert set(answered(endpoint).values()) == {1}


def test_requests_beyond_one_files_limit_go_into_several(
    endpoint: Endpoint, store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.endpoint.batch_files import Room

    monkeypatch.setattr("actors.teachers.batch_queue.Room", lambda: Room(lines=70))
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


def test_a_budget_admits_only_what_it_covers(endpoint: Endpoint, store: LedgerStore) -> None:
    config = teacher(endpoint, budget_usd=0.01, price={"prompt": 10.0, "completion": 20.0})
    wanted = requests(config, 200)
    with pytest.raises(TeacherError, match=r"budget_usd = 0\.01 reached"):
        ask(config, store, wanted)
    lines = [entry for entry in endpoint.book() if entry.route == "batch"]
    paid = sum(entry.prompt_tokens * 10e-6 + entry.completion_tokens * 20e-6 for entry in lines)
    assert 0 < len(lines) < 200
    assert paid <= 0.01
    assert len(batches_of(endpoint)) > 1  # later batches used what the first had left
    assert store.count_known([request.request_id for request in wanted]) == len(lines)
