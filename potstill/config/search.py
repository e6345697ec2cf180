"""The ``search`` section of a config: the search space, the trials and how the winner is chosen.

    search:
      space:
        augment.shots: [1, 2]                       # short for {choice: [1, 2]}
        augment.alpha.low: {uniform: [0.5, 0.9], step: 0.1}
        student.learning_rate: {loguniform: [1e-5, 1e-3]}
        augment.per_class: {randint: [25, 100]}     # both ends included
      trials: 20

``potstill/search/points.py`` applies a point of the space to the rest of the config.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from potstill.config.sections import Section

Metric = Literal["macro_f1", "accuracy", "cost_usd", "tokens", "training_s"]
METRICS: tuple[str, ...] = get_args(Metric)
BETTER_HIGH = ("macro_f1", "accuracy")
"""Metrics on validation texts to maximise; the others are minimised."""

MOST_VALUES = 10_000
"""A finite range with more values than this is treated as continuous."""

Value = int | float | str | bool | None | tuple[Any, ...]


class Range(Section):
    """The values of one field, given by exactly one of choice, uniform, loguniform and randint."""

    choice: tuple[Any, ...] | None = Field(None, description="one of these values")
    uniform: tuple[float, float] | None = Field(None, description="a number from low to high")
    loguniform: tuple[float, float] | None = Field(None, description="the same, uniform in the logarithm; low above 0")
    randint: tuple[int, int] | None = Field(None, description="an integer from low to high, both included")
    step: float | None = Field(None, gt=0, description="uniform and randint: only low, low + step, ...")

    @field_validator("choice", mode="after")
    @classmethod
    def _lists(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if value is None else tuple(tuple(one) if isinstance(one, list) else one for one in value)

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        kinds = [kind for kind in ("choice", "uniform", "loguniform", "randint") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError("needs exactly one of choice, uniform, loguniform, randint, or a list of values")
        if self.choice is not None:
            if not self.choice:
                raise ValueError("choice has no values")
            if len(set(map(repr, self.choice))) < len(self.choice):
                raise ValueError("choice repeats a value")
        else:
            low, high = self.ends
            if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
                raise ValueError(f"low ({low}) must be below high ({high})")
            if self.loguniform is not None and low <= 0:
                raise ValueError(f"loguniform needs a low above 0, not {low}")
        if self.step is not None:
            if self.choice is not None or self.loguniform is not None:
                raise ValueError("step works only with uniform and randint")
            if self.randint is not None and self.step != int(self.step):
                raise ValueError(f"the step of randint must be a whole number, not {self.step}")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high of a numeric range. Raises ``ValueError`` for a choice."""
        found = self.uniform or self.loguniform or self.randint
        if found is None:
            raise ValueError("a choice has no ends")
        return found

    def values(self) -> tuple[Value, ...] | None:
        """All values, in order; None if there are infinitely or too many."""
        if self.choice is not None:
            return self.choice
        low, high = self.ends
        step = self.step or (1 if self.randint is not None else None)
        if step is None or (count := math.floor((high - low) / step + 1e-9) + 1) > MOST_VALUES:
            return None
        if self.randint is not None:
            return tuple(int(low) + i * int(step) for i in range(count))
        return tuple(round(low + i * step, 10) for i in range(count))

    def at(self, share: float) -> Value:
        """Map ``share``, a uniform number in [0, 1), to a value of the range."""
        listed = self.values()
        if listed is not None:
            return listed[int(share * len(listed))]
        low, high = self.ends
        if self.loguniform is not None:
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        if self.randint is not None:
            step = int(self.step or 1)
            return int(low) + step * int(share * ((int(high) - int(low)) // step + 1))
        raw = low + share * (high - low)
        return raw if self.step is None else round(low + self.step * int((raw - low) / self.step + 0.5), 10)


class SearchConfig(Section):
    """Search over config fields (``potstill search``). Every trial is a distill job up to its validation score."""

    space: dict[str, Range] = Field(
        description="maps fields of augment, relabel or student to a list of values or to a mapping with `choice`, "
        "`uniform`, `loguniform` or `randint`"
    )
    objective: tuple[Metric, ...] = Field(
        ("macro_f1",),
        description="metrics to optimise: macro_f1 and accuracy on validation texts, cost_usd of all answers a trial uses "
        "(even if another trial paid for them), tokens, training_s",
    )
    trials: int = Field(20, ge=1, le=100_000, description="number of trials; raise it to extend a finished search")
    concurrency: int = Field(0, ge=0, le=10_000, description="parallel trials; 0: as many as fit on the cluster")
    budget_usd: float | None = Field(None, gt=0, description="maximum cost of new answers, finals included")
    budget_hours: float | None = Field(None, gt=0, description="start no rung after this; the finals run afterwards")
    searcher: Literal["tpe", "random", "grid"] = Field("tpe", description="sampler of points; tpe: Optuna's TPE")
    scheduler: Literal["auto", "asha", "none"] = Field(
        "auto",
        description="asha: stop weak trials early, at a rung; auto: asha, but none for a grid or several objectives",
    )
    rungs: int = Field(3, ge=1, le=8, description="asha: rungs with an increasing number of texts per class")
    epoch_rungs: int = Field(0, ge=0, le=4, description="asha: further rungs with an increasing number of epochs")
    reduction: float = Field(
        2.0,
        gt=1.0,
        le=10.0,
        description="asha: promote the best 1/reduction of the trials, with reduction times the texts",
    )
    top_k: int = Field(2, ge=1, le=100, description="finalists, rerun with fresh data before the winner is chosen")
    repeats: int = Field(2, ge=1, le=100, description="training seeds per finalist")
    seed: int = Field(0, ge=0, description="random seed of the searcher")
    max_validation: int = Field(500, ge=10, description="maximum validation texts, sampled with the data seed")
    held_back: int = Field(
        10,
        ge=2,
        le=1000,
        description="for tasks without real training texts: generated texts per class held back for validation",
    )

    @field_validator("space", mode="before")
    @classmethod
    def _lists_are_choices(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: {"choice": one} if isinstance(one, list | tuple) else one for name, one in value.items()}
        return value

    @field_validator("objective", mode="before")
    @classmethod
    def _one_objective(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> SearchConfig:
        complaints = []
        if not self.space:
            complaints.append("space is empty; name at least one field, such as augment.shots: [1, 2]")
        if len(set(self.objective)) < len(self.objective):
            complaints.append("objective repeats a metric")
        if not set(self.objective) & set(BETTER_HIGH):
            complaints.append("objective needs macro_f1 or accuracy besides the costs to minimise")
        if self.scheduler == "asha" and len(self.objective) > 1:
            complaints.append("scheduler asha needs exactly one objective; name one objective, or set scheduler: none")
        if self.searcher == "grid":
            infinite = [name for name, one in self.space.items() if one.values() is None]
            if infinite:
                complaints.append(f"searcher grid needs finite ranges; give {', '.join(infinite)} a list or a step")
        if complaints:
            raise ValueError("; ".join(complaints))
        return self

    @property
    def halving(self) -> bool:
        """Whether trials are stopped early."""
        if self.scheduler == "auto":
            return self.searcher != "grid" and len(self.objective) == 1 and self.rung_count > 1
        return self.scheduler == "asha"

    @property
    def rung_count(self) -> int:
        """Number of rungs of a trial that runs to the end under early stopping."""
        return self.rungs + self.epoch_rungs


def rung_shares(search: SearchConfig) -> list[tuple[float, float]]:
    """Per rung the share of texts per class and the share of epochs: texts grow first, then epochs.

    The last rung is always (1, 1); without early stopping it is the only one.
    """
    if not search.halving:
        return [(1.0, 1.0)]
    few = search.reduction**-search.epoch_rungs
    texts = [(search.reduction ** (rung + 1 - search.rungs), few) for rung in range(search.rungs)]
    epochs = [(1.0, search.reduction ** (rung + 1 - search.epoch_rungs)) for rung in range(search.epoch_rungs)]
    return texts + epochs
