"""Agreement beyond chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kappa(choices: NDArray[np.int64], others: NDArray[np.float64]) -> float:
    """Cohen's kappa of hard ``choices`` [texts] with distributions ``others`` [texts, classes]: how much of the
    others' probability is on what was chosen, beyond what the classes' totals alone would give; 1 at most."""
    rows = np.arange(len(choices))
    seen = float(others[rows, choices].mean())
    chosen = np.bincount(choices, minlength=others.shape[1]) / len(choices)
    by_chance = float((chosen * others.mean(axis=0)).sum())
    return (seen - by_chance) / (1.0 - by_chance) if by_chance < 1.0 else 0.0
