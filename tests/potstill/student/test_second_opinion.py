import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config.student import StudentConfig
from potstill.student.second_opinion import FLOOR, AnchorWeight, choose_weight, refine, wanted

AUTO = StudentConfig()
HALF = np.array([0, 1] * 50)


def one_hot(columns, n=2):
    return np.eye(n)[columns]


def distributions(rows: int, classes: int) -> st.SearchStrategy[np.ndarray]:
    numbers = st.lists(st.floats(0.0, 1.0), min_size=rows * classes, max_size=rows * classes)
    return numbers.map(lambda values: np.array(values).reshape(rows, classes) + 1e-3).map(
        lambda raw: raw / raw.sum(1, keepdims=True)
    )


@given(distributions(5, 3), distributions(5, 3), st.floats(0.0, 1.0))
def test_refined_rows_are_distributions_and_no_weight_changes_nothing(probs, opinion, weight):
    refined = refine(probs, opinion, weight)
    assert np.allclose(refined.sum(1), 1)
    assert np.allclose(refine(probs, opinion, 0.0), probs)
    # Against a uniform distribution the opinion alone decides, in its own order.
    alone = refine(np.full_like(probs, 1 / 3), opinion, weight)
    floored = np.maximum(opinion, FLOOR)
    assert all(
        alone[row, a] >= alone[row, b] - 1e-12
        for row in range(5)
        for a in range(3)
        for b in range(3)
        if floored[row, a] >= floored[row, b]
    )


def test_one_hot_rows_stay_and_no_opinion_rules_a_class_out():
    certain = np.array([[0.0, 1.0]])
    assert np.allclose(refine(certain, np.array([[1.0, 0.0]]), 1.0), certain)
    doubted = refine(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]]), 1.0)
    assert doubted[0, 1] == pytest.approx(FLOOR / (1 + FLOOR))


def test_full_weight_for_two_classes_that_both_sources_tell_apart():
    weight = choose_weight(AUTO, n_seeds=4, choices=HALF, others=one_hot(HALF))
    assert weight == AnchorWeight(opinion=1.0, blend=0.4, agreement=1.0)


def test_less_weight_with_more_classes_or_fewer_seeds():
    def agreed(seeds, n):
        return choose_weight(AUTO, seeds * n, np.arange(154) % n, one_hot(np.arange(154) % n, n)).opinion

    weights = [agreed(2, n) for n in (2, 4, 6, 77)]
    assert weights == sorted(weights, reverse=True)
    assert weights[1] == pytest.approx(0.25)
    more_seeds = choose_weight(AUTO, 6 * 6, np.arange(120) % 6, one_hot(np.arange(120) % 6, 6))
    assert more_seeds.opinion == 1.0


def test_no_weight_without_agreement_beyond_chance():
    rng = np.random.default_rng(0)
    by_chance = choose_weight(AUTO, 4, HALF, one_hot(rng.permutation(HALF)))
    assert by_chance.opinion == by_chance.blend == 0
    opposed = choose_weight(AUTO, 4, HALF, one_hot(1 - HALF))
    assert opposed.opinion == 0
    assert opposed.agreement == pytest.approx(-1)


@pytest.mark.parametrize(("choices", "agreed"), [(np.array([], dtype=int), None), (np.zeros(9, dtype=int), 0.0)])
def test_no_weight_if_agreement_is_undefined(choices, agreed):
    assert choose_weight(AUTO, 4, choices, one_hot(choices).reshape(-1, 2)) == AnchorWeight(0.0, 0.0, agreed)


def test_a_configured_weight_holds_at_any_agreement():
    student = StudentConfig(second_opinion=0.4, blend=0.0)
    assert choose_weight(student, 4, HALF, one_hot(1 - HALF)) == AnchorWeight(0.4, 0.0, pytest.approx(-1))
    assert wanted(student)
    assert wanted(AUTO)
    assert not wanted(StudentConfig(second_opinion=0, blend=0))
