"""Search: many distill jobs up to their validation score, the best repeated with fresh draws, one winner tested once.

    potstill search conf/trec6-search.yaml --set search.trials=40

config -> preflight -> plan -> trials (Ray Tune) -> finals -> winner -> the winner's own distill run. Trials share one
teacher pool, one limiter and the ledger, so each text is paid for once. The same command resumes a stopped search;
with more trials it extends it.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from actors.ledger.handle import Ledger
from actors.search_workers import account_of, start_search_workers
from jobs import STAGES, plan, preflight
from jobs.run.folder import Run, name_run
from jobs.run.job import Job, find_run
from jobs.runtime import cluster
from jobs.runtime.terminal import Terminal
from jobs.search import report as search_report
from jobs.search.finals import Final, name_winner, print_warnings, run_finals
from jobs.search.log import SearchLog
from jobs.search.plan import SearchPlan, budget_problems, plan_search, print_plan
from jobs.search.table import TrialTable
from jobs.search.trial import Quiet, Scene
from jobs.search.tuning import run_trials
from jobs.search.validation import make_validation
from jobs.session import session
from jobs.stages import evaluate, finetune, generate, relabel
from potstill.config import Config
from potstill.config.teacher import OpenAITeacher
from potstill.draws import digest
from potstill.errors import InputError, Problem, StageError
from potstill.search.ending import Ending, gist
from potstill.search.placement import Placement, place
from potstill.search.points import search_of
from potstill.student.arms import RECIPE

CLOSING_S = 30.0
GROWS = {"trials", "concurrency", "budget_usd", "budget_hours", "top_k", "repeats"}
"""Fields that may change between two runs of one search."""


def search(config: Config, verbose: bool = False, yes: bool = False, resume: bool = False) -> None:
    """Run a search to its end. ``resume`` requires an earlier run of it.

    Raises ``InputError`` before anything is asked or started, ``StageError`` if no trial finishes.
    """
    terminal = Terminal()
    if config.search is None:
        message = "the config has no such section; say what to try, e.g. search: {space: {augment.shots: [1, 2]}}"
        raise InputError([Problem("search", message)])
    job = preflight.prepare(config, STAGES, terminal, verbose)
    job = replace(job, run=Run(config.storage, name_search(job)))
    table = TrialTable.load(job.run)
    if resume and not len(table):
        raise InputError([Problem("--resume", f"no trial in {job.run.path} yet; leave it out to start the search")])
    planned = plan_search(job)
    found = budget_problems(config, planned)
    if (bound := cluster.upper_bound()) is not None:
        found += place(config, bound, planned.trials)[1]
    if found:
        raise InputError(found)
    print_plan(job, planned)
    if len(table):
        counts = ", ".join(f"{len(table.of(s))} {s}" for s in ("finished", "stopped", "failed") if table.of(s))
        terminal.say(f"resumes with {len(table)} trials ({counts or 'none finished'}) in {job.run.path}")
    plan.ask_first(job, planned.most, yes)
    with session(job, "search", STAGES, check=lambda: _place(config, planned)) as tracked:
        _run(tracked, _place(config, planned), table, planned)


def _place(config: Config, planned: SearchPlan) -> Placement:
    """The search's placement on the connected cluster. Raises ``InputError`` if one trial does not fit."""
    placement, found = place(config, cluster.resources(), planned.trials)
    if placement is None:
        raise InputError(found)
    return placement


def name_search(job: Job) -> str:
    """``<task>-search-<digest>``: the base config, data, teacher and space name a search; its length does not."""
    base = name_run(job.config, job.task, job.data, job.teacher.identity.weights_digest)
    content = search_of(job.config).model_dump(mode="json", exclude=GROWS)
    validation = [[row.text, row.label] for row in job.data.validation]
    return f"{job.task.name}-search-{digest([base, content, validation, RECIPE], size=5)}"


