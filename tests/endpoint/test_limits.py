"""Token buckets against the generic cell rate algorithm and their bound; limits and storms over HTTP."""

import email.utils
import math
import time
from fractions import Fraction

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.endpoint.asking import ask, ask_all, chat, post, with_client
from tests.endpoint.behaviour import Script, draw_fault, draw_latency_s
from tests.endpoint.limits import Limits, format_duration, retry_headers

MILLISECONDS = st.lists(st.integers(0, 3000), min_size=1, max_size=60)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@given(gaps_ms=MILLISECONDS, per_minute=st.sampled_from([30, 60, 240, 3000]), burst_s=st.sampled_from([0.5, 1, 4, 60]))
def test_the_request_limit_is_the_generic_cell_rate_algorithm(gaps_ms, per_minute, burst_s):
    clock = Clock()
    limits = Limits(Script(requests_per_minute=per_minute, burst_s=burst_s), clock)
    interval = Fraction(60, per_minute)
    tolerance = (max(1, Fraction(per_minute, 60) * Fraction(burst_s)) - 1) * interval
    due = now = Fraction(0)
    for gap in gaps_ms:
        now += Fraction(gap, 1000)
        clock.now = float(now)
        conforms = now >= due - tolerance
        excess = limits.admit(0)
        assert (excess is None) == conforms
        if conforms:
            due = max(due, now) + interval
        else:
            assert excess.wait_s == pytest.approx(float(due - tolerance - now), abs=1e-6)


@given(asked=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 300)), min_size=1, max_size=60))
def test_no_interval_gets_more_tokens_than_the_bound(asked):
    clock = Clock()
    limits = Limits(Script(tokens_per_minute=6000, burst_s=4), clock)
    admitted = []
    for gap, tokens in asked:
        clock.now += gap / 1000
        if limits.admit(tokens) is None:
            admitted.append((clock.now, tokens))
    for i, (first, _) in enumerate(admitted):
        for last, _ in admitted[i:]:
            within = sum(tokens for at, tokens in admitted if first <= at <= last)
            assert within <= 100 * (last - first + 4) + 1e-6


@given(gaps_ms=MILLISECONDS)
def test_a_retry_after_the_given_wait_is_admitted(gaps_ms):
    clock = Clock()
    limits = Limits(Script(requests_per_minute=90, tokens_per_minute=3000, burst_s=2), clock)
    for gap in gaps_ms:
        clock.now += gap / 1000
        excess = limits.admit(70)
        if excess is not None:
            clock.now += excess.wait_s
            assert limits.admit(70) is None


def test_a_full_bucket_admits_a_larger_request_and_goes_into_debt():
    clock = Clock()
    limits = Limits(Script(tokens_per_minute=600, burst_s=1), clock)
    assert limits.admit(50) is None
    assert limits.admit(1).wait_s == pytest.approx(4.1)


def test_a_refused_request_costs_nothing():
    clock = Clock()
    limits = Limits(Script(requests_per_minute=600, tokens_per_minute=600, burst_s=1), clock)
    assert limits.admit(10) is None
    for _ in range(5):
        assert limits.admit(10).kind == "tokens"
    assert limits.headers()["x-ratelimit-remaining-requests"] == "9"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0201, "21ms"), (1, "1s"), (7.66, "7.66s"), (360, "6m0s"), (90.5, "1m30.5s"), (3723, "1h2m3s")],
)
def test_durations_are_written_as_openai_does(seconds, text):
    assert format_duration(seconds) == text


def test_retry_headers():
    assert retry_headers(Script(), 1.2) == {"Retry-After": "2", "retry-after-ms": "1200"}
    assert retry_headers(Script(), None) == {}
    assert retry_headers(Script(limit_headers="none"), 1.2) == {}
    date = retry_headers(Script(retry_after_form="date"), 90)["Retry-After"]
    assert 85 < email.utils.parsedate_to_datetime(date).timestamp() - time.time() < 95


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_latencies_are_lognormal(sigma):
    script = Script(latency_s=0.2, latency_sigma=sigma)
    drawn = [math.log(draw_latency_s(script, str(i)) / 0.2) for i in range(4000)]
    mean = sum(drawn) / len(drawn)
    spread = math.sqrt(sum((x - mean) ** 2 for x in drawn) / len(drawn))
    assert abs(mean) < 0.03
    assert spread == pytest.approx(sigma, abs=0.02)


