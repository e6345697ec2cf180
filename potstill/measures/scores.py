"""Scores of a classifier, with intervals. Pure arithmetic on label indices and probabilities.

Percentile bootstrap over test texts (Efron & Tibshirani 1993, ch. 13): a resample is drawn as counts of
(label, predicted) pairs, so that 1000 resamples of 3,000 texts take well under a second. Draws are keyed
by the data seed; comparisons resample *pairs* of predictions for the same texts, which is what makes a small
difference visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.draws import generator
from potstill.rows import Prediction

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Margins(NamedTuple):
    """What accuracy and F1 need of n confusion matrices, each ``[n, classes]``: the diagonal, the texts of each
    class, and the texts given each class."""

    hits: Floats
    support: Floats
    predicted: Floats


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its bootstrap interval (percentile, ``level`` of the resamples inside)."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class: ``support`` test texts have this label, ``predicted`` were given it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True, slots=True)
class Scores:
    """All scores of one student on one test split. ``confusion[i][j]``: texts of class i predicted as j.

    Macro-F1 is the mean F1 over *all* classes of the task; one that neither occurs nor is predicted counts 0.
    """

    texts: int
    accuracy: Interval
    macro_f1: Interval
    expected_calibration_error: float
    mean_confidence: float
    per_class: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Second student minus first, on the same texts. ``p_value`` of McNemar's exact test on accuracy."""

    accuracy: Interval
    macro_f1: Interval
    p_value: float


def score(
    predictions: Sequence[Prediction], labels: Sequence[str], seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> Scores:
    """Score the predictions of one student. Raises ``ValueError`` where there are none or a label is unknown."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth, predicted = indices(predictions, labels)
    classes = range(len(labels))
    table = confusion_matrix(truth, predicted, labels=list(classes))
    whole = tally(truth, predicted, len(labels))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=list(classes), zero_division=0.0
    )
    distinct, counts = resample(np.stack([truth, predicted], axis=1), seed, resamples)
    drawn = tally(distinct[:, 0], distinct[:, 1], len(labels), counts)
    probs = np.array([prediction.label_probs for prediction in predictions], dtype=np.float64)
    confidence = probs.max(axis=1)
    per_class = tuple(
        ClassScores(
            labels[i], float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]), int(table[:, i].sum())
        )
        for i in classes
    )
    return Scores(
        texts=len(predictions),
        accuracy=_interval(accuracy(whole)[0], accuracy(drawn), level),
        macro_f1=_interval(macro_f1(whole)[0], macro_f1(drawn), level),
        expected_calibration_error=expected_calibration_error(confidence, truth == predicted),
        mean_confidence=float(confidence.mean()),
        per_class=per_class,
        confusion=tuple(tuple(int(count) for count in row) for row in table),
    )


def compare(
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    labels: Sequence[str],
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> Difference:
    """How much better the second student is than the first. Raises ``ValueError`` unless both saw the same texts."""
    by_id = {prediction.example_id: prediction for prediction in second}
    if set(by_id) != {prediction.example_id for prediction in first} or len(by_id) != len(first):
        raise ValueError("the two students were not scored on the same texts")
    second = [by_id[prediction.example_id] for prediction in first]
    truth, one = indices(first, labels)
    other_truth, two = indices(second, labels)
    if (truth != other_truth).any():
        raise ValueError("the two students were scored against different labels")
    distinct, counts = resample(np.stack([truth, one, two], axis=1), seed, resamples)
    a, b = (tally(distinct[:, 0], distinct[:, i], len(labels), counts) for i in (1, 2))
    whole_a, whole_b = tally(truth, one, len(labels)), tally(truth, two, len(labels))
    return Difference(
        accuracy=_interval(accuracy(whole_b)[0] - accuracy(whole_a)[0], accuracy(b) - accuracy(a), level),
        macro_f1=_interval(macro_f1(whole_b)[0] - macro_f1(whole_a)[0], macro_f1(b) - macro_f1(a), level),
        p_value=mcnemar(one == truth, two == truth),
    )


def indices(predictions: Sequence[Prediction], labels: Sequence[str]) -> tuple[Ints, Ints]:
    """Label and predicted class as indices into ``labels``, each ``[texts]``."""
    if not predictions:
        raise ValueError("there are no predictions to score")
    number = {label: i for i, label in enumerate(labels)}
    unknown = sorted(({p.label for p in predictions} | {p.predicted for p in predictions}) - set(labels))
    if unknown:
        raise ValueError(f"labels {', '.join(map(repr, unknown))} are not among the classes")
    truth = np.array([number[p.label] for p in predictions], dtype=np.int64)
    predicted = np.array([number[p.predicted] for p in predictions], dtype=np.int64)
    return truth, predicted


def accuracy(margins: Margins) -> Floats:
    """Share of right answers in each resample, ``[n]``."""
    return margins.hits.sum(axis=1) / np.maximum(margins.support.sum(axis=1), 1)


def macro_f1(margins: Margins) -> Floats:
    """Mean over all classes of 2 TP / (2 TP + FP + FN), 0 where a class is absent, in each resample, ``[n]``."""
    both = margins.support + margins.predicted
    return np.divide(2.0 * margins.hits, both, out=np.zeros(both.shape), where=both > 0).mean(axis=1)


def tally(truth: Ints, predicted: Ints, classes: int, counts: Ints | None = None) -> Margins:
    """Margins of the confusion matrices, ``[n, classes]`` each.

    ``counts`` ``[n, rows]`` says how often each row stands in each of n resamples; without it, once in one.
    """
    times = np.ones((1, len(truth))) if counts is None else counts.astype(np.float64)
    of_truth = np.eye(classes)[truth]
    return Margins(
        hits=times @ (of_truth * (truth == predicted)[:, None]),
        support=times @ of_truth,
        predicted=times @ np.eye(classes)[predicted],
    )


def resample(outcomes: Ints, seed: int, resamples: int) -> tuple[Ints, Ints]:
    """Draw ``outcomes`` ``[texts, k]`` with replacement: the distinct ones ``[rows, k]`` and how often each was
    drawn ``[resamples, rows]``. A resample of texts is a multinomial draw of distinct outcomes."""
    distinct, counts = np.unique(outcomes, axis=0, return_counts=True)
    drawn = generator(seed, "bootstrap").multinomial(len(outcomes), counts / len(outcomes), size=resamples)
    return distinct, drawn


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Mean over texts of |accuracy - confidence| of their bin (Guo et al. 2017, eq. 3): ``bins`` of equal width.

    Here and not by torchmetrics, which needs torch: the driver does without."""
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    gap = np.bincount(which, weights=correct.astype(float), minlength=bins) - np.bincount(
        which, weights=confidence, minlength=bins
    )
    return float(np.abs(gap).sum() / max(1, counts.sum()))


def mcnemar(first_correct: NDArray[np.bool_], second_correct: NDArray[np.bool_]) -> float:
    """Two-sided exact p-value that the texts only one of the two gets right fall either way alike."""
    from scipy.stats import binomtest

    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value) of repeated runs."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


def _interval(value: float, resampled: Floats, level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), level)
