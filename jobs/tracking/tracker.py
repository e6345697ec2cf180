"""Tracking: a job's run in MLflow, with a child run per stage. Tracking never stops the job.

    with open_tracker(config, command="distill", task_name="trec6", run_dir=run_dir) as tracker:
        with tracker.stage("generate") as stage:
            stage.metrics({"requests_new": 120, "prompt_tokens": 40_213, "cost_usd": 0.02})
            stage.table("example", table)

With ``tracking.uri: none`` a job gets a ``NullTracker`` with the same methods. A server that is down *before* the job is
an error (``problems``). If it goes down *during* the job, entries wait in the run's folder and are sent when the server is
back, at the latest by the next run or by ``python -m jobs.tracking.tracker RUN_DIR``. The cost: the first call after the
server stops answering waits up to 10 s; later calls wait only when the server is tried again (after 5, 10, 20, ... 300 s).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jobs.runtime.paths import absolute_uri
from jobs.tracking.outbox import Entry, Outbox, Session, describe, replay
from jobs.tracking.recorder import Recorder, Status, status_of
from jobs.tracking.server import (
    OFF,
    REQUEST_TIMEOUT_S,
    RefusedError,
    TrackingError,
    mlflow_errors,
    one_line,
    open_experiment,
    redact,
    short_requests,
)
from potstill import __version__
from potstill.config import Config
from potstill.errors import InputError, Problem

if TYPE_CHECKING:
    from jobs.tracking.registry import StudentVersion

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0


class Tracker(Recorder):
    """The job's run. A context manager: leaving it ends the run with the right status."""

    def __init__(self, session: Session, run_dir: str | Path, warn: Callable[[str], None]) -> None:
        super().__init__(self._take, uuid.uuid4().hex)
        self._session = session
        self._run_dir = run_dir
        self._warn = warn
        self._outbox = Outbox.new(run_dir, session)
        self._refused: list[str] = []
        self._lost = 0
        self._pause_s = FIRST_PAUSE_S
        self._next_try = 0.0
        self._hurried = self._closed = False
        self._lock = threading.RLock()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the job's run; ``None`` without tracking."""
        return self._session.runs.get(self._handle)

    @property
    def where(self) -> str:
        """The run's page, or the command that opens the store."""
        uri = redact(self._session.uri)
        if uri.startswith(("http://", "https://")):
            return f"{uri.rstrip('/')}/#/experiments/{self._session.experiment_id}/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {uri}"

    def begin(self, name: str, tags: Mapping[str, str]) -> None:
        """Start the job's run. Raises ``TrackingError`` or ``RefusedError``; nothing is kept for later."""
        self._session.send(self.start_entry(name, tags))

    def register(self, register: Callable[..., StudentVersion], **student: Any) -> StudentVersion | None:
        """Call ``register(tracking_uri=, run_id=, **student)``, which runs ``register_student`` where transformers is available.

        ``None`` and a warning on an outage; the next run of the same job then registers the student.
        """
        try:
            return register(tracking_uri=self._session.uri, run_id=self.run_id, **student)
        except TrackingError as error:
            self._warn(f"the student was not registered: {one_line(error)}; run the same command again to register it")
            return None

    def close(self, status: Status = "FINISHED", error: BaseException | None = None) -> str | None:
        """End the job's run. Warns about entries not logged and returns that warning. May be called twice."""
        with self._lock:
            if self._closed:
                return None
            self._next_try = 0.0
            self.finish(status, error)
            self._closed = True
            self._outbox.release()
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
        if self._outbox:
            parts.append(
                f"MLflow at {redact(self._session.uri)} could not be reached: "
                f"{len(self._outbox)} entries are kept in {self._outbox.folder}; "
                f"the next run of this job sends them, or: python -m jobs.tracking.tracker {self._run_dir}"
            )
        if self._lost:
            parts.append(f"{self._lost} entries are lost: neither MLflow nor the run's folder could store them")
        if self._refused:
            more = f" (and {len(self._refused) - 1} more)" if len(self._refused) > 1 else ""
            parts.append(f"MLflow refused {self._refused[0]}{more}")
        return "; ".join(parts) or None

    def _take(self, entry: Entry) -> None:
        with self._lock:
            if entry.kind == "end" and entry.values["status"] == "KILLED":
                # An interrupted job ends within seconds even if the server does not answer.
                self._hurried = True
            try:
                if self._outbox and (time.monotonic() < self._next_try or self._hurried):
                    self._keep(entry)
                    return
                self._catch_up()
                with short_requests(1 if self._hurried else REQUEST_TIMEOUT_S):
                    self._session.send(entry)
            except RefusedError as error:
                self._refused.append(describe(entry, error))
            except TrackingError as error:
                self._go_down(error)
                self._keep(entry)

    def _catch_up(self) -> None:
        if not self._outbox:
            return
        waiting = len(self._outbox)
        for entry, error in self._outbox.drain(lambda entry: self._session.send(entry, again=True)):
            self._refused.append(describe(entry, error))
        self._pause_s = FIRST_PAUSE_S
        self._warn(f"MLflow answers again; {waiting} waiting entries are logged")

    def _go_down(self, error: TrackingError) -> None:
        if not self._outbox:
            self._warn(f"MLflow can't be reached ({one_line(error)}); the job continues, its log waits in its folder")
        self._next_try = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _keep(self, entry: Entry) -> None:
        try:
            self._outbox.append(entry)
        except OSError as error:
            if not self._lost:
                self._warn(f"entries for MLflow can't be kept in {self._outbox.folder} either: {one_line(error)}")
            self._lost += 1


