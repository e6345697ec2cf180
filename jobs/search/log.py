"""What a search shows while it runs: a line a trial on the terminal, a child run a trial in MLflow."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from actors.search_workers import account_of
from jobs.run.job import Job
from jobs.runtime.progress import format_usd
from jobs.search.table import Trial, TrialTable
from jobs.search.tuning import Listener
from jobs.tracking.recorder import Recorder, status_of
from potstill.search import points as search_points

RUNS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "running": "KILLED"}


class SearchLog:
    """Hears of trials. Used as a context manager around them: its line on the terminal is live meanwhile."""

    def __init__(self, job: Job, table: TrialTable, workshop: Any, trials: int) -> None:
        self._job, self._table, self._workshop, self._trials = job, table, workshop, trials
        self._search = search_points.search_of(job.config)
        self._runs: dict[int, Recorder] = {}
        self._said: set[tuple[int, int]] = {(trial.number, len(trial.rungs)) for trial in table.trials}
        self._line_of = job.terminal.stage("trials")
        self._line: Any = None
        self.listener = Listener(self._began, self._rung, self._ended)

    def __enter__(self) -> SearchLog:
        self._line = self._line_of.__enter__()
        self._note()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in self._runs.values():
            run.finish("KILLED" if error is None else status_of(error), error)
        counts = {status: len(self._table.of(status)) for status in ("finished", "stopped", "failed")}
        words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        asked = sum(trial.used("requests_new") for trial in self._table.trials)
        paid = self._table.rungs_usd
        cost = f", {format_usd(paid)}" if paid else ""
        self._line.summary = f"{words or 'none finished'}; {asked:,.0f} requests newly asked{cost}"
        self._line_of.__exit__(kind, error, trace)

    def _began(self, trial: Trial) -> None:
        name = f"trial {trial.number}"
        run = self._runs[trial.number] = self._job.tracker.begin_stage(name, {"potstill.trial": trial.key})
        run.params(search_points.jsonable(trial.point))
        for number in range(len(trial.rungs)):
            self._metrics(trial, number)
        self._note()

    def _rung(self, trial: Trial) -> None:
        self._metrics(trial, len(trial.rungs) - 1)
        self._table.settle(account_of(self._workshop))
        for warning in self._warnings():
            self._job.terminal.warn(warning)
        self._note()

    def _ended(self, trial: Trial) -> None:
        self._table.settle(account_of(self._workshop))  # a rung that failed may have paid
        run = self._runs.pop(trial.number, None)
        if run is not None:
            run.tags({"potstill.status": trial.status, **({"potstill.error": trial.error} if trial.error else {})})
            run.finish(RUNS[trial.status])  # type: ignore[arg-type]
        if (trial.number, len(trial.rungs)) not in self._said and trial.status in ("finished", "stopped"):
            self._said.add((trial.number, len(trial.rungs)))
            self._job.terminal.say("  " + in_words(trial, self._search.objective))
        self._note()

    def _metrics(self, trial: Trial, number: int) -> None:
        rung = trial.rungs[number]
        values = {**rung.scores, **rung.usage, **{f"seconds/{name}": s for name, s in rung.seconds.items()}}
        self._runs[trial.number].metrics({**values, "texts_kept": rung.kept, "per_class": rung.per_class}, step=number)

    def _note(self) -> None:
        done = len(self._table.of("finished")) + len(self._table.of("stopped"))
        scored = [trial.scores for trial in self._table.of("finished")]
        best = max((scores["macro_f1"] for scores in scored), default=None)
        words = f"{done} of {self._trials}, {len(self._runs)} running"
        self._line.note(words if best is None else f"{words}, best {best:.3f}")

    def _warnings(self) -> list[str]:
        import ray

        try:
            found: list[str] = ray.get(self._workshop.warnings.remote(), timeout=5.0)
        except ray.exceptions.RayError:
            return []
        return found


def in_words(trial: Trial, objective: tuple[str, ...]) -> str:
    """One line: number, scores, how it ended, the point."""
    scores = ", ".join(f"{name} {show(name, trial.scores[name])}" for name in objective)
    last = trial.rungs[-1]
    how = "" if trial.status == "finished" else f" (stopped at {last.per_class} texts a class, {last.epochs} epochs)"
    return f"trial {trial.number:<3} {scores}{how}  {search_points.in_words(trial.point)}"


def show(metric: str, value: float) -> str:
    """A metric's value as the terminal has it."""
    if metric == "cost_usd":
        return format_usd(value)
    if metric in ("tokens", "training_s"):
        return f"{value:,.0f}"
    return f"{value:.3f}"
