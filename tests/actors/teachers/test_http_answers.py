"""The pool's HTTP teacher actor in the test process: trial requests, odd replies and their costs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.backends.openai import OpenAIBackend
from actors.ledger.store import LedgerStore
from actors.teachers.answers import Answer
from actors.teachers.bill import Bill
from actors.teachers.http import HttpTeacherActor
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.chat import Abilities
from potstill.endpoint.cost import Price
from potstill.errors import TeacherError
from potstill.rows import Message, Request
from tests.endpoint.client import Endpoint
from tests.support.batch_requests import requests, teacher
from tests.support.near import NearLedger, NearLimiter

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LedgerStore]:
    store = LedgerStore(f"sqlite:///{tmp_path}/ledger.db")
    yield store
    store.close()


def settings(endpoint: Endpoint, **changes: Any) -> OpenAITeacher:
    return teacher(endpoint, **{"mode": "realtime", "max_attempts": 2, **changes})


def probe(config: OpenAITeacher, choices: bool) -> Abilities:
    """Return the abilities found by a trial request."""

    async def run() -> Abilities:
        backend = OpenAIBackend(config)
        try:
            return await backend.probe(choices)
        finally:
            await backend.close()

    return asyncio.run(run())


def ask(config: OpenAITeacher, store: LedgerStore, wanted: list[Request]) -> list[Answer]:
    """Return the answers, without a trial request."""

    async def run() -> list[Answer]:
        actor = HttpTeacherActor(config, NearLedger(store), "job-a", NearLimiter(config))  # type: ignore[arg-type]
        try:
            return await asyncio.wait_for(actor.answer(wanted), 300)
        finally:
            await actor._backend.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ({"answers": {"wet": "maybe"}, "structured_output": "ignored"}, "names no class: 'maybe'"),
        ({"shares": {"refusal": 1.0}}, "refused"),
    ],
)
def test_a_model_that_names_no_class_is_blamed_where_classes_are_wanted(
    endpoint: Endpoint, script: dict[str, Any], said: str
) -> None:
    endpoint.script(**script)
    config = settings(endpoint)
    with pytest.raises(TeacherError, match=rf"^teacher\.model = 'scripted-1': .*{said}.*; name a chat model"):
        probe(config, choices=True)
    assert probe(config, choices=False) == Abilities()


def test_an_account_without_credit_is_reported(endpoint: Endpoint) -> None:
    endpoint.script(shares={"insufficient_quota": 1.0})
    for choices in (True, False):
        with pytest.raises(TeacherError, match=r"^teacher\.api_key_env = '': .* no credit .*; top it up"):
            probe(settings(endpoint), choices)


def test_a_trial_for_text_finds_the_parameters_for_texts(endpoint: Endpoint) -> None:
    endpoint.script(refused_parameters=("stop",), max_tokens="refused")
    assert probe(settings(endpoint), choices=False) == Abilities(stop=False, completion_tokens=True)


def test_an_endpoint_that_counts_no_tokens_is_detected(endpoint: Endpoint) -> None:
    endpoint.script(shares={"no_usage": 1.0})
    assert probe(settings(endpoint), choices=True) == Abilities(usage=False)


def test_a_budget_holds_where_no_tokens_are_counted(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(shares={"no_usage": 1.0})
    config = settings(endpoint, budget_usd=0.02, price={"prompt": 10.0, "completion": 20.0})
    wanted = requests(config, 60)
    with pytest.raises(TeacherError, match=r"budget_usd = 0\.02"):
        ask(config, store, wanted)
    most = int(0.02 / Bill(Price(10.0, 20.0)).at_worst(wanted[-1], Abilities()))
    assert 0 < len(endpoint.book()) <= most + 1 < 60


@pytest.mark.parametrize(("fault", "choices"), [("null_content", ()), ("refusal", ("app error", "billing", "refund"))])
def test_the_cost_of_a_failure_is_counted(
    endpoint: Endpoint, store: LedgerStore, fault: str, choices: tuple[str, ...]
) -> None:
    endpoint.script(shares={fault: 1.0})
    config = settings(endpoint)
    answers = [one.response for one in ask(config, store, requests(config, 4, choices))]
    assert all(one.error is not None and one.cost_usd > 0 for one in answers)
    paid = sum(entry.prompt_tokens * 1e-6 + entry.completion_tokens * 2e-6 for entry in endpoint.book())
    assert sum(one.cost_usd for one in answers) == pytest.approx(paid)


def test_a_forbidden_prompt_stops_no_other_request(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(poison={"Number 7.": 403})
    config = settings(endpoint)
    wanted = requests(config, 30)
    failed = {one.response.request_id: one.response.error for one in ask(config, store, wanted) if one.response.error}
    assert list(failed) == [wanted[7].request_id]
    assert failed[wanted[7].request_id].startswith("HTTP 403")  # type: ignore[union-attr]


def test_a_revoked_key_stops_everything(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(poison={"Number": 403})
    config = settings(endpoint)
    with pytest.raises(TeacherError, match=r"^teacher\.api_key_env"):
        ask(config, store, requests(config, 30))


def test_one_long_prompt_does_not_change_the_requests_after_it(endpoint: Endpoint, store: LedgerStore) -> None:
    endpoint.script(context_length=64)
    config = settings(endpoint)
    wanted = requests(config, 3)
    words = Message("user", "stop the temperature, logprobs and max_tokens " * 40)
    long = replace(wanted[0], messages=(words,), request_id="")
    answers = [one.response for one in ask(config, store, [long, *wanted])]
    assert answers[0].error is not None
    assert "context length" in answers[0].error
    assert all(one.error is None for one in answers[1:])
    assert len(endpoint.book()) == 4
