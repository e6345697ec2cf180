"""The texts on which a search scores its trials, made once before the first trial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from actors.ledger.handle import Ledger
from actors.search_workers import SharedPool, fetch
from jobs.run.job import Job, find_run
from jobs.stages import generate, relabel
from jobs.tracking.tracker import NullTracker
from potstill.config import Config
from potstill.errors import InputError, Problem
from potstill.rows import Example
from potstill.search.points import search_of
from potstill.search.validation import HELD_BACK_SEED, Validation, from_real, from_written


def make_validation(job: Job, search_workers: Any, ledger: Ledger) -> Validation:
    """Texts of the validation split, or generated ones if the task has no real texts to spare.

    Raises ``InputError`` if they cover fewer than two classes.
    """
    validation = from_real(job.data, search_of(job.config).max_validation, job.config.task_seed)
    if validation is None:
        validation = _generate(job, search_workers, ledger)
    classes = {row.label for row in (*validation.texts, *(row for fold in validation.folds for row in fold))}
    if len(classes) < 2:
        message = f"{validation} are of {len(classes)} class(es); give the task a train or validation split"
        raise InputError([Problem(f"task {job.task.name}", message)])
    return validation


def held_back_config(config: Config) -> Config:
    """The config that generates validation texts: the base config with another data seed."""
    augment = config.augment.model_copy(update={"per_class": search_of(config).held_back})
    return config.model_copy(update={"augment": augment, "seed": config.seed + HELD_BACK_SEED, "search": None})


def _generate(job: Job, search_workers: Any, ledger: Ledger) -> Validation:
    config = held_back_config(job.config)
    run = find_run(config, job.task, job.data, f"{job.run.path}/runs")

    def embed(*groups: Any) -> Any:
        return fetch(search_workers.embed.remote([list(group) for group in groups]))

    own = replace(job, config=config, run=run, tracker=NullTracker(), embed=embed)
    job.terminal.say("no real texts for validation; generating some")
    with SharedPool(search_workers, config.teacher, ledger) as pool:
        generate.generate(own, pool)
        relabel.relabel(own, pool)
    return from_written(job.data.seeds, run.read(Example, "relabelled"), job.labels, config.augment.per_class)
