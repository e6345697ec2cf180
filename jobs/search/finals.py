"""The finals: the best trials again with a fresh data seed and several training seeds.

All trials share their draws, so the best of many is partly the luckiest. The winner is the finalist with the best score
on texts that no trial had, averaged over training seeds.
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
from potstill.search import ranking
from potstill.search.placement import TRIAL_CPUS
from potstill.search.points import Point, apply, search_of

FRESH_SEED = 104_729
"""Added to the data seed in the finals."""


@dataclass(frozen=True, slots=True)
class Final:
    """A finalist: its trial, its config with fresh draws, and the result."""

    trial: Trial
    config: Config
    result: RungResult

    @property
    def deviation(self) -> float:
        """Sample standard deviation of macro-F1 over training seeds."""
        return statistics.stdev(self.result.by_seed) if len(self.result.by_seed) > 1 else 0.0


def final_config(config: Config, point: Point) -> Config:
    """The whole config of a finalist: fresh draws, the same labelled examples and splits, comparisons as configured.

    ``potstill distill`` with it makes the same student again.
    """
    task = config.task.model_copy(update={"seed": config.task_seed})
    return apply(config, point).model_copy(
        update={"task": task, "seed": config.seed + FRESH_SEED, "evaluate": config.evaluate, "search": None}
    )


def run_finals(scene: Scene, job: Job, table: TrialTable) -> list[Final]:
    """Repeat the best trials with fresh draws, as many at a time as trials. Raises ``StageError`` if all of them fail."""
    import ray

    search = search_of(job.config)
    finished = table.of("finished")
    chosen = [finished[i] for i in ranking.best([t.scores for t in finished], search.objective, search.top_k)]
    finals: list[Final] = []
    task = ray.remote(run_rung).options(num_cpus=TRIAL_CPUS, max_retries=2)
    shared = ray.put(scene)
    with job.terminal.stage("finals") as line, job.tracker.stage("finals") as record:
        line.note(f"{len(chosen)} trials with fresh draws, {search.repeats} training seeds each")
        for start in range(0, len(chosen), scene.placement.concurrency):
            some = chosen[start : start + scene.placement.concurrency]
            asked = [
                task.remote(shared, _rung_config(scene, trial), f"final-{trial.key}", repeats=search.repeats, keep=True)
                for trial in some
            ]
            for trial, answer in zip(some, asked, strict=True):
                result = _get(answer, job, trial)
                table.settle(account_of(scene.search_workers))
                if result is None:
                    continue
                finals.append(Final(trial, final_config(job.config, trial.point), result))
                values = {"macro_f1": result.scores["macro_f1"], **result.usage}
                record.metrics({f"{name}/trial {trial.number}": value for name, value in values.items()})
        if not finals:
            raise StageError("search: all finalists failed; run the same command again to retry them")
        best = name_winner(finals, search.objective)
        score = best.result.scores["macro_f1"]
        line.summary = f"{len(finals)} trials with fresh draws; trial {best.trial.number} wins with {score:.3f}"
    return finals


def name_winner(finals: Sequence[Final], objective: Sequence[str]) -> Final:
    """The finalist with the best fresh score; with several objectives, by the first that is a score."""
    (first,) = ranking.best([final.result.scores for final in finals], objective, 1)
    return finals[first]


def print_warnings(final: Final, terminal: Terminal) -> None:
    """Show the warnings of a finalist's stages."""
    for warning in final.result.warnings:
        terminal.warn(f"trial {final.trial.number}, fresh draws: {warning}")


def _rung_config(scene: Scene, trial: Trial) -> Config:
    """A finalist's config for ``run_rung``: with the budget's cap, without comparisons."""
    config = final_config(scene.config, trial.point)
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"compare": (), "teacher": 0})})


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
