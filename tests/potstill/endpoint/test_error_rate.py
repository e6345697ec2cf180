"""Failures stop a stage early, but never by chance alone."""

import random

import pytest

from potstill.endpoint.error_rate import ErrorRate, kind_of


def stopped_at(allowed, expected, fails):
    """Number of answers after which a stage stops; ``fails(i)``: whether the i-th fails."""
    rate = ErrorRate(allowed, expected)
    for number in range(expected):
        rate.add(1, 1, ["HTTP 400: no"] if fails(number) else [])
        if rate.too_many():
            return number + 1
    return None


@pytest.mark.parametrize("expected", [1, 8, 30, 49, 400, 5000])
def test_nothing_but_failures(expected):
    found = stopped_at(0.1, expected, lambda number: True)
    assert found == {1: None, 8: None, 30: 10, 49: 10, 400: 41, 5000: 50}[expected]
    rate = ErrorRate(0.1, expected)
    rate.add(expected, expected, ["HTTP 400: no"] * expected)
    assert rate.too_many(at_end=True)


def test_early_failures_alone_do_not_stop_a_stage():
    assert stopped_at(0.1, 5000, lambda number: number < 49) is None
    assert stopped_at(0.1, 100, lambda number: number < 9) is None


@pytest.mark.parametrize("seed", range(20))
def test_only_a_failure_share_above_the_limit_stops_a_stage(seed):
    rng = random.Random(seed)
    assert stopped_at(0.1, 5000, lambda number: rng.random() < 0.09) is None
    assert stopped_at(0.1, 5000, lambda number: rng.random() < 0.2) < 1000


def test_ledger_answers_count_as_answered():
    """A resumed run repeats failed requests, so all its new answers may be failures."""
    rate = ErrorRate(0.1, 5000)
    rate.add(4550, 0, [])
    rate.add(450, 450, ["HTTP 400: filtered"] * 450)
    assert rate.too_many() is None
    assert rate.too_many(at_end=True) is None


def test_none_is_allowed():
    rate = ErrorRate(0.0, 5000)
    rate.add(10, 10, ["HTTP 400: no"] * 9)
    assert rate.too_many() is None
    rate.add(1, 1, ["HTTP 400: no"])
    assert rate.too_many()


def test_all_are_allowed():
    rate = ErrorRate(1.0, 100)
    rate.add(100, 100, ["HTTP 400: no"] * 100)
    assert rate.too_many() is None
    assert rate.too_many(at_end=True) is None


def test_the_most_common_error_is_shown_regardless_of_its_details():
    rate = ErrorRate(0.1, 100)
    errors = ["HTTP 503: busy"] * 10 + [f"the reply names no class: 'text {i}'" for i in range(12)]
    rate.add(40, 40, errors)
    assert rate.too_many() == (
        "22 of 40 requests failed (teacher.max_error_rate = 0.1); "
        "most common error (12 times): the reply names no class: 'text 0'"
    )


def test_kinds_of_errors():
    assert kind_of("HTTP 400: request 17 of 20") == kind_of("HTTP 400: request 18 of 20")
    assert kind_of("HTTP 400: no") != kind_of("HTTP 500: no")
    assert kind_of("can't be reached: 10.0.0.1") == kind_of("can't be reached: 10.0.0.2")
