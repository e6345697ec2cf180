"""Which texts are kept."""

from __future__ import annotations

import numpy as np

from potstill.selection import select


def test_the_surest_of_each_class() -> None:
    columns = np.array([0, 0, 0, 1, 1])
    confidence = np.array([0.9, 0.5, 0.8, 0.4, 0.6])
    chosen = select(columns, confidence, np.eye(5, dtype=np.float32), per_class=2, n_classes=3)
    assert chosen.tolist() == [True, False, True, True, True]


def test_spread_prefers_the_unlike() -> None:
    columns = np.zeros(3, dtype=int)
    embeddings = np.array([[1.0, 0.0], [0.99, 0.1], [0.0, 1.0]])
    confidence = np.array([0.9, 0.89, 0.8])
    assert select(columns, confidence, embeddings, 2, 1).tolist() == [True, True, False]
    assert select(columns, confidence, embeddings, 2, 1, spread=1.0).tolist() == [True, False, True]
