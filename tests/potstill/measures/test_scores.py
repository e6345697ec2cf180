"""Scores against brute force and scikit-learn."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from potstill.measures.baselines import as_predictions, fit_predict
from potstill.measures.scores import (
    accuracy,
    compare,
    expected_calibration_error,
    macro_f1,
    mcnemar,
    mean_and_deviation,
    resample,
    score,
    tally,
)
from potstill.rows import Prediction
from potstill.task import LabelledText

LABELS = ("a", "b", "c")


def predictions(truth: list[int], predicted: list[int], confidence: float = 0.8) -> list[Prediction]:
    rows = []
    for number, (label, guess) in enumerate(zip(truth, predicted, strict=True)):
        probs = [(1 - confidence) / 2] * 3
        probs[guess] = confidence
        rows.append(Prediction(str(number), LABELS[label], tuple(probs), LABELS[guess]))
    return rows


PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60)


@given(pairs=PAIRS)
def test_values_equal_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    truth, guess = [p[0] for p in pairs], [p[1] for p in pairs]
    scores = score(predictions(truth, guess), LABELS, resamples=20)
    assert scores.accuracy.value == pytest.approx(accuracy_score(truth, guess))
    assert scores.macro_f1.value == pytest.approx(
        f1_score(truth, guess, labels=[0, 1, 2], average="macro", zero_division=0)
    )
    assert scores.accuracy.low <= scores.accuracy.high
    assert sum(map(sum, scores.confusion)) == len(pairs)
    assert [one.support for one in scores.per_class] == [truth.count(i) for i in range(3)]


@given(pairs=PAIRS, seed=st.integers(0, 5))
def test_resamples_are_scored_like_real_texts(pairs: list[tuple[int, int]], seed: int) -> None:
    outcomes = np.array(pairs, dtype=np.int64)
    distinct, counts = resample(outcomes, seed, 5)
    assert (counts.sum(axis=1) == len(pairs)).all()
    margins = tally(distinct[:, 0], distinct[:, 1], 3, counts)
    for number in range(5):
        rows = np.repeat(distinct, counts[number], axis=0)
        expected = f1_score(rows[:, 0], rows[:, 1], labels=[0, 1, 2], average="macro", zero_division=0)
        assert macro_f1(margins)[number] == pytest.approx(expected)
        assert accuracy(margins)[number] == pytest.approx((rows[:, 0] == rows[:, 1]).mean())


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)
    guess = np.where(rng.random(400) < 0.7, truth, rng.integers(0, 3, 400))
    scores = score(predictions(truth.tolist(), guess.tolist()), LABELS, resamples=2000)
    plain = []
    for _ in range(2000):
        chosen = rng.integers(0, 400, 400)
        plain.append((truth[chosen] == guess[chosen]).mean())
    low, high = np.quantile(plain, [0.025, 0.975])
    assert scores.accuracy.low == pytest.approx(low, abs=0.01)
    assert scores.accuracy.high == pytest.approx(high, abs=0.01)


def test_scores_repeat_and_follow_the_seed() -> None:
    rows = predictions([0, 1, 2] * 20, [0, 1, 1] * 20)
    assert score(rows, LABELS) == score(rows, LABELS)
    assert score(rows, LABELS, seed=1).accuracy != score(rows, LABELS, seed=2).accuracy


def test_comparison_is_paired_and_signed() -> None:
    truth = [0, 1, 2] * 50
    worse, better = [0, 1, 0] * 50, truth
    difference = compare(predictions(truth, worse), list(reversed(predictions(truth, better))), LABELS)
    assert difference.accuracy.value == pytest.approx(1 / 3)
    assert difference.accuracy.low > 0.2
    assert difference.p_value < 1e-6
    same = compare(predictions(truth, worse), predictions(truth, worse), LABELS)
    assert (same.accuracy.low, same.accuracy.value, same.accuracy.high, same.p_value) == (0, 0, 0, 1)


def test_comparison_of_different_texts_is_refused() -> None:
    rows = predictions([0, 1], [0, 1])
    with pytest.raises(ValueError, match="same texts"):
        compare(rows, rows[:1], LABELS)


def test_unknown_labels_and_no_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match="'z'"):
        score([Prediction("1", "z", (1.0, 0.0, 0.0), "a")], LABELS)
    with pytest.raises(ValueError, match="no predictions"):
        score([], LABELS)


def test_a_thousand_resamples_of_three_thousand_texts_take_under_a_second() -> None:
    rng = np.random.default_rng(0)
    labels = [f"c{i}" for i in range(77)]
    truth, guess = rng.integers(0, 77, 3000), rng.integers(0, 77, 3000)
    rows = [
        Prediction(str(i), labels[t], tuple(np.eye(77)[g].tolist()), labels[g])
        for i, (t, g) in enumerate(zip(truth, guess, strict=True))
    ]
    seconds = []
    for _ in range(4):  # the fastest: the others measure the machine's load
        started = time.process_time()
        score(rows, labels)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 1.0


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False])
    # Two bins: |1 - 0.95| and |0.5 - 0.55|, half of the texts each.
    assert expected_calibration_error(confidence, correct, bins=10) == pytest.approx(0.05)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_mcnemar_counts_only_differing_predictions() -> None:
    both = np.array([True] * 10)
    assert mcnemar(both, both) == 1.0
    # 8 texts only the second gets right: 2 * 0.5 ** 8.
    assert mcnemar(np.array([False] * 8), np.array([True] * 8)) == pytest.approx(2 * 0.5**8)


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_deviation([0.7]) == (0.7, 0.0)


def test_regression_on_embeddings_separates_and_orders_classes() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(3)
    seeds = np.repeat(centres, 2, axis=0) + rng.normal(0, 0.05, (6, 3))
    truth = ["b", "b", "a", "a", "c", "c"]
    probs = fit_predict(seeds, truth, centres * 7.0, LABELS)
    assert probs.argmax(axis=1).tolist() == [1, 0, 2]
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    texts = [LabelledText(str(i), "t", label) for i, label in enumerate("bac")]
    assert [row.predicted for row in as_predictions(texts, probs, LABELS)] == ["b", "a", "c"]


def test_regression_gives_no_probability_to_a_class_without_seeds() -> None:
    probs = fit_predict(np.eye(2), ["a", "c"], np.eye(2), LABELS)
    assert (probs[:, 1] == 0).all()
    with pytest.raises(ValueError, match="two classes"):
        fit_predict(np.eye(2), ["a", "a"], np.eye(2), LABELS)
    with pytest.raises(ValueError, match="'z'"):
        fit_predict(np.eye(2), ["a", "z"], np.eye(2), LABELS)
