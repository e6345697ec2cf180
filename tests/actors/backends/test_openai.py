"""The HTTP backend against a real endpoint that misbehaves."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actors.backends.openai import OpenAIBackend, Sent
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.chat import Abilities
from potstill.errors import TeacherError
from potstill.rows import Message, Request, Sampling
from tests.endpoint.behaviour import Script
from tests.endpoint.client import Endpoint

KEY = "sk-very-secret-0123456789"
CLASSES = ("app error", "billing", "refund")
QUESTION = "Classes:\nA. app error: x\nB. billing: y\nC. refund: z\n\nText: pay me back\nClass:"


@pytest.fixture(scope="module")
def running() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A reset endpoint, and a key in the environment."""
    monkeypatch.setenv("TEST_KEY", KEY)
    running.clear_book()
    yield running
    from dataclasses import asdict

    running.script(**asdict(Script()))


def teacher(endpoint: Endpoint, **changes: Any) -> OpenAITeacher:
    settings = {"kind": "openai", "model": "scripted-1", "base_url": endpoint.base_url, "api_key_env": "TEST_KEY"}
    return OpenAITeacher(**{**settings, **changes})


def request(
    content: str = "Write 3 new, different examples.", choices: tuple[str, ...] = (), **sampling: Any
) -> Request:
    return Request(
        "generate",
        "t",
        "s",
        "codes",
        "host",
        "scripted-1",
        None,
        (Message("user", content),),
        Sampling(**{"max_tokens": 64, **sampling}),
        choices,
    )


def send(config: OpenAITeacher, *requests: Request, abilities: Abilities | None = None) -> tuple[list[Sent], Abilities]:
    """Send each request once; return the results and the endpoint's abilities found by the backend."""

    async def work() -> tuple[list[Sent], Abilities]:
        backend = OpenAIBackend(config, abilities)
        try:
            return [await backend.send(one) for one in requests], backend.abilities
        finally:
            await backend.close()

    return asyncio.run(work())


def probe(config: OpenAITeacher) -> Abilities:
    async def work() -> Abilities:
        backend = OpenAIBackend(config)
        try:
            return await backend.probe()
        finally:
            await backend.close()

    return asyncio.run(work())


def test_text_and_tokens(endpoint: Endpoint) -> None:
    (sent,), _ = send(teacher(endpoint), request())
    assert sent.failure is None
    assert sent.response is not None
    assert sent.response.text
    assert sent.response.prompt_tokens > 0
    assert sent.response.completion_tokens == sent.completion_tokens > 0
    assert sent.response.latency_s > 0


def test_a_class_comes_with_its_distribution(endpoint: Endpoint) -> None:
    (sent,), _ = send(teacher(endpoint), request(QUESTION, CLASSES))
    assert sent.response is not None
    logprobs = sent.response.choice_logprobs
    assert len(logprobs) == 3
    assert None not in logprobs
    assert sum(map(math.exp, logprobs)) + sent.response.residual_mass == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ({}, Abilities()),
        ({"logprobs": "refused"}, Abilities(logprobs=False)),
        ({"structured_output": "refused"}, Abilities(schema=False)),
        ({"structured_output": "refused", "logprobs": "refused"}, Abilities(schema=False, logprobs=False)),
        ({"temperature": "refused"}, Abilities(temperature=False)),
        ({"max_tokens": "refused"}, Abilities(completion_tokens=True)),
        (
            {"temperature": "refused", "max_tokens": "refused", "logprobs": "refused"},
            Abilities(temperature=False, completion_tokens=True, logprobs=False),
        ),
    ],
)
def test_the_probe_finds_what_the_endpoint_supports(
    endpoint: Endpoint, script: dict[str, Any], found: Abilities
) -> None:
    endpoint.script(**script)
    assert probe(teacher(endpoint)) == found
    endpoint.clear_book()
    (sent,), _ = send(teacher(endpoint), request(QUESTION, CLASSES), abilities=found)
    assert sent.failure is None
    assert [entry.status for entry in endpoint.book()] == [200], "once known, nothing is tried in vain"


def test_logprobs_that_are_silently_ignored_leave_a_vote(endpoint: Endpoint) -> None:
    endpoint.script(logprobs="ignored")
    (sent,), _ = send(teacher(endpoint), request(QUESTION, CLASSES))
    assert sent.response is not None
    assert sorted(value is None for value in sent.response.choice_logprobs) == [False, True, True]


