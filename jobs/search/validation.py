"""The texts that a search scores its trials on, made once before the first trial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from actors.ledger.handle import Ledger
from actors.search_workers import SharedPool, fetch
from jobs.run.folder import Run, name_run
from jobs.run.job import Job
from jobs.stages import generate, relabel
from jobs.tracking.tracker import NullTracker
from potstill.config import Config
from potstill.errors import InputError, Problem
from potstill.rows import Example
from potstill.search import points as search_points
from potstill.search.validation import HELD_BACK_SEED, Validation, from_real, from_written


def make_validation(job: Job, workshop: Any, ledger: Ledger) -> Validation:
    """From the validation split, or written for the purpose where the task has no real texts to spare.

    Raises ``InputError`` where neither gives texts of two classes.
    """
    search = search_points.search_of(job.config)
    validation = from_real(job.data, search.max_validation, job.config.task_seed)
    if validation is None:
        validation = _write(job, workshop, ledger)
    classes = {row.label for row in (*validation.texts, *(row for fold in validation.folds for row in fold))}
    if len(classes) < 2:
        message = f"{validation} are of {len(classes)} class(es); give the task a train or validation split"
        raise InputError([Problem(f"task {job.task.name}", message)])
    return validation


def held_back_config(config: Config) -> Config:
    """What texts for validation alone are written by: the base config, with a data seed of its own."""
    augment = config.augment.model_copy(update={"per_class": search_points.search_of(config).held_back})
    return config.model_copy(update={"augment": augment, "seed": config.seed + HELD_BACK_SEED, "search": None})


def _write(job: Job, workshop: Any, ledger: Ledger) -> Validation:
    """Generate and relabel texts for validation alone."""
    config = held_back_config(job.config)
    run = Run(f"{job.run.path}/runs", name_run(config, job.task, job.data, job.teacher.identity.weights_digest))

    def embed(*groups: Any) -> Any:
        return fetch(workshop.embed.remote([list(group) for group in groups]))

    own = replace(job, config=config, run=run, tracker=NullTracker(), embed=embed)
    job.terminal.say("no real texts to validate on: some are written for that")
    with SharedPool(workshop, config.teacher, ledger) as pool:
        generate.generate(own, pool)
        relabel.relabel(own, pool)
    return from_written(job.data.seeds, run.read(Example, "relabelled"), job.labels, config.augment.per_class)
