import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.endpoint.failures import LONGEST_BACKOFF_S, MOST_FORBIDDEN, Refusals, backoff_s, classify


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (429, None, "throttled"),
        (429, "rate_limit_exceeded", "throttled"),
        (429, "insufficient_quota", "fatal"),
        (500, None, "transient"),
        (502, None, "transient"),
        (503, None, "transient"),
        (529, None, "transient"),
        (408, None, "transient"),
        (599, None, "transient"),
        (400, "context_length_exceeded", "final"),
        (400, "content_filter", "final"),
        (422, None, "final"),
        (401, "invalid_api_key", "fatal"),
        (403, None, "fatal"),
        (404, "model_not_found", "fatal"),
    ],
)
def test_kinds(status, code, kind):
    assert classify(status, code, "a\n message").kind == kind


def test_the_message_is_one_line_with_the_status():
    failure = classify(503, None, "over\nloaded  now", retry_after_s=7)
    assert failure.message == "HTTP 503: over loaded now"
    assert failure.retry_after_s == 7


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 1000))
def test_backoff_is_capped_grows_and_obeys_the_endpoint(attempt, jitter, asked):
    wait = backoff_s(attempt, jitter)
    assert 0 < wait <= LONGEST_BACKOFF_S
    assert wait <= backoff_s(attempt + 1, jitter)
    assert backoff_s(attempt, jitter, asked) == max(wait, asked)


def test_a_request_above_the_limit_per_minute_is_final():
    said = "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 31337."
    assert classify(429, "rate_limit_exceeded", said).kind == "final"


def test_a_403_is_about_its_prompt_until_many_come_in_a_row():
    forbidden, lost, refused = (classify(status, None, "no") for status in (403, 503, 400))
    refusals = Refusals()

    def kinds(*failures):
        return [judged and judged.kind for judged in map(refusals.judge, failures)]

    few = [forbidden] * (MOST_FORBIDDEN - 1)
    for between in (None, refused):
        assert kinds(*few, between) == ["final"] * len(few) + [between and "final"]
    assert kinds(*few, lost, forbidden) == ["final"] * len(few) + ["transient", "fatal"]
    assert kinds(classify(401, None, "no"), classify(402, None, "no")) == ["fatal", "fatal"]
