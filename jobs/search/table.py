"""The trials of a search, their rungs and results. Kept in the search's folder for the next run.

``trials.json`` is rewritten at every change. Rung results are stored separately (``jobs/search/trial.py``), so a driver
that dies loses at most the running rungs. ``spent.json`` holds the dollars that all runs of the search spent by the
limiter's account, including finals, held-back texts and failed rungs, which no trial counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from jobs.run.folder import Run
from jobs.search.trial import RungResult
from potstill.limits.pacer import PacerState
from potstill.search.points import Point, digest, from_json, jsonable

Status = Literal["running", "finished", "stopped", "failed"]
TABLE = "trials"
SPENT = "spent"


@dataclass(slots=True)
class Trial:
    """One trial. ``finished``: reached the last rung; ``stopped``: lost to other trials at an earlier one."""

    number: int
    point: Point
    status: Status = "running"
    rungs: list[RungResult] = field(default_factory=list)
    error: str | None = None

    @property
    def key(self) -> str:
        """The digest of the trial's point."""
        return digest(self.point)

    @property
    def scores(self) -> dict[str, float]:
        """Scores of the last rung it reached."""
        return self.rungs[-1].scores

    def used(self, name: str) -> float:
        """Usage of one kind, summed over rungs."""
        return sum(rung.usage[name] for rung in self.rungs)


class TrialTable:
    """All trials in the order in which they began."""

    def __init__(self, run: Run, trials: Sequence[Trial] = (), before_usd: float = 0.0) -> None:
        """``before_usd``: spent by earlier runs."""
        self._run = run
        self._by_key = {trial.key: trial for trial in trials}
        self._before_usd = max(before_usd, self.rungs_usd)  # a search of an earlier version has no account
        self._now_usd = 0.0
        self._kept_usd = before_usd

    @classmethod
    def load(cls, run: Run) -> TrialTable:
        """The table of the search's earlier runs; empty if there were none."""
        rows, spent = run.find_json(TABLE) or [], run.find_json(SPENT) or {"usd": 0.0}
        trials = [
            Trial(
                **row | {"point": from_json(row["point"]), "rungs": [RungResult.from_json(one) for one in row["rungs"]]}
            )
            for row in rows
        ]
        return cls(run, trials, spent["usd"])

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def trials(self) -> list[Trial]:
        """In the order of their numbers."""
        return list(self._by_key.values())

    def of(self, status: Status) -> list[Trial]:
        """Trials of one status."""
        return [trial for trial in self.trials if trial.status == status]

    @property
    def rungs_usd(self) -> float:
        """Dollars that the trials' rungs newly paid."""
        return sum(trial.used("cost_usd_new") for trial in self.trials)

    @property
    def spent_usd(self) -> float:
        """Dollars that all runs of the search have spent so far, for any purpose."""
        return max(self._before_usd + self._now_usd, self.rungs_usd)

    def settle(self, account: PacerState | None) -> None:
        """Store this run's spending, if known. For the next run, reserved dollars count as spent."""
        if account is None:
            return
        self._now_usd = account.spent_usd
        usd = self._before_usd + account.spent_usd + account.reserved_usd
        if usd != self._kept_usd:
            self._kept_usd = usd
            self._run.write_json(SPENT, {"usd": usd})

    def begin(self, point: Point) -> Trial:
        """The trial at ``point``, created if missing."""
        key = digest(point)
        if key not in self._by_key:
            self._by_key[key] = Trial(len(self._by_key) + 1, dict(point))
            self.save()
        return self._by_key[key]

    def add(self, trial: Trial, number: int, result: RungResult) -> bool:
        """Record a rung (from 0); True if it is new. Its cost counts only for the first trial that reached it."""
        if number < len(trial.rungs):
            return False
        met = any(rung.key == result.key for one in self.trials for rung in one.rungs)
        trial.rungs.append(result.found_again() if met else result)
        self.save()
        return True

    def end(self, trial: Trial, status: Status, error: str | None = None) -> None:
        """Set a trial's status."""
        if (trial.status, trial.error) != (status, error):
            trial.status, trial.error = status, error
            self.save()

    def save(self) -> None:
        """Write ``trials.json``."""
        rows = [{**asdict(trial), "point": jsonable(trial.point)} for trial in self.trials]
        self._run.write_json(TABLE, rows)

    def as_arrow(self) -> pa.Table:
        """One row per trial: its point (``point.<field>``), status, scores of its last rung, usage and seconds."""
        return pa.Table.from_pylist([_row(trial) for trial in self.trials])


def _row(trial: Trial) -> dict[str, Any]:
    point = {
        f"point.{name}": str(list(value)) if isinstance(value, tuple) else value for name, value in trial.point.items()
    }
    last = trial.rungs[-1] if trial.rungs else None
    scores = ("macro_f1", "accuracy", "cost_usd", "tokens", "training_s")
    return {
        "trial": trial.number,
        **point,
        "status": trial.status,
        "rungs": len(trial.rungs),
        "per_class": last.per_class if last else None,
        "epochs": last.epochs if last else None,
        **{name: last.scores[name] if last else None for name in scores},
        "low": last.low if last else None,
        "high": last.high if last else None,
        "kept": last.kept if last else None,
        "requests_new": trial.used("requests_new"),
        "requests_reused": last.usage["requests"] - trial.used("requests_new") if last else 0.0,
        "tokens_new": trial.used("tokens_new"),
        "cost_usd_new": trial.used("cost_usd_new"),
        "seconds": sum(sum(rung.seconds.values()) for rung in trial.rungs),
        "error": trial.error,
    }
