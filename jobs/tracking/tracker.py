"""Tracking: a job's run in MLflow with a child run a stage, through one object that never stops the job.

    with open_tracker(config, command="distill", task_name="trec6", run_dir=run_dir) as tracker:
        with tracker.stage("generate") as stage:
            stage.metrics({"requests_new": 120, "prompt_tokens": 40_213, "cost_usd": 0.02})
            stage.table("example", table)

Jobs have no ``if tracking:``; with ``tracking.uri: none`` they get a ``NullTracker`` with the same methods.
A server that is down *before* the job is an error (``problems``). One that goes down *during* it is not:
what can't be logged waits in the run's folder and is sent when the server is back, at the latest by the
next run or by ``python -m jobs.tracking.tracker RUN_DIR``. The price: a call waits up to 10 s when the server first
falls silent, then none does before the next try (5 s later, then 10, 20, ... up to 300).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jobs.tracking.outbox import Entry, Kind, Outbox, Replay, Sender, Session, describe, replay
from jobs.tracking.recorder import Recorder, Status, status_of
from jobs.tracking.server import (
    OFF,
    REQUEST_TIMEOUT_S,
    RefusedError,
    TrackingError,
    absolute_uri,
    mlflow_errors,
    one_line,
    open_experiment,
    problems,
    redact,
    short_requests,
)
from jobs.tracking.server import client as connect
from potstill import __version__
from potstill.config import Config
from potstill.errors import InputError, Problem

if TYPE_CHECKING:
    from jobs.tracking.registry import StudentVersion

__all__ = ["NullTracker", "Recorder", "Replay", "Tracker", "TrackingError", "open_tracker", "problems", "replay"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0


class Tracker(Recorder):
    """The job's run. Used as a context manager: leaving it ends the run with the right status."""

    def __init__(self, session: Session, run_dir: str | Path, warn: Callable[[str], None]) -> None:
        super().__init__(self._take, uuid.uuid4().hex)
        self._session = session
        self._run_dir = run_dir
        self._warn = warn
        self._sender = Sender(session)
        self._spool = Outbox.new(run_dir, session)
        self._refused: list[str] = []
        self._lost = 0
        self._pause_s = FIRST_PAUSE_S
        self._next_try = 0.0
        self._hurried = self._closed = False
        self._lock = threading.RLock()

    @property
    def uri(self) -> str | None:
        """The tracking URI, absolute; ``None`` when nothing is tracked."""
        return self._session.uri

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the job's run; ``None`` when nothing is tracked."""
        return self._session.runs.get(self._handle)

    @property
    def where(self) -> str:
        """Where a person finds the run: its page, or the command that opens the store."""
        uri = redact(self._session.uri)
        if uri.startswith(("http://", "https://")):
            return f"{uri.rstrip('/')}/#/experiments/{self._session.experiment_id}/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {uri}"

    def begin(self, entry: Entry) -> None:
        """Start the job's run itself. Raises ``TrackingError`` or ``RefusedError``: nothing is kept for later yet."""
        self._sender.send(entry)

    def register(self, register: Callable[..., StudentVersion], **student: Any) -> StudentVersion | None:
        """``register(tracking_uri=, run_id=, **student)``, where ``register`` runs ``jobs.tracking.registry.register_student``.

        It should do so in a Ray task, since that needs transformers. An outage gives ``None`` and a warning: the
        next run of the same job registers the student, as its run digest has no version yet.
        """
        try:
            return register(tracking_uri=self.uri, run_id=self.run_id, **student)
        except TrackingError as error:
            self._warn(f"the student was not registered: {one_line(error)}; run the same command again to register it")
            return None

    def close(self, status: Status = "FINISHED", error: BaseException | None = None) -> str | None:
        """End the job's run. Warns of, and returns, what was not logged and how to log it. May be called twice."""
        with self._lock:
            if self._closed:
                return None
            self._next_try = 0.0
            self._end(status, error)
            self._closed = True
            self._spool.release()
            message = self._account()
        if message:
            self._warn(message)
        return message

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("FINISHED" if error is None else status_of(error), error)

    def _account(self) -> str | None:
        parts = []
        if self._spool:
            parts.append(
                f"MLflow at {redact(self._session.uri)} could not be reached: "
                f"{len(self._spool)} entries are kept in {self._spool.folder}; "
                f"the next run of this job sends them, or: python -m jobs.tracking.tracker {self._run_dir}"
            )
        if self._lost:
            parts.append(f"{self._lost} entries are lost: neither MLflow nor the run's folder took them")
        if self._refused:
            more = f" (and {len(self._refused) - 1} more)" if len(self._refused) > 1 else ""
            parts.append(f"MLflow refused {self._refused[0]}{more}")
        return "; ".join(parts) or None

    def _take(self, entry: Entry) -> None:
        with self._lock:
            if entry.kind == "end" and entry.values["status"] == "KILLED":
                # A job that was interrupted is to end within seconds, however silent the server.
                self._hurried = True
            try:
                if self._spool and (time.monotonic() < self._next_try or self._hurried):
                    self._keep(entry)
                    return
                self._catch_up()
                with short_requests(1 if self._hurried else REQUEST_TIMEOUT_S):
                    self._sender.send(entry)
            except RefusedError as error:
                self._refused.append(describe(entry, error))
            except TrackingError as error:
                self._go_down(error)
                self._keep(entry)

    def _catch_up(self) -> None:
        if not self._spool:
            return
        waiting = len(self._spool)
        for entry, error in self._spool.drain(lambda entry: self._sender.send(entry, again=True)):
            self._refused.append(describe(entry, error))
        self._pause_s = FIRST_PAUSE_S
        self._warn(f"MLflow answers again; {waiting} entries that waited are logged")

    def _go_down(self, error: TrackingError) -> None:
        if not self._spool:
            self._warn(f"MLflow can't be reached ({one_line(error)}); the job goes on, its log waits in its folder")
        self._next_try = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _keep(self, entry: Entry) -> None:
        try:
            self._spool.append(entry)
        except OSError as error:
            if not self._lost:
                self._warn(f"what MLflow did not take can't be kept in {self._spool.folder} either: {one_line(error)}")
            self._lost += 1


