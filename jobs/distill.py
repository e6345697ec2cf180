"""The whole job: config -> preflight -> generate -> relabel -> fine-tune -> evaluate -> registered model.

    potstill distill conf/trec6.yaml --set augment.per_class=50

Every stage reads the tables of the stage before and writes its own, so each is also a command, and a job
that was stopped goes on where it was: the ledger holds what the teacher said, trained students are found
by their digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool
from jobs import STAGES, plan, preflight
from jobs.run.folder import Run
from jobs.run.job import Job
from jobs.runtime import cluster
from jobs.runtime.terminal import Terminal
from jobs.tracking.tracker import open_tracker
from potstill.config import Config
from potstill.errors import InputError, Problem

__all__ = ["STAGES", "distill", "run_stages"]


def distill(config: Config, verbose: bool = False, yes: bool = False) -> None:
    """Run all stages."""
    run_stages(config, STAGES, verbose, command="distill", yes=yes)


def run_stages(
    config: Config,
    stages: Sequence[str],
    verbose: bool = False,
    command: str | None = None,
    run: Run | None = None,
    yes: bool = False,
) -> None:
    """Run some stages of a job, in order, in the folder of ``run`` or of the run that the config names.

    Raises ``InputError`` before anything is asked or started.
    """
    terminal = Terminal()
    job = preflight.prepare(config, stages, terminal, verbose)
    if run is not None:
        if run.name != job.run.name:
            message = (
                f"its task, data, teacher or training recipe changed since; as they are now they make {job.run.name}. "
                "Give the config instead of the run"
            )
            raise InputError([Problem(f"run {run.name}", message)])
        job = replace(job, run=run)
    if planned := plan.plan(job, stages):
        plan.print_plan(job, planned)
        plan.ask_first(job, planned, yes)
    with cluster.connect(verbose):
        preflight.check_cluster(job, stages)
        job.describe()
        with open_tracker(
            config,
            command=command or "+".join(stages),
            task_name=job.task.name,
            run_dir=job.run.path,
            run_digest=job.run.digest,
            warn=terminal.warn,
        ) as tracker:
            tracker.tags({"potstill.run": job.run.name})
            _run(replace(job, tracker=tracker), stages)


def _run(job: Job, stages: Sequence[str]) -> None:
    from jobs.stages import evaluate, finetune, generate, relabel

    # The pool's processes hold the CPUs or GPUs that training needs, so it is closed before.
    if {"generate", "relabel"} & set(stages):
        choices = job.config.relabel.enabled
        with TeacherPool(job.config.teacher, Ledger(job.config.ledger.uri), job.terminal.warn, choices=choices) as pool:
            if "generate" in stages:
                generate.generate(job, pool)
            if "relabel" in stages:
                relabel.relabel(job, pool)
    if "finetune" in stages:
        finetune.finetune(job)
    if "evaluate" in stages:
        evaluate.evaluate(job)
