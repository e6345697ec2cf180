"""Nearest neighbours over a real Ray: the same numbers as in one process."""

import numpy as np
import pytest

from actors.nearest import BlockNearest, pair_table
from jobs.stages.diversity import MEASURED, as_rows, nearest, nearest_on_cluster
from potstill.errors import InputError
from potstill.texts.diversity import nearest_distances


@pytest.mark.slow
def test_the_cluster_finds_the_same_neighbours(ray_cluster):
    rows = np.random.default_rng(5).normal(size=(1_500, 48)).astype(np.float32)
    rows[1_400] = rows[7] * 2
    found = nearest_on_cluster(rows, block=512)
    assert found == pytest.approx(nearest_distances(rows), abs=1e-6)
    assert found[[7, 1_400]] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_the_gpus_way_finds_the_same_maxima():
    """By torch, on the CPU here: the product and its maxima are the same code there."""
    rows = np.random.default_rng(7).normal(size=(300, 16)).astype(np.float32)
    pairs = pair_table(len(rows), 128)
    with_torch, plain = (BlockNearest(rows, 128, device)(pairs).to_pylist() for device in ("cpu:0", "cpu"))
    for one, other in zip(with_torch, plain, strict=True):
        assert one["of_rows"] == pytest.approx(other["of_rows"], abs=1e-6)
        assert one["of_columns"] == pytest.approx(other["of_columns"], abs=1e-6)


def test_a_small_set_needs_no_cluster():
    rows = np.eye(5, dtype=np.float32)
    assert nearest(rows) == pytest.approx(1.0)


def test_nan_is_told_before_anything_is_started():
    with pytest.raises(InputError, match="row 0 contains NaN"):
        nearest_on_cluster(np.full((3, 2), np.nan, dtype=np.float32))


def test_a_run_measures_all_its_texts_and_of_very_many_a_sample():
    rows = np.random.default_rng(2).normal(size=(MEASURED + 5, 2)).astype(np.float32)
    labels = ["a", "b"] * (len(rows) // 2) + ["a"] * (len(rows) % 2)
    whole, first, second = as_rows(rows, labels, ["a", "b"])
    assert whole["label"] is None
    assert whole["texts"] == first["texts"] + second["texts"] == MEASURED
    small, *_ = as_rows(rows[:10], labels[:10], ["a", "b"])
    assert small["texts"] == 10
