"""The progress of a search: a terminal line per trial, an MLflow child run per trial."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from actors.search_workers import account_of
from jobs.run.job import Job
from jobs.runtime.progress import format_usd
from jobs.search.table import Trial, TrialTable
from jobs.search.tuning import Listener
from jobs.tracking.recorder import Recorder, Status, status_of
from potstill.search import points
from potstill.search.points import search_of

RUNS: dict[str, Status] = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "running": "KILLED"}


class SearchLog:
    """Listens to the trials. A context manager: its terminal line is live inside the block."""

    def __init__(self, job: Job, table: TrialTable, search_workers: Any, trials: int) -> None:
        self._job, self._table, self._search_workers, self._trials = job, table, search_workers, trials
        self._runs: dict[int, Recorder] = {}
        self._printed: set[tuple[int, int]] = {(trial.number, len(trial.rungs)) for trial in table.trials}
        self._stage = job.terminal.stage("trials")
        self._line: Any = None
        self.listener = Listener(self._began, self._rung, self._ended)

    def __enter__(self) -> SearchLog:
        self._line = self._stage.__enter__()
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
        cost = f", {format_usd(self._table.rungs_usd)}" if self._table.rungs_usd else ""
        self._line.summary = f"{words or 'none finished'}; {asked:,.0f} new requests{cost}"
        self._stage.__exit__(kind, error, trace)

    def _began(self, trial: Trial) -> None:
        name = f"trial {trial.number}"
        run = self._runs[trial.number] = self._job.tracker.begin_stage(name, {"potstill.trial": trial.key})
        run.params(points.jsonable(trial.point))
        for number in range(len(trial.rungs)):
            self._metrics(trial, number)
        self._note()

    def _rung(self, trial: Trial) -> None:
        self._metrics(trial, len(trial.rungs) - 1)
        self._table.settle(account_of(self._search_workers))
        for warning in self._warnings():
            self._job.terminal.warn(warning)
        self._note()

    def _ended(self, trial: Trial) -> None:
        self._table.settle(account_of(self._search_workers))  # a failed rung may have paid too
        run = self._runs.pop(trial.number, None)
        if run is not None:
            run.tags({"potstill.status": trial.status, **({"potstill.error": trial.error} if trial.error else {})})
            run.finish(RUNS[trial.status])
        if (trial.number, len(trial.rungs)) not in self._printed and trial.status in ("finished", "stopped"):
            self._printed.add((trial.number, len(trial.rungs)))
            self._job.terminal.say("  " + in_words(trial, search_of(self._job.config).objective))
        self._note()

    def _metrics(self, trial: Trial, number: int) -> None:
        rung = trial.rungs[number]
        values = {**rung.scores, **rung.usage, **{f"seconds/{name}": s for name, s in rung.seconds.items()}}
        self._runs[trial.number].metrics({**values, "texts_kept": rung.kept, "per_class": rung.per_class}, step=number)

    def _note(self) -> None:
        finished = self._table.of("finished")
        done = len(finished) + len(self._table.of("stopped"))
        best = max((trial.scores["macro_f1"] for trial in finished), default=None)
        words = f"{done} of {self._trials}, {len(self._runs)} running"
        self._line.note(words if best is None else f"{words}, best {best:.3f}")

    def _warnings(self) -> list[str]:
        import ray

        try:
            found: list[str] = ray.get(self._search_workers.warnings.remote(), timeout=5.0)
        except ray.exceptions.RayError:
            return []
        return found


def in_words(trial: Trial, objective: tuple[str, ...]) -> str:
    """One line: number, scores, where it stopped, point."""
    scores = ", ".join(f"{name} {show(name, trial.scores[name])}" for name in objective)
    last = trial.rungs[-1]
    how = "" if trial.status == "finished" else f" (stopped at {last.per_class} texts a class, {last.epochs} epochs)"
    return f"trial {trial.number:<3} {scores}{how}  {points.in_words(trial.point)}"


def show(metric: str, value: float) -> str:
    """A metric's value, formatted for the terminal."""
    if metric == "cost_usd":
        return format_usd(value)
    return f"{value:,.0f}" if metric in ("tokens", "training_s") else f"{value:.3f}"