class NullTracker(Tracker):
    """Does nothing, for ``tracking.uri: none``."""

    def __init__(self) -> None:
        super().__init__(Session("", ""), ".", lambda message: None)

    @property
    def where(self) -> str:
        """No place."""
        return "not tracked (tracking.uri: none)"

    def register(self, register: Callable[..., StudentVersion], **student: Any) -> StudentVersion | None:
        """Registers nothing."""
        return None

    def _take(self, entry: Entry) -> None:
        pass

    def _file(self, name: str, folder: str | None, write: Callable[[Path], object]) -> None:
        pass  # draws no charts


def open_tracker(
    config: Config,
    *,
    command: str,
    task_name: str,
    run_dir: str | Path,
    run_digest: str,
    warn: Callable[[str], None],
    content: Mapping[str, Any] | None = None,
) -> Tracker:
    """Start a job's run: experiment, parent run, config (or ``content``, of a study) as params and as ``config.yaml``.

    ``run_digest`` names the result; ``warn`` shows a line to the user. Sends the entries that earlier runs in ``run_dir``
    left. Raises ``InputError`` for an unreachable server, so call it before paid work. Takes 2.5 s to import MLflow, 3 s once for a new SQLite file, 0.3 s otherwise.
    """
    import yaml

    if config.tracking.uri == OFF:
        return NullTracker()
    # A run id in the environment (from an outer `mlflow run` or a notebook) would capture everything logged.
    os.environ.pop("MLFLOW_RUN_ID", None)
    _quieten()
    uri = absolute_uri(config.tracking.uri)
    session = Session(uri, "")
    tracker = Tracker(session, run_dir, warn)
    try:
        with short_requests(), mlflow_errors():
            session.experiment_id = open_experiment(
                session.client, config.tracking, config.tracking.experiment or task_name
            )
        tracker.begin(*_parent_run(run_digest, command, task_name))
    except (TrackingError, RefusedError) as error:
        where = f"tracking.uri = {redact(config.tracking.uri)!r}"
        raise InputError([Problem(where, f"can't be used: {error}")]) from error
    left = replay(run_dir, uri)
    if left.sent:
        warn(f"logged {left.sent} entries of an earlier run")
    if left.waiting:
        warn(f"{left.waiting} entries of an earlier run wait in {run_dir} for another MLflow server")
    if left.refused:
        warn(f"MLflow refused {len(left.refused)} entries of an earlier run, the first: {left.refused[0]}")
    content = dict(content) if content is not None else config.model_dump(mode="json")
    tracker.params({"command": command, **content})
    tracker.text("config.yaml", redact(yaml.safe_dump(content, sort_keys=False, allow_unicode=True)))
    return tracker


def _parent_run(run_digest: str, command: str, task_name: str) -> tuple[str, dict[str, str]]:
    """Name and tags of the job's run."""
    from mlflow.utils.git_utils import get_git_commit

    tags = {
        "potstill.command": command,
        "potstill.task": task_name,
        "potstill.run_digest": run_digest,
        "potstill.version": __version__,
        "mlflow.source.name": f"potstill {command}",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown",
    }
    root = Path(__file__).resolve().parents[2]
    # An installed or submitted copy has no repository of its own; one further up is another project's.
    if (root / ".git").exists() and (commit := get_git_commit(str(root))):
        tags["mlflow.source.git.commit"] = commit
    return f"{command} {task_name} {run_digest[:8]}", tags


def _quieten() -> None:
    """Silence MLflow's migrations and retries on the terminal."""
    import logging

    import mlflow  # noqa: F401  (its import sets the level)

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m jobs.tracking.tracker RUN_DIR")
    outcome = replay(sys.argv[1])
    print(f"{outcome.sent} entries logged, {outcome.waiting} still waiting, {len(outcome.refused)} refused")
    sys.exit(1 if outcome.waiting else 0)
