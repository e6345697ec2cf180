"""The results of a search for the terminal, Markdown and MLflow.

potstill report RUN          # RUN: the search's name
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from jobs.report.content import markdown_table
from jobs.report.result import RunReport
from jobs.run.job import Job
from jobs.search.figures import importance_figure, importances, leading, parallel_figure, pareto_figure
from jobs.search.finals import Final
from jobs.search.log import show as format_metric
from jobs.search.table import Trial, TrialTable
from jobs.stages.finetune import DISTILLED
from potstill.config.search import SearchConfig
from potstill.search import ranking
from potstill.search.points import search_of
from potstill.search.validation import Validation

SHOWN = 10  # best trials on the terminal
USAGE = ("requests_new", "requests_alone", "requests_finals", "cost_usd_new")  # fields of the report


@dataclass(frozen=True, slots=True)
class SearchReport:
    """The content of ``search.json``. The winner's macro-F1: ``trial`` in its trial, ``fresh`` with fresh draws (mean over
    training seeds), ``test`` of the registered student with its ``interval``."""

    winner: int
    run: str
    trial: float
    fresh: float
    test: float
    interval: tuple[float, float]
    scored_on: str
    finals: tuple[dict[str, Any], ...]
    requests_new: float
    requests_alone: float
    requests_finals: float
    cost_usd_new: float


def finish(
    job: Job, own: Job, table: TrialTable, finals: Sequence[Final], winner: Final, validation: Validation
) -> SearchReport:
    """Write ``search.json`` and ``table/trials``, log the results and print the outcome."""
    tested = RunReport.from_json(own.run.read_json("report")).scores[DISTILLED].macro_f1
    report = SearchReport(
        winner=winner.trial.number,
        run=own.run.name,
        trial=winner.trial.scores["macro_f1"],
        fresh=winner.result.scores["macro_f1"],
        test=tested.value,
        interval=(tested.low, tested.high),
        scored_on=str(validation),
        finals=tuple(_final(final) for final in finals),
        requests_new=sum(t.used("requests_new") for t in table.trials),
        requests_alone=sum(t.rungs[-1].usage["requests"] for t in table.trials if t.rungs),
        requests_finals=sum(f.result.usage["requests_new"] for f in finals),
        cost_usd_new=table.rungs_usd + sum(f.result.usage["cost_usd_new"] for f in finals),
    )
    job.run.write_json("search", asdict(report))
    job.run.write_table("table", "trials", table.as_arrow())
    _log(job, table, report)
    _print_outcome(job, report)
    job.terminal.say(f"search    {job.run.path}")
    job.terminal.say(f"config    {job.run.path}/best.yaml    (potstill distill makes the same student from it)")
    _delete_students(job)
    return report


def print_trials(job: Job, table: TrialTable, finals: Sequence[Final]) -> None:
    """Print the best trials and the finals."""
    search = search_of(job.config)
    job.terminal.say()
    columns, rows = trial_rows(table.trials, search)
    job.terminal.table("best trials, on validation texts", columns, rows[:SHOWN])
    if len(search.objective) > 1:
        finished = table.of("finished")
        front = sorted(finished[i].number for i in ranking.front([t.scores for t in finished], search.objective))
        job.terminal.say(f"Pareto front of {', '.join(search.objective)}: trials {', '.join(map(str, front))}")
    job.terminal.say()
    job.terminal.table(
        "finals",
        ["trial", "macro-F1 of the trial", "with fresh draws", "by training seed"],
        [
            (
                str(final.trial.number),
                f"{final.trial.scores['macro_f1']:.3f}",
                f"{final.result.scores['macro_f1']:.3f}",
                ", ".join(f"{value:.3f}" for value in final.result.by_seed),
            )
            for final in finals
        ],
    )


def trial_rows(trials: Sequence[Trial], search: SearchConfig) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows of the trials with a score: finished trials first, then by score."""
    scored = [trial for trial in trials if trial.rungs]
    metric = leading(search.objective)
    metrics = [*search.objective, *(["tokens"] if "tokens" not in search.objective else [])]
    scored.sort(key=lambda t: (t.status != "finished", -len(t.rungs), -ranking.merit(t.scores, metric)))
    columns = ["trial", *(name.split(".", 1)[1] for name in search.space), *metrics, "new requests", "state"]
    rows = [
        (
            str(trial.number),
            *(_value(value) for value in trial.point.values()),
            *(format_metric(name, trial.scores[name]) for name in metrics),
            f"{trial.used('requests_new'):,.0f}",
            trial.status if trial.status == "finished" else f"{trial.status} at {trial.rungs[-1].per_class}",
        )
        for trial in scored
    ]
    return columns, rows


