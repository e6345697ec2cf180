"""The diversity of a run: of all its texts, or of a sample of very many."""

import numpy as np

from jobs.stages.diversity import MEASURED, as_rows


def test_a_run_measures_all_its_texts_or_a_sample_of_very_many():
    rows = np.random.default_rng(2).normal(size=(MEASURED + 5, 2)).astype(np.float32)
    labels = ["a", "b"] * (len(rows) // 2) + ["a"] * (len(rows) % 2)
    whole, first, second = as_rows(rows, labels, ["a", "b"])
    assert whole["label"] is None
    assert whole["texts"] == first["texts"] + second["texts"] == MEASURED
    small, *_ = as_rows(rows[:10], labels[:10], ["a", "b"])
    assert small["texts"] == 10
