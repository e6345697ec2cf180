"""Which texts the student learns from: the surest of each class, and not all alike."""

from __future__ import annotations

import numpy as np


def select(
    columns: np.ndarray,
    confidence: np.ndarray,
    embeddings: np.ndarray,
    per_class: int,
    n_classes: int,
    spread: float = 0.0,
) -> np.ndarray:
    """A mask (n_texts,) of at most ``per_class`` texts for every class.

    ``columns``: class of each text; ``confidence``: its probability; ``embeddings``: rows of unit length.
    ``spread`` takes that times the nearest chosen text's cosine off a text's log confidence, so that of two
    equally sure texts the one unlike the chosen ones comes first (0: by confidence alone).
    """
    chosen = np.zeros(len(columns), dtype=bool)
    for column in range(n_classes):
        own = np.flatnonzero(columns == column)
        score = np.log(np.maximum(confidence[own], 1e-12))
        nearest = np.zeros(len(own))
        left = np.ones(len(own), dtype=bool)
        for _ in range(min(per_class, len(own))):
            best = int(np.argmax(np.where(left, score - spread * np.maximum(nearest, 0.0), -np.inf)))
            left[best] = False
            chosen[own[best]] = True
            if spread:
                nearest = np.maximum(nearest, embeddings[own] @ embeddings[own[best]])
    return chosen
