"""Batch calibration: effect, invariants, and when it is skipped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.labels.calibration import calibrate, normalise


def _biased(n: int, bias: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities that know the class but lean towards some names; true classes round robin."""
    classes = np.arange(n) % len(bias)
    logits = np.random.default_rng(seed).normal(0, 0.5, (n, len(bias))) + 2.0 * np.eye(len(bias))[classes] + bias
    return np.log(normalise(logits)), classes


def test_a_biased_teacher_is_corrected() -> None:
    logprobs, classes = _biased(90, [6.0, 0.0, -3.0])
    raw = (logprobs.argmax(1) == classes).mean()
    calibrated = (calibrate(logprobs, rounds=20).probs.argmax(1) == classes).mean()
    assert raw < 0.4 < 0.9 < calibrated


def test_means_reach_the_prior() -> None:
    logprobs, _ = _biased(60, [4.0, 0.0, 0.0])
    prior = np.array([0.5, 0.3, 0.2])
    assert calibrate(logprobs, prior, rounds=200).probs.mean(0) == pytest.approx(prior, abs=1e-3)


def test_too_few_texts_are_not_calibrated() -> None:
    logprobs, _ = _biased(20, [4.0, 0.0, 0.0])
    calibration = calibrate(logprobs)
    assert np.allclose(calibration.probs, normalise(logprobs))
    assert "too few" in calibration.warnings[0]


def test_classes_not_offered_have_probability_zero() -> None:
    logprobs, _ = _biased(60, [1.0, 0.0, 0.0])
    logprobs[::2, 2] = np.nan
    calibration = calibrate(logprobs, rounds=5)
    assert np.all(calibration.probs[::2, 2] == 0)
    assert np.all(calibration.probs[1::2, 2] > 0)
    assert np.allclose(calibration.probs.sum(1), 1)


def test_a_class_never_offered_is_reported() -> None:
    logprobs, _ = _biased(60, [1.0, 0.0, 0.0])
    logprobs[:, 1] = np.nan
    calibration = calibrate(logprobs)
    assert "never offered" in calibration.warnings[0]
    assert np.isfinite(calibration.probs).all()


@given(st.integers(2, 5), st.integers(0, 1000), st.floats(0.1, 3.0))
def test_rows_are_distributions_and_order_of_texts_does_not_matter(n_classes: int, seed: int, scale: float) -> None:
    logprobs = np.random.default_rng(seed).normal(-3, scale, (10 * n_classes, n_classes))
    probs = calibrate(logprobs, rounds=3).probs
    assert np.allclose(probs.sum(1), 1)
    assert np.allclose(calibrate(logprobs[::-1], rounds=3).probs[::-1], probs)


@given(st.integers(0, 1000), st.floats(-5, 5))
def test_a_constant_bias_is_removed(seed: int, lean: float) -> None:
    logprobs = np.random.default_rng(seed).normal(-3, 1, (40, 3))
    leaning = logprobs + np.array([lean, 0.0, 0.0])
    assert np.allclose(calibrate(logprobs, rounds=300).probs, calibrate(leaning, rounds=300).probs, atol=1e-3)


def test_a_prior_preserves_uneven_classes() -> None:
    """A tenth of the texts belong to the second class, as in the prior; calibrating to even shares relabels many."""
    classes = (np.arange(240) % 10 == 0).astype(int)
    logits = np.random.default_rng(0).normal(0, 0.5, (240, 2)) + 2.0 * np.eye(2)[classes] + [1.5, 0.0]
    logprobs = np.log(normalise(logits))
    right = {
        name: (calibrate(logprobs, prior, rounds=20).probs.argmax(1) == classes).mean()
        for name, prior in (("even", None), ("true", np.array([0.9, 0.1])))
    }
    assert right["true"] > 0.97
    assert right["even"] < 0.9


def test_a_very_rare_class_is_not_calibrated() -> None:
    logprobs, _ = _biased(90, [1.0, 0.0, 0.0])
    found = calibrate(logprobs, np.array([0.5, 0.48, 0.02]))
    assert "too skewed" in found.warnings[0]
    np.testing.assert_allclose(found.probs, normalise(logprobs))
