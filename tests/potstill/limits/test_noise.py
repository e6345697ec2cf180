"""Whether refusals depend on the rate: the experiment alone, on counts."""

import random

import pytest

from potstill.limits.noise import LONGEST_DIP_S, RateTest


def suspicious(share, answers=400):
    """A test that has seen rate cuts without effect."""
    test, now = RateTest(), 0.0
    for _ in range(10):
        now += 1.0
        test.record(round(answers / 10 * (1 - share)), round(answers / 10 * share), now)
        test.cut(50.0, now)
    return test, now


def answer(test, now, share, seed, per_s=40):
    """Record answers until there is a verdict."""
    rng = random.Random(seed)
    while (found := test.verdict(now)) is None:
        now += 0.1
        refused = sum(rng.random() < share for _ in range(per_s // 10))
        test.record(per_s // 10 - refused, refused, now)
    return found


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5])
def test_a_refused_share_that_stays_at_lower_rates_is_noise(share):
    verdicts, noises = [], []
    for seed in range(50):
        test, now = suspicious(share)
        assert test.is_due(now)
        test.begin(now, 0.5)
        verdicts.append(answer(test, now, share, seed))
        noises.append(test.noise)
    assert verdicts.count("noise") >= 45
    assert sum(noise >= share for noise in noises) >= 40  # an upper bound, which later answers lower
    test.record(0, 0, now + 5)
    for step in range(100):
        test.record(100 - round(100 * share), round(100 * share), now + 5 + step)
    assert share <= test.noise <= 1.5 * share + 0.01


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5])
def test_a_refused_share_that_vanishes_at_lower_rates_is_a_limit(share):
    test, now = suspicious(share)
    test.begin(now, 0.5)
    assert answer(test, now, 0.0, 0) == "limit"
    assert test.noise == 0
    assert not test.is_due(now + 1)  # not again at once


def test_without_answers_the_verdict_is_unknown():
    test, now = suspicious(0.1)
    test.begin(now, 0.5)
    assert test.verdict(now + LONGEST_DIP_S) is None
    assert test.verdict(now + LONGEST_DIP_S + 1) == "unknown"
    assert test.verdict(now + LONGEST_DIP_S + 1) is None


def test_noise_explains_only_its_share_of_refusals():
    test, now = suspicious(0.1)
    test.begin(now, 0.0)
    answer(test, now, 0.1, 1)
    for step in range(30):
        test.record(90, 10, now + 30 + step)
        assert test.explains()
    test.record(10, 90, now + 61)
    assert not test.explains()


def test_credit_is_withdrawn_if_refusals_rise_soon():
    test, now = suspicious(0.0075)
    assert not test.is_due(now)
    assert test.credit(50.0, now)
    assert 0 < test.noise <= 0.02
    test.cut(55.0, now + 5)
    assert test.noise == 0
    assert not test.credit(50.0, now + 6)


def test_confirmed_credit_stays():
    test, now = suspicious(0.0075)
    test.credit(50.0, now)
    test.confirm(80.0, now + 5)
    test.cut(90.0, now + 6)
    assert test.noise > 0
