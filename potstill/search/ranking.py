"""Which trials are best: by one objective, or those that no other beats in all of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from potstill.config.search import BETTER_HIGH

Scores = Mapping[str, float]


def mode(metric: str) -> str:
    """``max`` or ``min``."""
    return "max" if metric in BETTER_HIGH else "min"


def merit(scores: Scores, metric: str) -> float:
    """A score as a number of which more is better; what is not a number is worst."""
    value = scores[metric]
    if math.isnan(value):
        return -math.inf
    return value if metric in BETTER_HIGH else -value


def beats(one: Scores, other: Scores, objective: Sequence[str]) -> bool:
    """Whether ``one`` is at least as good in everything and better in something (Pareto dominance)."""
    pairs = [(merit(one, metric), merit(other, metric)) for metric in objective]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def front(trials: Sequence[Scores], objective: Sequence[str]) -> list[int]:
    """Positions of the trials that no other beats, in their order."""
    return [
        i
        for i, one in enumerate(trials)
        if not any(beats(other, one, objective) for j, other in enumerate(trials) if j != i)
    ]


def best(trials: Sequence[Scores], objective: Sequence[str], count: int) -> list[int]:
    """Positions of the best ``count`` trials, the best first.

    With several objectives those of the front come first, by the first objective that is a score of validation texts;
    among equals the earlier trial.
    """
    leading = next(metric for metric in objective if metric in BETTER_HIGH)
    ahead = set(front(trials, objective)) if len(objective) > 1 else set(range(len(trials)))
    order = sorted(range(len(trials)), key=lambda i: (i not in ahead, -merit(trials[i], leading), i))
    return order[:count]
