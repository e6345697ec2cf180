"""Cohen's kappa with soft labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kappa(choices: NDArray[np.int64], others: NDArray[np.float64]) -> float:
    """Cohen's kappa between hard ``choices`` [texts] and distributions ``others`` [texts, classes], at most 1.

    Observed agreement is the mean probability that ``others`` gives to the choices; chance agreement follows from the
    class totals.
    """
    rows = np.arange(len(choices))
    seen = float(others[rows, choices].mean())
    chosen = np.bincount(choices, minlength=others.shape[1]) / len(choices)
    by_chance = float((chosen * others.mean(axis=0)).sum())
    return (seen - by_chance) / (1.0 - by_chance) if by_chance < 1.0 else 0.0
