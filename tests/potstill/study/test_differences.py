"""Differences over repeats: compared with a single comparison, and the coverage of intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.measures.scores import compare
from potstill.rows import Prediction
from potstill.study.differences import mean_difference

LABELS = ["a", "b", "c"]


def _predictions(seed: int, right: float, texts: int = 60) -> list[Prediction]:
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(0).integers(3, size=texts)
    guesses = np.where(random.random(texts) < right, truth, random.integers(3, size=texts))
    return [
        Prediction(str(i), LABELS[t], tuple(float(g == j) for j in range(3)), LABELS[g])
        for i, (t, g) in enumerate(zip(truth, guesses, strict=True))
    ]


@given(st.integers(0, 100), st.floats(0.2, 0.9), st.floats(0.2, 0.9))
def test_one_repeat_is_the_paired_comparison(seed: int, one: float, other: float) -> None:
    first, second = _predictions(seed, one), _predictions(seed + 1, other)
    mean, single = mean_difference([(first, second)], LABELS), compare(first, second, LABELS)
    assert mean.macro_f1 == single.macro_f1
    assert mean.accuracy == single.accuracy


def test_the_mean_is_that_of_the_repeats() -> None:
    pairs = [(_predictions(i, 0.4), _predictions(i + 10, 0.7)) for i in range(3)]
    singles = [compare(*pair, LABELS) for pair in pairs]
    found = mean_difference(pairs, LABELS)
    assert found.repeats == 3
    assert found.macro_f1.value == pytest.approx(np.mean([one.macro_f1.value for one in singles]))
    assert found.accuracy.value == pytest.approx(np.mean([one.accuracy.value for one in singles]))


def test_the_order_of_texts_does_not_matter_but_they_must_be_the_same() -> None:
    first, second = _predictions(1, 0.5), _predictions(2, 0.5)
    assert mean_difference([(first, second[::-1])], LABELS) == mean_difference([(first, second)], LABELS)
    with pytest.raises(ValueError, match="different texts"):
        mean_difference([(first, second[:-1])], LABELS)
    with pytest.raises(ValueError, match="no repeat"):
        mean_difference([], LABELS)


def test_repeats_that_disagree_widen_the_interval() -> None:
    """Three equal repeats give a narrower interval than one; three different ones do not."""
    base = _predictions(1, 0.5, texts=400)
    same = [(base, _predictions(7, 0.7, texts=400))] * 3
    apart = [(base, _predictions(7 + i, right, texts=400)) for i, right in enumerate((0.4, 0.7, 1.0))]

    def width(pairs) -> float:
        found = mean_difference(pairs, LABELS).macro_f1
        return found.high - found.low

    assert width(same) < width(same[:1])
    assert width(apart) > 2 * width(same)


def test_the_interval_covers_the_truth_at_its_nominal_rate() -> None:
    """Students whose accuracy differs by exactly 0.2 on average: of 100 studies, 95 give or take four deviations."""
    held = 0
    for study in range(100):
        pairs = [
            (_predictions(1000 * study + i, 0.4, 150), _predictions(1000 * study + i + 500, 0.7, 150)) for i in range(1)
        ]
        found = mean_difference(pairs, LABELS, seed=study, resamples=300).accuracy
        held += found.low <= 0.3 * 2 / 3 <= found.high
    assert 86 <= held <= 100