def test_faults_are_as_frequent_as_their_shares():
    shares = {"500": 0.1, "hang": 0.02, "huge": 0.3}
    drawn = [draw_fault(shares, 0, str(i)) for i in range(20_000)]
    for fault, share in shares.items():
        assert drawn.count(fault) / len(drawn) == pytest.approx(share, abs=0.01)


# -- over HTTP


def test_a_request_limit_is_kept_and_announced(endpoint):
    endpoint.script(requests_per_minute=6, burst_s=30)  # three at once, then one per ten seconds
    started = time.monotonic()
    answers = ask_all(endpoint, [f"Question {i}" for i in range(12)])
    elapsed_s = time.monotonic() - started
    served = [answer for answer in answers if not isinstance(answer, Exception)]
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert len(served) + len(refused) == 12
    assert 3 <= len(served) <= 3 + elapsed_s / 10
    headers = refused[-1].response.headers
    assert headers["x-ratelimit-limit-requests"] == "6"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    assert 1 <= int(headers["retry-after"]) <= 10
    assert int(headers["retry-after-ms"]) <= int(headers["retry-after"]) * 1000
    assert refused[-1].code == "rate_limit_exceeded"
    assert [entry.status for entry in endpoint.book()].count(200) == len(served)


def test_good_answers_show_the_remaining_limit(endpoint):
    endpoint.script(requests_per_minute=60, tokens_per_minute=6000, burst_s=60)

    async def use(client):
        return (await client.chat.completions.with_raw_response.create(**chat("x" * 40, max_tokens=86))).headers

    headers = with_client(endpoint, use)
    assert headers["x-ratelimit-limit-tokens"] == "6000"
    assert headers["x-ratelimit-remaining-requests"] == "59"
    assert headers["x-ratelimit-remaining-tokens"] == "5900"
    assert "retry-after" not in headers


def test_a_token_limit_counts_prompt_and_limit(endpoint):
    endpoint.script(tokens_per_minute=60, burst_s=60)
    ask(endpoint, "x" * 40, max_tokens=46)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(endpoint, "x" * 40, max_tokens=46)
    assert refused.value.type == "tokens"


@pytest.mark.parametrize(("told", "names"), [("retry_after", {"retry-after", "retry-after-ms"}), ("none", set())])
def test_limits_can_go_unannounced(endpoint, told, names):
    endpoint.script(requests_per_minute=1, limit_headers=told)
    assert post(endpoint, chat())[0] == 200
    status, headers, _ = post(endpoint, chat())
    assert status == 429
    assert {name.lower() for name in headers if "limit" in name.lower() or "retry" in name.lower()} == names


def test_a_storm_over_the_first_requests(endpoint):
    endpoint.script(storm_requests=3, storm_retry_after_s=7)
    results = [post(endpoint, chat()) for _ in range(5)]
    assert [status for status, _, _ in results] == [429, 429, 429, 200, 200]
    assert results[0][1]["Retry-After"] == "7"
    endpoint.script(storm_requests=1, storm_retry_after_s=None)
    status, headers, _ = post(endpoint, chat())
    assert (status, "Retry-After" in headers) == (429, False)
    assert post(endpoint, chat())[0] == 200


def test_a_storm_of_some_seconds(endpoint):
    before = time.monotonic()
    endpoint.script(storm_s=1.5)
    after = time.monotonic()
    first = post(endpoint, chat())[0]
    assert first == 429 or time.monotonic() - before > 1.5
    while post(endpoint, chat())[0] == 429:
        assert time.monotonic() - after < 60
        time.sleep(0.02)
    assert time.monotonic() - before > 1.5


def test_too_many_concurrent_requests(endpoint):
    endpoint.script(max_in_flight=4, latency_s=2.0)
    answers = ask_all(endpoint, [f"Question {i}" for i in range(20)])
    entries = endpoint.book()
    served = [entry for entry in entries if entry.status == 200]
    assert len(served) == sum(not isinstance(answer, Exception) for answer in answers) >= 4
    for entry in served:
        others = [other for other in served if other.arrived <= entry.arrived < other.arrived + 1.99]
        assert len(others) <= 4
    assert {entry.fault for entry in entries if entry.status == 429} == {"in_flight"}