def _run(job: Job, placement: Placement, table: TrialTable, planned: SearchPlan) -> None:
    import ray

    started = time.monotonic()
    ledger = Ledger(job.config.ledger.uri)
    config = _within_budget(job.config, table)
    log_dir = None if job.verbose or "://" in job.run.path else f"{job.run.path}/logs"
    search_workers = start_search_workers(placement, config.teacher, ledger, log_dir)
    try:
        ray.get(search_workers.start.remote())
        validation = make_validation(replace(job, config=config), search_workers, ledger)
        table.settle(account_of(search_workers))
        scene = Scene(config, job.task, job.data, validation, job.run, search_workers, ledger, placement)
        training = placement.torch_workers if placement.workers == 1 else placement.concurrency
        job.terminal.say(
            f"scored on {validation}; {placement.concurrency} trials at a time, "
            f"{training} training on {'GPU' if placement.gpus else 'CPU'}s"
        )
        ending = _ending(job.config, planned, started)
        with SearchLog(job, table, search_workers, planned.trials) as log:
            run_trials(scene, table, ending, log.listener)
        _report_failures(job, table, ending)
        finals = run_finals(scene, job, table)
        winner = name_winner(finals, search_of(job.config).objective)
        job.run.write_config(winner.config, "best.yaml")
        search_report.print_trials(job, table, finals)
        print_warnings(winner, job.terminal)
        own = _winners_job(job, winner, scene)
        again = replace(own, terminal=Quiet())  # the ledger has every answer, and print_warnings has shown the warnings
        with scene.pool() as pool:
            generate.generate(again, pool)
            relabel.relabel(again, pool)
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # the error that ended the block matters more
            table.settle(ray.get(search_workers.close.remote(), timeout=CLOSING_S))
        ray.kill(search_workers)
    own = replace(own, embed=job.embed)
    finetune.finetune(own)
    evaluate.evaluate(own)
    search_report.finish(job, own, table, finals, winner, validation)


def _winners_job(job: Job, winner: Final, scene: Scene) -> Job:
    """The winner as the distill job of ``best.yaml``: tested, reported, registered."""
    run = find_run(winner.config, job.task, job.data)
    found = replace(job, config=winner.config, run=run, embed=scene.embed)
    found.describe()
    return found


def _within_budget(config: Config, table: TrialTable) -> Config:
    """The config with the limiter capped at the search's remaining budget."""
    budget = search_of(config).budget_usd
    if budget is None or not isinstance(config.teacher, OpenAITeacher):
        return config
    left = max(budget - table.spent_usd, 1e-9)
    caps = [one for one in (config.teacher.budget_usd, left) if one is not None]
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"budget_usd": min(caps)})})


def _ending(config: Config, planned: SearchPlan, started: float) -> Ending:
    """Trials end at the time limit, or at the budget less the planned cost of the finals."""
    search = search_of(config)
    budget = None if search.budget_usd is None else search.budget_usd - (planned.finals.cost_usd or 0.0)
    return Ending(budget, None if search.budget_hours is None else started + 3600 * search.budget_hours)


def _report_failures(job: Job, table: TrialTable, ending: Ending) -> None:
    """Warn of failed trials and of an early end. Raises ``StageError`` if no trial finished."""
    if ending.error is not None:
        raise StageError(f"search: {ending.reason}: {ending.error}")
    if ending.reason is not None:
        job.terminal.warn(f"no more trials: {ending.reason}")
    kinds: dict[str, list[str]] = {}
    for trial in table.of("failed"):
        kinds.setdefault(gist(str(trial.error)), []).append(str(trial.error))
    for errors in kinds.values():
        job.terminal.warn(f"{len(errors)} trial(s) failed: {errors[0]}")
    if not table.of("finished"):
        reason = "" if ending.reason is None else f" ({ending.reason})"
        raise StageError(f"search: no trial reached its last rung; run the same command again to resume{reason}")
