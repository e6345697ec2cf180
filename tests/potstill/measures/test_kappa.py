"""Agreement beyond chance, of choices with distributions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from potstill.measures.kappa import kappa

HALF = np.array([0, 1] * 50)


def one_hot(columns, n=2):
    return np.eye(n)[columns]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40))
def test_with_hard_labels_it_is_cohens_kappa(pairs):
    ours, theirs = np.array(pairs).T
    if len(set(ours)) + len(set(theirs)) > 2:
        expected = cohen_kappa_score(ours, theirs, labels=range(3))
        assert kappa(ours, one_hot(theirs, 3)) == pytest.approx(expected)


def test_two_others_count_half_each():
    both = (one_hot(HALF) + one_hot(1 - HALF)) / 2
    assert kappa(HALF, both) == pytest.approx(0.0)
