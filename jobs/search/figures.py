"""The charts of a search: parallel coordinates, field importance, scores against costs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.report.figures import BLUE, CARD, GREEN, GREY, INK, RULE, annotate, bars, new_figure
from jobs.search.table import Trial
from jobs.search.tuning import distribution
from potstill.config.search import BETTER_HIGH, SearchConfig
from potstill.search import ranking
from potstill.search.points import encode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_FOR_IMPORTANCE = 4
NAMES = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "cost_usd": "dollars per trial without sharing",
    "tokens": "tokens per trial without sharing",
    "training_s": "seconds of training",
}


def leading(objective: Sequence[str]) -> str:
    """The first objective that is a score on validation texts."""
    return next(metric for metric in objective if metric in BETTER_HIGH)


def parallel_figure(trials: Sequence[Trial], search: SearchConfig) -> Figure:
    """One line per trial over one axis per field, the score at the right. Higher scores are darker, stopped trials dashed."""
    metric = leading(search.objective)
    names = list(search.space)
    last = len(names)
    scores = [trial.scores[metric] for trial in trials]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    heights = [(score - low) / (high - low) if high > low else 0.5 for score in scores]
    done = sum(trial.status == "finished" for trial in trials)
    title = f"Trials: {done} finished, {len(trials) - done} stopped early (dashed)"
    figure, axes = new_figure(2.0 * last + 3.0, 4.6, title)
    scales = [_Scale(search, name) for name in names]
    for trial, height in sorted(zip(trials, heights, strict=True), key=lambda one: one[1]):
        places = [scale.place(trial.point[name]) for scale, name in zip(scales, names, strict=True)]
        dash = "-" if trial.status == "finished" else "--"
        axes.plot(
            range(last + 1), [*places, height], color=BLUE, alpha=0.25 + 0.75 * height, linewidth=2.0, linestyle=dash
        )
    axes.vlines(range(last + 1), 0, 1, color=RULE, zorder=0)
    background = {"facecolor": CARD, "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
    for position, scale in enumerate(scales):
        for height, text in scale.ticks():
            axes.text(position - 0.04, height, text, ha="right", va="center", fontsize=8, color=INK, bbox=background)
    for height, value in ((0.0, low), (1.0, high)):
        axes.text(last + 0.04, height, f"{value:.3f}", va="center", fontsize=9, color=INK)
    axes.set_xticks(range(last + 1), [*(name.replace(".", ".\n", 1) for name in names), NAMES[metric]], color=INK)
    axes.set(xlim=(-0.5, last + 0.5), ylim=(-0.05, 1.05), yticks=[])
    return figure


class _Scale:
    """Places of one field's values on its axis, from 0 to 1."""

    def __init__(self, search: SearchConfig, name: str) -> None:
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
    """The share of the variance between finished trials that each field explains (fANOVA, Hutter et al., ICML 2014); sums to 1.

    Computed by Optuna. Empty if there are too few trials or their scores are equal.
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
                params=encode(search, trial.point), distributions=space, value=trial.scores[metric]
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except (ValueError, RuntimeError):  # raised if a field never changed
            return {}


def importance_figure(shares: dict[str, float], trials: int) -> Figure:
    """Bars: the share of the score's variance that each field explains."""
    rows = [(name, [shares[name]]) for name in sorted(shares, key=lambda name: -shares[name])]
    return bars(
        rows, ["share"], "share of the variance explained", f"Field importance (fANOVA, {trials} finished trials)"
    )


def pareto_figure(trials: Sequence[Trial], search: SearchConfig) -> Figure:
    """Score against the second objective, or against tokens. The Pareto front is green and joined."""
    metric = leading(search.objective)
    other = next((one for one in search.objective if one != metric), "tokens")
    finished = [trial for trial in trials if trial.status == "finished"]
    points = [(trial.scores[other], trial.scores[metric]) for trial in finished]
    front = ranking.front([trial.scores for trial in finished], (metric, other))
    title = f"Score against cost: {len(front)} of {len(finished)} finished trials on the Pareto front (green)"
    figure, axes = new_figure(8.0, 4.4, title)
    for i, point in enumerate(points):
        axes.scatter(*point, s=55 if i in front else 30, color=GREEN if i in front else GREY, zorder=3)
        annotate(axes, str(finished[i].number), point, (5, 6))
    if len(front) > 1:
        axes.step(*zip(*sorted(points[i] for i in front), strict=True), where="post", color=GREEN, linewidth=1.2)
    axes.set(xlabel=NAMES[other], ylabel=f"{NAMES[metric]} on validation texts")
    axes.grid(color=RULE)
    return figure
