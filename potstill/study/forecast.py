"""Forecasts the gap between synthetic and real data, from tasks that were studied with the same teacher.

A least-squares fit on at most two diagnostics of the teacher's votes, chosen before any study was run. Leave-one-out
cross-validation compares it with a forecast without diagnostics: the mean of the other tasks' gaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from potstill.measures.scores import Interval
from potstill.measures.subjectivity import spearman

PREDICTORS = ("alpha", "entropy")  # of ``assessment.Diagnosis``, in this order
FEWEST, FEWEST_FOR_TWO = 5, 10  # studied tasks for one predictor, and for both


@dataclass(frozen=True, slots=True)
class Studied:
    """A task of a study: its ``gap`` (best synthetic source minus real data, macro-F1) and its diagnostics by name."""

    task: str
    gap: float
    diagnostics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected ``gap`` with a 95 % prediction interval. ``error``: leave-one-out mean absolute error; ``error_of_mean``:
    the same for the mean of the other tasks; ``rank_correlation``: Spearman's rho between left-out forecasts and gaps.
    ``useful``: the fit has the smaller error; otherwise ``gap`` is the mean."""

    gap: Interval
    predictors: tuple[str, ...]
    tasks: int
    error: float
    error_of_mean: float
    rank_correlation: float | None
    useful: bool


def forecast(studied: Sequence[Studied], diagnostics: Mapping[str, float | None]) -> Forecast | str:
    """The forecast for a task with these ``diagnostics``, or the reason why there is none."""
    names, known = usable(studied)
    if len(known) < FEWEST:
        return f"{len(known)} task{'s were' if len(known) != 1 else ' was'} both studied and assessed with this teacher; a forecast needs {FEWEST}"
    if missing := [name for name in names if diagnostics.get(name) is None]:
        return f"this task's {' and '.join(missing)} could not be measured"
    x = np.array([[one.diagnostics[name] for name in names] for one in known])
    gaps = np.array([one.gap for one in known])
    left_out = leave_one_out(x, gaps)
    means = means_of_others(gaps)
    error, error_of_mean = float(abs(left_out - gaps).mean()), float(abs(means - gaps).mean())
    useful = error < error_of_mean
    here = np.array([float(diagnostics[name] or 0.0) for name in names])
    value = float(_fit(x, gaps) @ [1.0, *here]) if useful else float(gaps.mean())
    residuals = (left_out if useful else means) - gaps
    freedom = len(gaps) - 1 - (len(names) if useful else 0)
    spread = float(stats.t.ppf(0.975, freedom) * np.sqrt((residuals**2).mean()))
    return Forecast(
        Interval(value, value - spread, value + spread),
        names if useful else (),
        len(known),
        error,
        error_of_mean,
        spearman(left_out, gaps)[0],
        useful,
    )


def usable(studied: Sequence[Studied]) -> tuple[tuple[str, ...], list[Studied]]:
    """The predictors that the number of tasks allows, and the tasks that have them all."""
    names = PREDICTORS if len(studied) >= FEWEST_FOR_TWO else PREDICTORS[:1]
    return names, [one for one in studied if all(name in one.diagnostics for name in names)]


def means_of_others(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each row the mean of the other rows' values, (rows,)."""
    return (y.sum() - y) / (len(y) - 1)


def leave_one_out(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row's value as predicted by a least-squares fit of the other rows, (rows,). ``x``: (rows, predictors)."""
    others = ~np.eye(len(y), dtype=bool)
    return np.array([_fit(x[keep], y[keep]) @ [1.0, *x[i]] for i, keep in enumerate(others)])


def _fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intercept and slopes; the solution with the smallest norm if predictors are constant."""
    return np.linalg.lstsq(np.column_stack([np.ones(len(x)), x]), y, rcond=None)[0].astype(np.float64)
