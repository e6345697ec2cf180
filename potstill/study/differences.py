"""Differences between sources over repeats, with their intervals.

A difference is computed per repeat on the same test texts, then averaged. Its interval is a two-stage bootstrap
(Davison & Hinkley 1997, section 3.8): repeats are drawn with replacement, and within each the test texts, in pairs of
predictions. With one repeat it is the paired bootstrap over test texts and does not cover other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from potstill.draws import generator
from potstill.measures.scores import Floats, Interval, accuracy, indices, macro_f1, resample, tally
from potstill.rows import Prediction

Pair = tuple[Sequence[Prediction], Sequence[Prediction]]


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """Second minus first of every pair, averaged over ``repeats``."""

    repeats: int
    accuracy: Interval
    macro_f1: Interval


def mean_difference(
    pairs: Sequence[Pair], labels: Sequence[str], seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> MeanDifference:
    """``pairs``: for each repeat the predictions of the reference and of its competitor.

    Raises ``ValueError`` without pairs, or if the predictions of a pair are about different texts.
    """
    if not pairs:
        raise ValueError("no repeats to compare")
    outcomes = [_outcomes(first, second, labels) for first, second in pairs]
    whole = np.array([_differences(one, None, len(labels)) for one in outcomes])[:, :, 0]  # repeats, measures
    count = len(pairs)
    chosen = generator(seed, "repeats").integers(count, size=(resamples, count))
    drawn = np.zeros((2, resamples))
    for slot in range(count):
        of_slot = np.zeros((count, 2, resamples))
        for number, one in enumerate(outcomes):
            distinct, times = resample(one, seed + 7919 * (slot * count + number), resamples)
            of_slot[number] = _differences(distinct, times, len(labels))
        drawn += of_slot[chosen[:, slot], :, np.arange(resamples)].T / count
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=1)
    of_accuracy, of_f1 = (Interval(float(whole[:, i].mean()), float(low[i]), float(high[i]), level) for i in range(2))
    return MeanDifference(count, of_accuracy, of_f1)


def _outcomes(first: Sequence[Prediction], second: Sequence[Prediction], labels: Sequence[str]) -> np.ndarray:
    by_id = {prediction.example_id: prediction for prediction in second}
    if set(by_id) != {prediction.example_id for prediction in first} or len(by_id) != len(first):
        raise ValueError("the predictions are about different texts")
    truth, one = indices(first, labels)
    _, two = indices([by_id[prediction.example_id] for prediction in first], labels)
    return np.stack([truth, one, two], axis=1)


def _differences(outcomes: np.ndarray, counts: np.ndarray | None, classes: int) -> tuple[Floats, Floats]:
    """Accuracy and macro-F1, second minus first, in each resample."""
    first, second = (tally(outcomes[:, 0], outcomes[:, i], classes, counts) for i in (1, 2))
    return accuracy(second) - accuracy(first), macro_f1(second) - macro_f1(first)
