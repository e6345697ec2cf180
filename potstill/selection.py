"""Which texts the student learns from: the surest of each class."""

from __future__ import annotations

import numpy as np


def select(columns: np.ndarray, confidence: np.ndarray, per_class: int, n_classes: int) -> np.ndarray:
    """A mask (n_texts,) of at most ``per_class`` texts for every class; of equally sure ones the first.

    ``columns``: class of each text; ``confidence``: its probability.
    """
    chosen = np.zeros(len(columns), dtype=bool)
    for column in range(n_classes):
        own = np.flatnonzero(columns == column)
        chosen[own[np.argsort(-confidence[own], kind="stable")[:per_class]]] = True
    return chosen
