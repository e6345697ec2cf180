"""Ranks trials by one objective, or by the Pareto front of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from potstill.config.search import BETTER_HIGH

Scores = Mapping[str, float]


def mode(metric: str) -> str:
    """``max`` or ``min``."""
    return "max" if metric in BETTER_HIGH else "min"


def merit(scores: Scores, metric: str) -> float:
    """A score with its sign set so that higher is better; NaN is worst."""
    value = scores[metric]
    if math.isnan(value):
        return -math.inf
    return value if metric in BETTER_HIGH else -value


def beats(one: Scores, other: Scores, objective: Sequence[str]) -> bool:
    """Whether ``one`` Pareto-dominates ``other``: no worse in any objective and better in one."""
    pairs = [(merit(one, metric), merit(other, metric)) for metric in objective]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def front(trials: Sequence[Scores], objective: Sequence[str]) -> list[int]:
    """Indices of the trials on the Pareto front, in order."""
    return [i for i, one in enumerate(trials) if not any(beats(other, one, objective) for other in trials)]


def best(trials: Sequence[Scores], objective: Sequence[str], count: int) -> list[int]:
    """Indices of the best ``count`` trials, best first.

    With several objectives the front comes first. Trials are ordered by the first objective that scores predictions;
    ties go to the earlier trial.
    """
    leading = next(metric for metric in objective if metric in BETTER_HIGH)
    ahead = set(front(trials, objective)) if len(objective) > 1 else set(range(len(trials)))
    order = sorted(range(len(trials)), key=lambda i: (i not in ahead, -merit(trials[i], leading), i))
    return order[:count]
