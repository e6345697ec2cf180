"""The whole job: config -> preflight -> generate -> relabel -> fine-tune -> evaluate -> registered model.

    potstill distill conf/trec6.yaml --set augment.per_class=50

Each stage reads the tables of the stage before it and writes its own, so each is also a command. A stopped job resumes
where it was: the ledger holds the teacher's answers, and trained students are found by their digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool
from jobs import STAGES, plan, preflight
from jobs.run.folder import Run
from jobs.run.job import Job
from jobs.runtime.terminal import Terminal
from jobs.session import session
from potstill.config import Config
from potstill.errors import InputError, Problem


def run_stages(
    config: Config, stages: Sequence[str], verbose: bool = False, run: Run | None = None, yes: bool = False
) -> None:
    """Run stages of a job, in order, in the folder of ``run`` or of the run that the config names.

    Raises ``InputError`` before anything is asked or started.
    """
    job = preflight.prepare(config, stages, Terminal(), verbose)
    if run is not None:
        if run.name != job.run.name:
            message = (
                f"its task, data, teacher or training recipe has changed; it is now {job.run.name}. "
                "Give the config instead of the run"
            )
            raise InputError([Problem(f"run {run.name}", message)])
        job = replace(job, run=run)
    if planned := plan.plan(job, stages):
        plan.print_plan(job, planned)
        plan.ask_first(job, planned, yes)
    command = "distill" if tuple(stages) == STAGES else "+".join(stages)
    with session(job, command, stages) as tracked:
        _run(tracked, stages)


def _run(job: Job, stages: Sequence[str]) -> None:
    from jobs.stages import evaluate, finetune, generate, relabel

    # The pool's processes hold the CPUs or GPUs that training needs, so it closes first.
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
