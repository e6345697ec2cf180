"""The finals: the best trials once more with a fresh data seed and several training seeds, before one is named.

Trials share their draws, and so their luck: the best of many is in part the luckiest. What counts in the finals is a
score on texts that no trial had, averaged over training seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.search_workers import account_of
from jobs.run.job import Job
from jobs.runtime.terminal import Terminal
from jobs.search.table import Trial, TrialTable
from jobs.search.trial import RungResult, Scene, run_rung
from potstill.config import Config
from potstill.errors import PotstillError, StageError
from potstill.search import points as search_points
from potstill.search import ranking as search_ranking
from potstill.search.placement import TRIAL_CPUS

FRESH_SEED = 104_729
"""Added to the data seed in the finals."""


@dataclass(frozen=True, slots=True)
class Final:
    """A finalist: its trial, the config that it was drawn afresh with, and what that gave."""

    trial: Trial
    config: Config
    result: RungResult

    @property
    def deviation(self) -> float:
        """Sample standard deviation of macro-F1 over training seeds."""
        return statistics.stdev(self.result.by_seed) if len(self.result.by_seed) > 1 else 0.0


def final_config(config: Config, point: search_points.Point) -> Config:
    """The whole config of a finalist: other draws, the same labelled examples and splits, comparisons as configured.

    ``potstill distill`` with it makes the same student again.
    """
    applied = search_points.apply(config, point)
    task = config.task.model_copy(update={"seed": config.task_seed})
    return applied.model_copy(
        update={"task": task, "seed": config.seed + FRESH_SEED, "evaluate": config.evaluate, "search": None}
    )


def run_finals(scene: Scene, job: Job, table: TrialTable) -> list[Final]:
    """Draw the best trials afresh, as many at a time as trials were. Raises ``StageError`` where none gave a score."""
    import ray

    search = search_points.search_of(job.config)
    finished = table.of("finished")
    chosen = [finished[i] for i in search_ranking.best([t.scores for t in finished], search.objective, search.top_k)]
    finals: list[Final] = []
    task = ray.remote(run_rung).options(num_cpus=TRIAL_CPUS, max_retries=2)
    shared = ray.put(scene)
    with job.terminal.stage("finals") as line, job.tracker.stage("finals") as record:
        for start in range(0, len(chosen), scene.placement.concurrency):
            some = chosen[start : start + scene.placement.concurrency]
            line.note(f"{len(chosen)} trials with fresh draws, {search.repeats} training seeds each")
            asked = [
                task.remote(shared, _quiet(scene, trial), f"final-{trial.key}", repeats=search.repeats, keep=True)
                for trial in some
            ]
            for trial, answer in zip(some, asked, strict=True):
                result = _get(answer, job, trial)
                table.settle(account_of(scene.workshop))
                if result is None:
                    continue
                finals.append(Final(trial, final_config(job.config, trial.point), result))
                record.metrics(
                    {
                        f"macro_f1/trial {trial.number}": result.scores["macro_f1"],
                        **{f"{name}/trial {trial.number}": value for name, value in result.usage.items()},
                    }
                )
        if not finals:
            raise StageError("search: no finalist gave a score; the same command tries them again")
        best = name_winner(finals, search.objective)
        line.summary = (
            f"{len(finals)} trials drawn afresh; "
            f"trial {best.trial.number} wins with {best.result.scores['macro_f1']:.3f}"
        )
    return finals


def name_winner(finals: Sequence[Final], objective: Sequence[str]) -> Final:
    """The finalist with the best fresh score; with several objectives the best by the first that is a score."""
    (first,) = search_ranking.best([final.result.scores for final in finals], objective, 1)
    return finals[first]


def say_warnings(final: Final, terminal: Terminal) -> None:
    """What the stages had to warn of while a finalist was drawn afresh."""
    for warning in final.result.warnings:
        terminal.warn(f"trial {final.trial.number}, drawn afresh: {warning}")


def _quiet(scene: Scene, trial: Trial) -> Config:
    """A finalist's config as a rung takes it: the budget's cap, no comparisons."""
    config = final_config(scene.config, trial.point)
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"compare": ()})})


def _get(answer: Any, job: Job, trial: Trial) -> RungResult | None:
    import ray

    try:
        result: RungResult = ray.get(answer)
        return result
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, PotstillError):
            raise
        job.terminal.warn(f"finalist trial {trial.number} failed: {error.cause}")
        return None
