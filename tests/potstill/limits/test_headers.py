"""Rate-limit headers of working and of broken endpoints."""

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.limits.headers import Announced, RateHeaders, parse_wait, read_rate_headers

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 1.0),
        ("0", 0.0),
        (" 2.5 ", 2.5),
        ("1s", 1.0),
        ("20ms", 0.02),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("2m59.56s", 179.56),
        ("1d", 86400.0),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW - 30, usegmt=True), 0.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("2023-11-14T22:13:50Z", 30.0),
        ("2023-11-14T23:13:50+01:00", 30.0),
    ],
)
def test_waits_are_read_in_every_form(text, seconds):
    assert parse_wait(text, NOW) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1", "1x", "s", "1s later", "nan", "inf", "9" * 400, "Tue, 99 Foo"])
def test_invalid_waits_give_none(text):
    assert parse_wait(text, NOW) is None


def test_openai_headers_in_any_case():
    headers = {
        "X-RateLimit-Limit-Requests": "3000",
        "x-ratelimit-remaining-requests": "2999",
        "x-ratelimit-reset-requests": "20ms",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6ms",
        "Content-Type": "application/json",
    }
    read = read_rate_headers(headers, NOW)
    assert read == RateHeaders(Announced(3000, 2999, 0.02), Announced(150000, 149984, 0.006), None)
    assert read.requests.per_minute == 3000
    assert read.tokens.per_minute == 150000


def test_anthropic_headers():
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:50Z",
        "retry-after": "7",
    }
    assert read_rate_headers(headers, NOW) == RateHeaders(Announced(50, 0, 30.0), None, 7.0)


def test_a_limit_that_resets_in_over_a_minute_is_not_a_rate():
    a_days = Announced(14400, 14370, 179.56)
    assert a_days.per_minute is None
    assert a_days.exhausted_s == 0.0
    assert Announced(14400, 0, 3600.0).exhausted_s == 3600.0
    assert Announced(3000, 0, 60.0).exhausted_s == 0.0
    assert Announced(0, 0, 1.0).per_minute is None


def test_retry_after_in_milliseconds_goes_first():
    assert read_rate_headers({"retry-after-ms": "250", "retry-after": "1"}, NOW).retry_after_s == 0.25
    assert read_rate_headers({"retry-after-ms": "soon", "retry-after": "1"}, NOW).retry_after_s == 1.0


def test_headers_without_limits_give_none():
    assert read_rate_headers({"date": "today"}, NOW) is None
    assert read_rate_headers({"x-ratelimit-limit-requests": "many", "retry-after": "later"}, NOW) is None


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-limit-requests"]), st.text()))
def test_no_header_makes_it_raise_or_wait_for_less_than_nothing(headers):
    read = read_rate_headers(headers, NOW)
    assert read is None or read.retry_after_s is None or read.retry_after_s >= 0
