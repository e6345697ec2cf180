"""Every fault alone: what the client sees and what the book records."""

import asyncio
import json
import time

import aiohttp
import openai
import pytest

from tests.endpoint.asking import ask, ask_all, chat, post, with_client
from tests.endpoint.behaviour import FAULTS
from tests.endpoint.client import ROOT


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("429", 429, "rate_limit_exceeded"),
        ("insufficient_quota", 429, "insufficient_quota"),
        ("500", 500, None),
        ("502", 502, None),
        ("503", 503, None),
        ("529", 529, None),
        ("content_filter", 400, "content_filter"),
        ("context_length", 400, "context_length_exceeded"),
    ],
)
def test_errors(endpoint, fault, status, code):
    endpoint.script(shares={fault: 1})
    with pytest.raises(openai.APIStatusError) as failed:
        ask(endpoint)
    assert (failed.value.status_code, failed.value.code) == (status, code)
    (entry,) = endpoint.book()
    assert (entry.status, entry.fault, entry.whole, entry.answered) == (status, fault, True, False)


def test_errors_can_carry_retry_after(endpoint):
    endpoint.script(shares={"503": 1}, fault_retry_after_s=3600)
    status, headers, _ = post(endpoint, chat())
    assert (status, headers["Retry-After"]) == (503, "3600")
    endpoint.script(fault_retry_after_s=None)
    assert "Retry-After" not in post(endpoint, chat())[1]


def test_a_hang_ends_when_the_client_gives_up(endpoint):
    endpoint.script(shares={"hang": 1})
    begun = time.time()
    with pytest.raises(openai.APITimeoutError):
        ask(endpoint, timeout_s=1)
    entry = wait_for_end(endpoint)
    assert (entry.status, entry.whole, entry.fault) == (None, False, "hang")
    assert entry.ended - begun > 0.9


def wait_for_end(endpoint):
    """The one entry, once the server has noticed that it is over."""
    for _ in range(6000):
        (entry,) = endpoint.book()
        if entry.ended is not None:
            return entry
        time.sleep(0.05)
    raise AssertionError("the request never ended")


def test_an_answer_to_a_client_that_left_is_not_whole(endpoint):
    endpoint.script(latency_s=60)
    with pytest.raises(openai.APITimeoutError):
        ask(endpoint, timeout_s=1)
    entry = wait_for_end(endpoint)
    assert (entry.status, entry.whole, entry.fault) == (None, False, "")


def test_an_answer_is_not_whole_if_the_client_leaves_during_it(endpoint):
    endpoint.script(shares={"huge": 1}, huge_bytes=40_000_000)

    async def read_a_little():
        async with (
            aiohttp.ClientSession() as session,
            session.post(endpoint.base_url + "/chat/completions", json=chat()) as response,
        ):
            await response.content.readexactly(1000)
            response.close()

    asyncio.run(read_a_little())
    entry = wait_for_end(endpoint)
    assert (entry.status, entry.whole) == (200, False)


def test_a_reset_before_the_answer(endpoint):
    endpoint.script(shares={"reset_before": 1})
    with pytest.raises(openai.APIConnectionError):
        ask(endpoint)
    with pytest.raises(aiohttp.ClientOSError, match="reset by peer"):
        post(endpoint, chat())
    assert [(entry.status, entry.whole) for entry in endpoint.book()] == [(None, False)] * 2


def test_a_reset_in_mid_body(endpoint):
    endpoint.script(shares={"reset_midway": 1})
    with pytest.raises((openai.APIConnectionError, aiohttp.ClientError)):
        ask(endpoint)

    async def read():
        async with (
            aiohttp.ClientSession() as session,
            session.post(endpoint.base_url + "/chat/completions", json=chat()) as response,
        ):
            first = await response.content.readexactly(20)
            with pytest.raises(aiohttp.ClientError):
                await response.read()
            return response.status, first

    status, first = asyncio.run(read())
    assert (status, first[:6]) == (200, b'{"id":')
    assert [(entry.status, entry.whole) for entry in endpoint.book()] == [(200, False)] * 2


@pytest.mark.parametrize("fault", ["truncated_json", "not_json", "empty_body", "invalid_utf8"])
def test_bodies_that_are_not_json(endpoint, fault):
    endpoint.script(shares={fault: 1})
    status, headers, body = post(endpoint, chat())
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert len(body) == int(headers["Content-Length"])
    with pytest.raises(ValueError, match=r"codec|Expecting|Unterminated|delimiter"):
        json.loads(body)
    if fault == "invalid_utf8":
        assert json.loads(body.decode(errors="replace"))["choices"][0]["message"]["content"]
    (entry,) = endpoint.book()
    assert (entry.status, entry.whole, entry.fault) == (200, True, fault)


