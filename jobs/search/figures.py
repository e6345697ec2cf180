"""The plots of a search: parallel coordinates, importance of each field, scores against costs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.report.figures import BLUE, GREEN, GREY, GRID, INK, MUTED, new_figure, put_title
from jobs.search.table import Trial
from jobs.search.tuning import distribution
from potstill.config.search import BETTER_HIGH, SearchConfig
from potstill.search import points as search_points
from potstill.search import ranking as search_ranking

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_FOR_IMPORTANCE = 4
NAMES = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "cost_usd": "dollars a trial, alone",
    "tokens": "tokens a trial, alone",
    "training_s": "seconds of training",
}


def leading(objective: Sequence[str]) -> str:
    """The score of validation texts that comes first."""
    return next(metric for metric in objective if metric in BETTER_HIGH)


def parallel_figure(trials: Sequence[Trial], search: SearchConfig) -> Figure:
    """A line a trial over one axis a field, the score at the right; the best are darkest, stopped ones dashed."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    metric = leading(search.objective)
    names = list(search.space)
    scores = np.array([trial.scores[metric] for trial in trials])
    low, high = (float(scores.min()), float(scores.max())) if len(trials) else (0.0, 1.0)
    norm = Normalize(low - 0.25 * (high - low or 1.0), high or 1.0)
    figure, axes = new_figure(2.0 * len(names) + 3.0, 4.6)
    scales = [_Scale([trial.point[name] for trial in trials], search, name) for name in names]
    for i in np.argsort(scores):
        trial = trials[i]
        heights = [scale.place(trial.point[name]) for scale, name in zip(scales, names, strict=True)]
        heights.append((scores[i] - low) / (high - low) if high > low else 0.5)
        axes.plot(
            range(len(names) + 1),
            heights,
            color=colormaps["Blues"](norm(scores[i])),
            linewidth=2.0,
            linestyle="-" if trial.status == "finished" else "--",
            alpha=0.9,
        )
    for position, (scale, name) in enumerate(zip(scales, names, strict=True)):
        axes.vlines(position, 0, 1, color=GRID, zorder=0)
        for height, text in scale.ticks():
            axes.annotate(
                text,
                (position, height),
                xytext=(-5, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8,
                color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )
        axes.annotate(name.replace(".", ".\n", 1), (position, -0.07), ha="center", va="top", fontsize=8, color=INK)
    axes.vlines(len(names), 0, 1, color=GRID, zorder=0)
    for height, value in ((0.0, low), (1.0, high)):
        axes.annotate(
            f"{value:.3f}", (len(names), height), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.annotate(NAMES[metric], (len(names), -0.07), ha="center", va="top", fontsize=9, color=INK, fontweight="bold")
    axes.set_xlim(-0.5, len(names) + 0.5)
    axes.set_ylim(-0.22, 1.05)
    axes.set_xticks([])
    axes.set_yticks([])
    done = sum(trial.status == "finished" for trial in trials)
    put_title(
        axes, "What was tried, and what it gave", f"{done} finished trials, {len(trials) - done} stopped early (dashed)"
    )
    return figure


class _Scale:
    """Where the values of one field lie on its axis, from 0 to 1."""

    def __init__(self, values: Sequence[Any], search: SearchConfig, name: str) -> None:
        one = search.space[name]
        self._log = one.loguniform is not None
        listed = one.values()
        self._listed = list(listed) if one.choice is not None and listed is not None else None
        self._ends = one.ends if one.choice is None else (0.0, 1.0)

    def place(self, value: Any) -> float:
        if self._listed is not None:
            return (self._listed.index(value) + 0.5) / len(self._listed)
        low, high = self._ends
        if self._log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        if self._listed is not None:
            return [(self.place(one), str(list(one)) if isinstance(one, tuple) else str(one)) for one in self._listed]
        return [(0.0, f"{self._ends[0]:.3g}"), (1.0, f"{self._ends[1]:.3g}")]


def importances(trials: Sequence[Trial], search: SearchConfig) -> dict[str, float]:
    """How much of the differences between finished trials each field explains (fANOVA: Hutter et al., ICML 2014), by
    Optuna; shares that sum to 1.

    Empty where there are too few trials, or no differences.
    """
    import optuna

    metric = leading(search.objective)
    finished = [trial for trial in trials if trial.status == "finished"]
    scores = {trial.scores[metric] for trial in finished}
    if len(finished) < LEAST_FOR_IMPORTANCE or len(scores) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    space = {name: distribution(one) for name, one in search.space.items()}
    for trial in finished:
        study.add_trial(
            optuna.trial.create_trial(
                params=search_points.encode(search, trial.point), distributions=space, value=trial.scores[metric]
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except (ValueError, RuntimeError):  # says so where a field never changed
            return {}


def importance_figure(shares: dict[str, float], trials: int) -> Figure:
    """Bars: how much of the score's differences each field explains."""
    names = sorted(shares, key=lambda name: shares[name])
    figure, axes = new_figure(7.0, 0.45 * len(names) + 1.6)
    axes.barh(range(len(names)), [100 * shares[name] for name in names], color=BLUE, height=0.6)
    for row, name in enumerate(names):
        axes.text(100 * shares[name] + 1, row, f"{shares[name]:.0%}", va="center", fontsize=9, color=MUTED)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlim(0, max(105 * max(shares.values()), 10))
    axes.set_xlabel("share of the differences, %", color=MUTED)
    axes.tick_params(length=0)
    put_title(axes, "Which field matters", f"fANOVA over {trials} finished trials; few trials say little")
    return figure


def pareto_figure(trials: Sequence[Trial], search: SearchConfig) -> Figure:
    """Score against cost: the second objective, or tokens where there is none. Trials that no other beats are joined."""
    metric = leading(search.objective)
    others = [one for one in search.objective if one != metric]
    other = others[0] if others else "tokens"
    finished = [trial for trial in trials if trial.status == "finished"]
    figure, axes = new_figure(6.5, 4.4)
    front = search_ranking.front([trial.scores for trial in finished], (metric, other))
    for i, trial in enumerate(finished):
        ahead = i in front
        axes.scatter(
            trial.scores[other], trial.scores[metric], s=55 if ahead else 30, color=GREEN if ahead else GREY, zorder=3
        )
        axes.annotate(
            str(trial.number),
            (trial.scores[other], trial.scores[metric]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
        )
    line = sorted((finished[i].scores[other], finished[i].scores[metric]) for i in front)
    if len(line) > 1:
        axes.step(*zip(*line, strict=True), where="post", color=GREEN, linewidth=1.2, alpha=0.7, zorder=2)
    axes.set_xlabel(NAMES[other], color=MUTED)
    axes.set_ylabel(f"{NAMES[metric]} on validation texts", color=MUTED)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    put_title(axes, "Score against cost", f"{len(front)} of {len(finished)} finished trials are beaten by none (green)")
    return figure