class NullTracker(Tracker):
    """Takes everything and keeps nothing, for ``tracking.uri: none``."""

    def __init__(self) -> None:
        super().__init__(Session("", ""), ".", lambda message: None)

    @property
    def uri(self) -> str | None:
        """Nothing is tracked."""
        return None

    @property
    def where(self) -> str:
        """Nothing to find."""
        return "not tracked (tracking.uri: none)"

    def register(self, register: Callable[..., StudentVersion], **student: Any) -> StudentVersion | None:
        """Registers nothing."""
        return None

    @contextmanager
    def stage(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Recorder]:
        """Nothing, all the way down."""
        yield self

    def begin_stage(self, name: str, tags: Mapping[str, str] | None = None) -> Recorder:
        """Nothing, all the way down."""
        return self

    def finish(self, status: Status, error: BaseException | None = None) -> None:
        """Nothing has begun."""

    def _put(self, kind: Kind, **values: Any) -> None:
        pass

    def _file(self, name: str, folder: str | None, write: Callable[[Path], object]) -> None:
        pass


def open_tracker(
    config: Config,
    *,
    command: str,
    task_name: str,
    run_dir: str | Path,
    run_digest: str | None = None,
    warn: Callable[[str], None] | None = None,
    content: Mapping[str, Any] | None = None,
) -> Tracker:
    """Start a job's run: experiment, parent run, config (or ``content``, of a study) as params and as ``config.yaml``.

    ``run_digest`` (default: the config's) says which result the run is of. First sends what earlier runs in
    ``run_dir`` left. ``warn`` shows a line to the user (default: standard error). Call it before anything is
    paid for: an unreachable server raises ``InputError`` here. Costs 2.5 s for the import of MLflow, 3 s once
    for a new SQLite file, 0.3 s else.
    """
    import yaml

    if config.tracking.uri == OFF:
        return NullTracker()
    # A run id in the environment (from an outer `mlflow run` or a notebook) would capture everything logged.
    os.environ.pop("MLFLOW_RUN_ID", None)
    warn = warn or _to_stderr
    _quieten()
    uri = absolute_uri(config.tracking.uri)
    session = Session(uri, "")
    tracker = Tracker(session, run_dir, warn)
    try:
        with short_requests(), mlflow_errors():
            session.experiment_id = open_experiment(
                connect(uri), config.tracking, config.tracking.experiment or task_name
            )
        tracker.begin(tracker.start_entry(*_parent_run(run_digest or config.digest(), command, task_name)))
    except (TrackingError, RefusedError) as error:
        where = f"tracking.uri = {redact(config.tracking.uri)!r}"
        raise InputError([Problem(where, f"can't be used: {error}")]) from error
    left = replay(run_dir, uri)
    if left.sent:
        warn(f"{left.sent} entries of an earlier run that MLflow had missed are logged")
    if left.waiting:
        warn(f"{left.waiting} entries of an earlier run wait in {run_dir} for their own MLflow server")
    if left.refused:
        warn(f"MLflow refused {len(left.refused)} entries of an earlier run, the first: {left.refused[0]}")
    content = dict(content) if content is not None else config.model_dump(mode="json")
    tracker.params({"command": command, **content})
    tracker.text("config.yaml", redact(yaml.safe_dump(content, sort_keys=False, allow_unicode=True)))
    return tracker


def _parent_run(run_digest: str, command: str, task_name: str) -> tuple[str, dict[str, str]]:
    """Name and tags of the job's run."""
    tags = {
        "potstill.command": command,
        "potstill.task": task_name,
        "potstill.run_digest": run_digest,
        "potstill.version": __version__,
        "mlflow.source.name": f"potstill {command}",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown",
    }
    commit = _git_commit()
    if commit:
        tags["mlflow.source.git.commit"] = commit
    return f"{command} {task_name} {run_digest[:8]}", tags


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed or submitted copy; a repository further up is somebody else's
        return None
    command = ["git", "-C", str(root), "rev-parse", "--verify", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _quieten() -> None:
    """MLflow's migrations and retries talk to the terminal; the job says what matters itself."""
    import logging

    import mlflow  # noqa: F401  (its import sets the level)

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _to_stderr(message: str) -> None:
    print(f"tracking: {message}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m jobs.tracking.tracker RUN_DIR")
    outcome = replay(sys.argv[1])
    print(f"{outcome.sent} entries logged, {outcome.waiting} still waiting, {len(outcome.refused)} refused")
    sys.exit(1 if outcome.waiting else 0)
