"""Scores of a classifier with bootstrap intervals, computed from label indices and probabilities.

Percentile bootstrap over test texts (Efron & Tibshirani 1993, ch. 13). A resample is drawn as counts of (label,
predicted) pairs, so that 1000 resamples of 3,000 texts take well under a second. Draws are keyed by the data seed.
Comparisons resample *pairs* of predictions for the same texts, which makes small differences visible.
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
    """Parts of n confusion matrices, each ``[n, classes]``: the diagonal, the row sums (true class) and the column sums
    (predicted class)."""

    hits: Floats
    support: Floats
    predicted: Floats


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its percentile bootstrap interval, which contains the share ``level`` of the resamples."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of one class. ``support`` test texts have this label; for ``predicted`` it was predicted."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True, slots=True)
class Scores:
    """All scores of one student on one test split. ``confusion[i][j]``: texts of class i predicted as j.

    Macro-F1 is the mean F1 over *all* classes of the task; a class that neither occurs nor is predicted counts as 0.
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
    """Second student minus first, on the same texts. ``p_value``: McNemar's exact test on accuracy."""

    accuracy: Interval
    macro_f1: Interval
    p_value: float


def score(
    predictions: Sequence[Prediction], labels: Sequence[str], seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> Scores:
    """Score one student's predictions. Raises ``ValueError`` if there are none or a label is unknown."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth, predicted = indices(predictions, labels)
    classes = range(len(labels))
    table = confusion_matrix(truth, predicted, labels=list(classes))
    whole = tally(truth, predicted, len(labels))
    rates = precision_recall_fscore_support(truth, predicted, labels=list(classes), zero_division=0.0)
    distinct, counts = resample(np.stack([truth, predicted], axis=1), seed, resamples)
    drawn = tally(distinct[:, 0], distinct[:, 1], len(labels), counts)
    probs = np.array([prediction.label_probs for prediction in predictions], dtype=np.float64)
    confidence = probs.max(axis=1)
    per_class = tuple(
        ClassScores(label, float(precision), float(recall), float(f1), int(support), int(given))
        for label, precision, recall, f1, support, given in zip(labels, *rates, table.sum(axis=0), strict=True)
    )
    return Scores(
        texts=len(predictions),
        accuracy=interval(accuracy(whole)[0], accuracy(drawn), level),
        macro_f1=interval(macro_f1(whole)[0], macro_f1(drawn), level),
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
    """The second student's scores minus the first's. Raises ``ValueError`` unless both predicted the same texts."""
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
        accuracy=interval(accuracy(whole_b)[0] - accuracy(whole_a)[0], accuracy(b) - accuracy(a), level),
        macro_f1=interval(macro_f1(whole_b)[0] - macro_f1(whole_a)[0], macro_f1(b) - macro_f1(a), level),
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
    """Accuracy of each resample, ``[n]``."""
    return margins.hits.sum(axis=1) / np.maximum(margins.support.sum(axis=1), 1)


def macro_f1(margins: Margins) -> Floats:
    """Macro-F1 of each resample, ``[n]``: the mean of 2 TP / (2 TP + FP + FN) over classes, 0 for an absent class."""
    both = margins.support + margins.predicted
    return np.divide(2.0 * margins.hits, both, out=np.zeros(both.shape), where=both > 0).mean(axis=1)


def tally(truth: Ints, predicted: Ints, classes: int, counts: Ints | None = None) -> Margins:
    """Margins of the confusion matrices of n resamples, ``[n, classes]`` each.

    ``counts`` ``[n, rows]``: how often each resample contains each row; default: one resample with each row once.
    """
    times = np.ones((1, len(truth))) if counts is None else counts.astype(np.float64)
    of_truth = np.eye(classes)[truth]
    return Margins(
        hits=times @ (of_truth * (truth == predicted)[:, None]),
        support=times @ of_truth,
        predicted=times @ np.eye(classes)[predicted],
    )


def resample(outcomes: Ints, seed: int, resamples: int) -> tuple[Ints, Ints]:
    """Draw from ``outcomes`` ``[texts, k]`` with replacement.

    Returns the distinct outcomes ``[rows, k]`` and their multinomial counts ``[resamples, rows]``.
    """
    distinct, counts = np.unique(outcomes, axis=0, return_counts=True)
    drawn = generator(seed, "bootstrap").multinomial(len(outcomes), counts / len(outcomes), size=resamples)
    return distinct, drawn


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Mean over texts of their bin's |accuracy - confidence|, with ``bins`` of equal width (Guo et al. 2017, eq. 3).

    Not from torchmetrics, since the driver does not load torch.
    """
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    gap = np.bincount(which, weights=correct.astype(float), minlength=bins) - np.bincount(
        which, weights=confidence, minlength=bins
    )
    return float(np.abs(gap).sum() / max(1, counts.sum()))


def mcnemar(first_correct: NDArray[np.bool_], second_correct: NDArray[np.bool_]) -> float:
    """Two-sided exact p-value of McNemar's test that both classifiers are equally accurate."""
    from scipy.stats import binomtest

    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


def interval(value: float, resampled: Floats, level: float = 0.95) -> Interval:
    """``value`` with the percentile interval of its bootstrap resamples ``[n]``."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), level)