def test_free_text_is_resolved_to_a_class(endpoint: Endpoint) -> None:
    endpoint.script(structured_output="refused", logprobs="refused", option_format="The class is {}.", options=CLASSES)
    (sent,), _ = send(teacher(endpoint), request(QUESTION, CLASSES))
    assert sent.response is not None
    assert 0.0 in sent.response.choice_logprobs


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("429", "throttled"),
        ("insufficient_quota", "fatal"),
        ("500", "transient"),
        ("502", "transient"),
        ("503", "transient"),
        ("529", "transient"),
        ("content_filter", "final"),
        ("context_length", "final"),
        ("reset_before", "transient"),
        ("reset_midway", "transient"),
        ("truncated_json", "transient"),
        ("not_json", "transient"),
        ("html_page", "transient"),
        ("empty_body", "transient"),
        ("invalid_utf8", "transient"),
        ("no_choices", "transient"),
        ("null_content", "final"),
        ("refusal", "final"),
    ],
)
def test_every_fault_has_its_kind(endpoint: Endpoint, fault: str, kind: str) -> None:
    endpoint.script(shares={fault: 1.0})
    (sent,), _ = send(teacher(endpoint), request())
    assert sent.failure is not None
    assert sent.failure.kind == kind
    assert "\n" not in sent.failure.message


def test_answers_without_usage_and_very_long_answers_are_accepted(endpoint: Endpoint) -> None:
    for fault in ("no_usage", "huge", "wrong_type"):
        endpoint.script(shares={fault: 1.0}, huge_bytes=300_000)
        (sent,), _ = send(teacher(endpoint), request())
        assert sent.response is not None, fault


def test_a_hanging_endpoint_times_out(endpoint: Endpoint) -> None:
    endpoint.script(shares={"hang": 1.0})
    (sent,), _ = send(teacher(endpoint, timeout_s=0.3), request())
    assert sent.failure is not None
    assert "teacher.timeout_s = 0.3" in sent.failure.message


def test_retry_after_is_passed_on(endpoint: Endpoint) -> None:
    endpoint.script(storm_requests=1, storm_retry_after_s=7)
    (sent,), _ = send(teacher(endpoint), request())
    assert sent.failure is not None
    assert sent.failure.retry_after_s == 7


def test_a_wrong_key_is_reported_in_one_line_that_omits_it(endpoint: Endpoint) -> None:
    endpoint.script(keys=("another",), echo_key=True)
    with pytest.raises(TeacherError, match=r"^teacher.api_key_env = 'TEST_KEY': .* refuses its key") as caught:
        probe(teacher(endpoint))
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_and_a_wrong_address(endpoint: Endpoint) -> None:
    with pytest.raises(TeacherError, match=r"^teacher.model = 'gpt-99': .* does not know it"):
        probe(teacher(endpoint, model="gpt-99"))
    with pytest.raises(TeacherError, match=r"^teacher.base_url = .*for most endpoints it ends in /v1"):
        probe(teacher(endpoint, base_url=endpoint.root_url))
    with pytest.raises(TeacherError, match=r"^teacher.base_url = 'http://127.0.0.1:1/v1': can't be reached"):
        probe(teacher(endpoint, base_url="http://127.0.0.1:1/v1", timeout_s=2))


def test_a_missing_key_is_reported_before_anything_is_sent(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(TeacherError, match=r"teacher\.api_key_env = 'TEST_KEY': no such environment variable"):
        probe(teacher(endpoint))
    assert endpoint.book() == []
    assert probe(teacher(endpoint, api_key_env="")) == Abilities()


def test_hundreds_of_requests_are_in_flight_at_once(endpoint: Endpoint) -> None:
    """aiohttp's default limit is 100 connections; only the limiter bounds the requests in flight."""
    endpoint.script(shares={"hang": 1.0})

    async def work() -> None:
        backend = OpenAIBackend(teacher(endpoint, timeout_s=3600.0))
        sending = [asyncio.create_task(backend.send(request(f"Write {i} examples."))) for i in range(300)]
        deadline = time.monotonic() + 300
        while len(await asyncio.to_thread(endpoint.book)) < 300 and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        for one in sending:
            one.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        await backend.close()

    asyncio.run(work())
    assert len(endpoint.book()) == 300  # none ended before the last one arrived
