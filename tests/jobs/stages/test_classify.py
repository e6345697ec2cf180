"""The teacher as classifier: probabilities from its raw answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jobs.stages.classify import raw_probs


def test_votes_are_averaged_and_classes_not_offered_are_zero() -> None:
    votes = np.log(np.array([[[0.8, 0.2, np.nan], [0.4, 0.1, np.nan]]]))
    assert raw_probs(votes)[0].tolist() == pytest.approx([0.8, 0.2, 0.0])


def test_a_vote_without_an_answer_does_not_count() -> None:
    votes = np.full((2, 2, 3), np.nan)
    votes[0, 1] = np.log([0.5, 0.3, 0.2])
    found = raw_probs(votes)
    assert found[0].tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert np.isnan(found[1]).all()


@given(arrays(np.float64, (3, 2, 4), elements=st.floats(-500, 0)), st.floats(-300, 300))
def test_probabilities_sum_to_one_and_ignore_a_common_factor(votes: np.ndarray, shift: float) -> None:
    found = raw_probs(votes)
    assert np.allclose(found.sum(axis=1), 1.0)
    assert np.allclose(found, raw_probs(votes + shift), atol=1e-9)
