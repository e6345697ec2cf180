"""Search: many distill jobs up to their validation score, the best of them drawn afresh, one winner tested once.

    potstill search conf/trec6-search.yaml --set search.trials=40

config -> preflight -> plan -> trials (Ray Tune) -> finals -> winner -> the winner's own distill run. Trials share one
teacher pool, one limiter and the ledger, so a text is paid for once however many trials want it. The same command
goes on where it was stopped, and with more trials it grows.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from actors.ledger.handle import Ledger
from actors.search_workers import account_of, start_search_workers
from jobs import plan, preflight
from jobs.distill import STAGES
from jobs.run.folder import Run, name_run
from jobs.run.job import Job
from jobs.runtime import cluster
from jobs.runtime.terminal import Terminal
from jobs.search import plan as search_plan
from jobs.search import report as search_report
from jobs.search.finals import Final, name_winner, run_finals, say_warnings
from jobs.search.log import SearchLog
from jobs.search.table import TrialTable
from jobs.search.trial import Quiet, Scene
from jobs.search.tuning import run_trials
from jobs.search.validation import make_validation
from jobs.stages import evaluate, finetune, generate, relabel
from jobs.tracking.tracker import open_tracker
from potstill.config import Config
from potstill.config.teacher import OpenAITeacher
from potstill.draws import digest
from potstill.errors import InputError, Problem, StageError
from potstill.search import points as search_points
from potstill.search.ending import Ending, gist
from potstill.search.placement import Placement, place
from potstill.student.arms import RECIPE

CLOSING_S = 30.0
GROWS = {"trials", "concurrency", "budget_usd", "budget_hours", "top_k", "repeats"}
"""Fields that may change between two runs of one search."""


def search(config: Config, verbose: bool = False, yes: bool = False, resume: bool = False) -> None:
    """Run a search to its end. ``resume``: there has to be something to go on with.

    Raises ``InputError`` before anything is asked or started, ``StageError`` where no trial came to its end.
    """
    terminal = Terminal()
    if config.search is None:
        message = "the config has no such section; say what to try, e.g. search: {space: {augment.shots: [1, 2]}}"
        raise InputError([Problem("search", message)])
    job = preflight.prepare(config, STAGES, terminal, verbose)
    job = replace(job, run=Run(config.storage, name_search(job)))
    table = TrialTable.load(job.run)
    if resume and not len(table):
        raise InputError([Problem("--resume", f"there is no trial yet in {job.run.path}; leave it out to begin")])
    planned = search_plan.plan_search(job)
    found = search_plan.budget_problems(config, planned)
    bound = cluster.upper_bound()
    found += place(config, bound, planned.trials)[1] if bound is not None else []
    if found:
        raise InputError(found)
    search_plan.print_plan(job, planned)
    if len(table):
        told = ", ".join(f"{len(table.of(s))} {s}" for s in ("finished", "stopped", "failed") if table.of(s))
        terminal.say(f"goes on from {len(table)} trials ({told or 'none finished'}) in {job.run.path}")
    plan.ask_first(job, planned.most, yes)
    with cluster.connect(verbose):
        preflight.check_cluster(job, STAGES)
        placement, found = place(config, cluster.resources(), planned.trials)
        if placement is None:
            raise InputError(found)
        job.run.write_config(config)
        with open_tracker(
            config,
            command="search",
            task_name=job.task.name,
            run_dir=job.run.path,
            run_digest=job.run.digest,
            warn=terminal.warn,
        ) as tracker:
            tracker.tags({"potstill.run": job.run.name})
            _run(replace(job, tracker=tracker), placement, table, planned)


def name_search(job: Job) -> str:
    """``<task>-search-<digest>``: the same base config, data, teacher and space are the same search, however long."""
    weights = job.teacher.identity.weights_digest
    base = name_run(job.config, job.task, job.data, weights)
    content = search_points.search_of(job.config).model_dump(mode="json", exclude=GROWS)
    validation = [[row.text, row.label] for row in job.data.validation]
    return f"{job.task.name}-search-{digest([base, content, validation, RECIPE], size=5)}"


def _run(job: Job, placement: Placement, table: TrialTable, planned: search_plan.SearchPlan) -> None:
    import ray

    search, terminal, started = search_points.search_of(job.config), job.terminal, time.monotonic()
    ledger = Ledger(job.config.ledger.uri)
    config = _within_budget(job.config, table)
    log_dir = None if job.verbose or "://" in job.run.path else f"{job.run.path}/logs"
    workshop = start_search_workers(placement, config.teacher, ledger, log_dir)
    try:
        ray.get(workshop.start.remote())
        validation = make_validation(replace(job, config=config), workshop, ledger)
        table.settle(account_of(workshop))
        scene = Scene(config, job.task, job.data, validation, job.run, workshop, ledger, placement)
        where = "GPU" if placement.gpus else "CPU"
        terminal.say(
            f"scored on {validation}; {placement.concurrency} trials at a time, "
            f"{placement.torch_workers if placement.workers == 1 else placement.concurrency} training on {where}s"
        )
        ending = Ending(_for_trials(job.config, planned), _deadline(job.config, started))
        with SearchLog(job, table, workshop, planned.trials) as log:
            run_trials(scene, table, ending, log.listener)
        _say_why(job, table, ending)
        finals = run_finals(scene, job, table)
        winner = name_winner(finals, search.objective)
        job.run.write_config(winner.config, "best.yaml")
        search_report.print_trials(job, table, finals)
        say_warnings(winner, terminal)
        own = _winners_job(job, winner, scene)
        again = replace(own, terminal=Quiet())  # all of it is in the ledger, and is told by say_warnings
        with scene.pool() as pool:
            generate.generate(again, pool)
            relabel.relabel(again, pool)
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # what broke off is told by what is raised
            table.settle(ray.get(workshop.close.remote(), timeout=CLOSING_S))
        ray.kill(workshop)
    own = replace(own, embed=job.embed)
    finetune.finetune(own)
    evaluate.evaluate(own)
    search_report.finish(job, own, table, finals, winner, validation)


def _winners_job(job: Job, winner: Final, scene: Scene) -> Job:
    """The winner as the distill job that ``best.yaml`` makes: tested, reported, registered."""
    weights = job.teacher.identity.weights_digest
    run = Run(job.config.storage, name_run(winner.config, job.task, job.data, weights))
    found = replace(job, config=winner.config, run=run, embed=scene.embed)
    found.describe()
    return found


def _within_budget(config: Config, table: TrialTable) -> Config:
    """The config with the rest of the search's budget as the limiter's cap; it holds to the cent, whatever trials do."""
    budget = search_points.search_of(config).budget_usd
    if budget is None or not isinstance(config.teacher, OpenAITeacher):
        return config
    left = max(budget - table.spent_usd, 1e-9)
    caps = [one for one in (config.teacher.budget_usd, left) if one is not None]
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"budget_usd": min(caps)})})


def _for_trials(config: Config, planned: search_plan.SearchPlan) -> float | None:
    """Dollars for the trials: the budget without what the finals may cost."""
    budget = search_points.search_of(config).budget_usd
    return None if budget is None else budget - (planned.finals.cost_usd or 0.0)


def _deadline(config: Config, started: float) -> float | None:
    hours = search_points.search_of(config).budget_hours
    return None if hours is None else started + 3600 * hours


def _say_why(job: Job, table: TrialTable, ending: Ending) -> None:
    """Why trials ended before their number was full. Raises ``StageError`` where none is good for anything."""
    if ending.error is not None:
        raise StageError(f"search: {ending.reason}: {ending.error}")
    if ending.reason is not None:
        job.terminal.warn(f"no more trials: {ending.reason}")
    kinds: dict[str, list[str]] = {}
    for trial in table.of("failed"):
        error = str(trial.error)
        kinds.setdefault(gist(error), []).append(error)
    for errors in kinds.values():
        job.terminal.warn(f"{len(errors)} trial(s) failed: {errors[0]}")
    if not table.of("finished"):
        raise StageError(
            "search: no trial came to its last rung; the same command goes on"
            + ("" if ending.reason is None else f" ({ending.reason})")
        )
