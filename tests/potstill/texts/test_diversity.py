"""Remote Clique and Chamfer against their definitions, computed pair by pair in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from potstill.errors import InputError
from potstill.texts.diversity import MEASURED, as_rows, by_class, chamfer, nearest_distances, remote_clique

ENTRY = st.floats(-100, 100, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
SETS = st.tuples(st.integers(2, 40), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=ENTRY)
)


def brute_force(rows):
    """(Remote Clique, distances to the nearest other), computed from the definition."""
    unit = [row / np.linalg.norm(row) if row.any() else row for row in rows.astype(np.float64)]
    n = len(unit)
    distances = [[1.0 - float(unit[i] @ unit[j]) for j in range(n) if j != i] for i in range(n)]
    return np.mean([np.mean(row) for row in distances]), np.array([min(row) for row in distances])


@given(SETS)
def test_they_equal_the_definition(rows):
    clique, nearest = brute_force(rows)
    assert remote_clique(rows) == pytest.approx(clique, abs=1e-9)
    assert chamfer(rows) == pytest.approx(nearest.mean(), abs=1e-5)


@given(SETS, st.integers(1, 50), st.integers(1, 3))
def test_blocks_and_threads_change_nothing(rows, block, threads):
    assert nearest_distances(rows, threads, block) == pytest.approx(brute_force(rows)[1], abs=1e-5)


@given(SETS, st.randoms(use_true_random=False))
def test_order_and_length_of_rows_do_not_matter(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    other = rows[order] * np.float32(3.0)
    assert chamfer(other) == pytest.approx(chamfer(rows), abs=1e-5)
    assert remote_clique(other) == pytest.approx(remote_clique(rows), abs=1e-5)


@given(SETS)
def test_a_doubled_set_has_zero_chamfer_distance(rows):
    rows = rows[rows.any(axis=1)]
    if len(rows):
        assert chamfer(np.concatenate([rows, rows])) == pytest.approx(0.0, abs=1e-5)


def test_a_real_size_in_many_blocks():
    rows = np.random.default_rng(3).normal(size=(700, 64)).astype(np.float32)
    rows[650] = rows[3]  # in another block
    nearest = nearest_distances(rows, threads=2, block=128)
    assert nearest == pytest.approx(brute_force(rows)[1], abs=1e-5)
    assert nearest[[3, 650]] == pytest.approx(0.0, abs=1e-6)


def test_corners_of_a_cube_by_hand():
    right_angles = np.eye(4)
    assert (remote_clique(right_angles), chamfer(right_angles)) == pytest.approx((1.0, 1.0))
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert (remote_clique(opposite), chamfer(opposite)) == pytest.approx((2.0, 2.0))


def test_by_class_and_overall():
    rows = np.array([[1, 0], [0, 1], [1, 1], [2, 2], [1, 0]], dtype=np.float32)
    measured = by_class(rows, ["a", "a", "b", "b", "c"], ["a", "b", "c"])
    assert [(one.label, one.texts) for one in measured] == [(None, 5), ("a", 2), ("b", 2), ("c", 1)]
    assert measured[1].chamfer == pytest.approx(1.0)
    assert measured[2].chamfer == pytest.approx(0.0, abs=1e-6)
    assert measured[3].chamfer is None
    assert measured[3].remote_clique is None
    with pytest.raises(InputError, match="'z' not among 'a', 'b'"):
        by_class(rows, ["a", "a", "b", "b", "z"], ["a", "b"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("measure", [remote_clique, chamfer])
def test_a_broken_embedding_is_named(measure, value):
    rows = np.ones((20_000, 2), dtype=np.float32)
    rows[9_001, 1] = value
    with pytest.raises(InputError, match="embeddings: row 9001 contains NaN or infinity"):
        measure(rows)


@pytest.mark.parametrize("rows", [np.ones((1, 3)), np.ones((0, 3)), np.ones(3)])
@pytest.mark.parametrize("measure", [remote_clique, chamfer])
def test_one_text_has_no_distance(measure, rows):
    with pytest.raises(InputError, match="at least two rows"):
        measure(rows)


def test_huge_and_tiny_rows_keep_their_direction():
    rows = np.array([[1e-30, 0], [0, 1e30], [3e38, 3e38]], dtype=np.float32)
    assert chamfer(rows) == pytest.approx(1 - np.sqrt(0.5), abs=1e-6)


def test_a_run_measures_all_its_texts_or_a_sample_of_very_many():
    rows = np.random.default_rng(2).normal(size=(MEASURED + 5, 2)).astype(np.float32)
    labels = ["a", "b"] * (len(rows) // 2) + ["a"] * (len(rows) % 2)
    whole, first, second = as_rows(rows, labels, ["a", "b"])
    assert whole["label"] is None
    assert whole["texts"] == first["texts"] + second["texts"] == MEASURED
    small, *_ = as_rows(rows[:10], labels[:10], ["a", "b"])
    assert small["texts"] == 10