def agreement(report: SearchReport) -> str:
    """A sentence on the difference between validation and test scores."""
    gap = report.fresh - report.test
    low, high = report.interval
    inside = "inside" if low <= report.fresh <= high else "outside"
    return (
        f"winner: trial {report.winner}, macro-F1 {report.trial:.3f} in its trial, {report.fresh:.3f} with fresh draws "
        f"({report.fresh - report.trial:+.3f}), {report.test:.3f} [{low:.3f}, {high:.3f}] on the test texts. Validation is "
        f"{abs(gap):.3f} {'above' if gap >= 0 else 'below'} test, {inside} its 95 % interval"
    )


def as_markdown(job: Job, table: TrialTable, report: SearchReport) -> str:
    """The report as Markdown, for MLflow."""
    columns, rows = trial_rows(table.trials, search_of(job.config))
    return (
        f"# {job.task.name}: search {job.run.name}\n\nTrials are scored on {report.scored_on}. {agreement(report)}.\n\n"
        f"{saving(report)}\n\n## Trials\n\n{markdown_table(columns, rows)}\n\nThe winner's own run: {report.run}.\n"
    )


def saving(report: SearchReport) -> str:
    """A sentence on the requests that sharing saved. A stopped trial counts with the requests up to its stop."""
    share = f" ({report.requests_new / report.requests_alone:.0%})" if report.requests_alone else ""
    return (
        f"the trials sent {report.requests_new:,.0f} requests{share} of the {report.requests_alone:,.0f} that they would have "
        f"sent without sharing; the finals sent {report.requests_finals:,.0f} more"
    )


def show(job: Job, table: TrialTable) -> None:
    """Print a search from its folder."""
    columns, rows = trial_rows(table.trials, search_of(job.config))
    job.terminal.table(f"search {job.run.name}: {len(table)} trials", columns, rows)
    data = job.run.find_json("search")
    if data is None:
        job.terminal.say("not finished yet; `potstill search` with the same config resumes it")
        return
    report = SearchReport(**{**data, "interval": tuple(data["interval"]), "finals": tuple(data["finals"])})
    _print_outcome(job, report)
    job.terminal.say(f"winner's own run: potstill report {report.run}")


def _print_outcome(job: Job, report: SearchReport) -> None:
    for line in ("", agreement(report), saving(report)):
        job.terminal.say(line)


def _log(job: Job, table: TrialTable, report: SearchReport) -> None:
    search, tracker = search_of(job.config), job.tracker
    scored = [trial for trial in table.trials if trial.rungs]
    tracker.metrics(
        {
            "trials": len(table),
            **{f"trials_{status}": len(table.of(status)) for status in ("finished", "stopped", "failed")},
            "validation_macro_f1_trial": report.trial,
            "validation_macro_f1_fresh": report.fresh,
            "validation_minus_test": report.fresh - report.test,
            **{name: getattr(report, name) for name in USAGE},
        }
    )
    tracker.tags({"potstill.winner": str(report.winner), "potstill.winner_run": report.run})
    tracker.table("trials", table.as_arrow())
    with fsspec.open(f"{job.run.path}/best.yaml", "r") as file:
        tracker.text("best.yaml", file.read())
    for name, figure in figures(scored, search).items():
        tracker.figure(name, figure)
        with job.run.create(f"figures/{name}.png") as file:
            figure.savefig(file, dpi=120, format="png")
    tracker.text("search.md", as_markdown(job, table, report))


def figures(scored: Sequence[Trial], search: SearchConfig) -> dict[str, Any]:
    """The charts of the scored trials by name."""
    found = {
        "parallel_coordinates": parallel_figure(scored, search),
        "pareto": pareto_figure(scored, search),
    }
    if shares := importances(scored, search):
        found["importance"] = importance_figure(shares, sum(trial.status == "finished" for trial in scored))
    return found


def _final(final: Final) -> dict[str, Any]:
    return {
        "trial": final.trial.number,
        "found": final.trial.scores["macro_f1"],
        "scores": final.result.scores,
        "by_seed": list(final.result.by_seed),
        "deviation": final.deviation,
    }


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _delete_students(job: Job) -> None:
    """Delete the trials' students (90 MB each); they are scored, and those of the finals are in another folder."""
    filesystem, root = url_to_fs(f"{job.run.path}/students")
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)
