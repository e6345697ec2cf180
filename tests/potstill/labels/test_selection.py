"""Which texts are kept."""

from __future__ import annotations

import numpy as np

from potstill.labels.resolution import select


def test_the_surest_of_each_class() -> None:
    columns = np.array([0, 0, 0, 1, 1])
    confidence = np.array([0.9, 0.5, 0.8, 0.4, 0.6])
    chosen = select(columns, confidence, per_class=2, n_classes=3)
    assert chosen.tolist() == [True, False, True, True, True]


def test_of_equally_sure_ones_the_first() -> None:
    assert select(np.zeros(30, dtype=int), np.ones(30), 10, 1).tolist() == [True] * 10 + [False] * 20