def test_a_good_body_of_the_wrong_type(endpoint):
    endpoint.script(shares={"wrong_type": 1})
    _, headers, body = post(endpoint, chat())
    assert headers["Content-Type"] == "text/html"
    assert json.loads(body)["choices"]
    assert ask(endpoint).choices[0].message.content  # the openai package doesn't mind
    endpoint.script(shares={"html_page": 1})
    assert ask(endpoint).startswith("<html>")  # nor here: it returns a bare string where an object is expected


def test_empty_answers(endpoint):
    endpoint.script(shares={"no_choices": 1})
    assert ask(endpoint).choices == []
    endpoint.script(shares={"null_content": 1})
    assert ask(endpoint).choices[0].message.content is None
    endpoint.script(shares={"refusal": 1})
    message = ask(endpoint).choices[0].message
    assert message.content is None
    assert message.refusal.startswith("I'm sorry")
    endpoint.script(shares={"no_usage": 1})
    assert ask(endpoint).usage is None
    assert [entry.completion_tokens > 0 for entry in endpoint.book()] == [True, True, True, False]


def test_an_answer_cut_by_its_length(endpoint):
    endpoint.script(shares={"length": 1})
    cut = ask(endpoint)
    endpoint.script(shares={})
    whole = ask(endpoint)
    assert cut.choices[0].finish_reason == "length"
    assert whole.choices[0].message.content.startswith(cut.choices[0].message.content)
    assert 0 < cut.usage.completion_tokens < whole.usage.completion_tokens


def test_a_huge_reply(endpoint):
    endpoint.script(shares={"huge": 1}, huge_bytes=8_000_000)
    assert len(ask(endpoint).choices[0].message.content) == 8_000_000
    assert [entry.whole for entry in endpoint.book()] == [True]


def test_every_fault_is_tested_above():
    source = (ROOT / "tests/endpoint/test_faults.py").read_text()
    assert [fault for fault in FAULTS if f'"{fault}"' not in source] == []


def test_poison_always_kills(endpoint):
    endpoint.script(poison={"arsenic": 500, "hemlock": 400})
    for _ in range(3):
        with pytest.raises(openai.InternalServerError):
            ask(endpoint, "Some arsenic, please.")
        with pytest.raises(openai.BadRequestError):
            ask(endpoint, "A cup of hemlock.")
    ask(endpoint, "Tea.")
    assert [entry.fault for entry in endpoint.book()] == ["poison"] * 6 + [""]


def test_latency_is_waited_for(endpoint):
    endpoint.script(latency_s=0.2)
    ask_all(endpoint, [f"Question {i}" for i in range(8)])
    assert all(entry.ended - entry.arrived >= 0.19 for entry in endpoint.book())


@pytest.mark.parametrize("decided_by", ["content", "attempt", "arrival"])
def test_shares_hit_the_same_requests_in_every_run(endpoint, decided_by):
    endpoint.script(shares={"500": 0.4}, decided_by=decided_by)
    prompts = [f"Question {i}" for i in range(30)]
    rounds = []
    for _ in range(2):
        endpoint.clear_book()
        answers = ask_all(endpoint, prompts, at_once=1 if decided_by == "arrival" else 30)
        rounds.append([isinstance(answer, Exception) for answer in answers])
    assert rounds[0] == rounds[1]
    assert 4 <= sum(rounds[0]) <= 20
    again = [isinstance(answer, Exception) for answer in ask_all(endpoint, prompts)]
    assert (again == rounds[0]) == (decided_by == "content")


def test_the_other_apis_can_also_fail(endpoint):
    endpoint.script(api_shares={"503": 1})
    with pytest.raises(openai.InternalServerError):
        with_client(endpoint, lambda client: client.models.retrieve("scripted-1"))
    ask(endpoint)
    endpoint.script(api_shares={"reset_before": 1})
    with pytest.raises(openai.APIConnectionError):
        with_client(endpoint, lambda client: client.models.retrieve("scripted-1"))
    routes = [entry.route for entry in endpoint.book()]
    assert routes[:2] == ["models", "chat"]
    assert set(routes[2:]) == {"models"}  # aiohttp retries a GET that was reset, but not a POST
