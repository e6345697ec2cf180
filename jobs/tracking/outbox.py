"""Entries to log to MLflow, and the outbox that keeps them on disk while MLflow can't be reached.

    python -m jobs.tracking.tracker RUN_DIR        # send the entries of earlier runs

An entry is small (artifacts are files beside it) and names its run by our own handle, so it can be written before MLflow
knows the run. Entries keep their order and their times. A session folder holds ``entries.jsonl``, ``artifacts/`` and
``session.json`` (URI, experiment, handle -> run id, number of entries sent). It is made at the first failure and deleted
when all is sent. Entries sent but not yet counted when a process dies are sent again; MLflow stores the same values twice.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from jobs.runtime.paths import absolute_uri
from jobs.tracking.server import (
    RefusedError,
    TrackingError,
    client,
    mlflow_errors,
    redact,
    short_requests,
)
from potstill.config import home
from potstill.draws import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

Kind = Literal["start", "params", "metrics", "tags", "artifact", "dataset", "end"]
HANDLE_TAG = "potstill.handle"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to log: its kind, the handle of its run, and the JSON values that the kind needs."""

    kind: Kind
    run: str
    values: dict[str, Any]


@dataclass
class Session:
    """One job's connection to MLflow. ``runs``: MLflow's run ids by handle."""

    uri: str
    experiment_id: str
    runs: dict[str, str] = field(default_factory=dict)

    @cached_property
    def client(self) -> MlflowClient:
        """The client, made when first needed: opening a database can fail like any other call."""
        return client(self.uri)

    def send(self, entry: Entry, again: bool = False) -> None:
        """Log ``entry``. Raises ``TrackingError`` (outage) or ``RefusedError``.

        ``again``: it was tried before and may have arrived without an answer.
        """
        with short_requests(), mlflow_errors():
            if entry.kind == "start":
                self._start(entry, again)
                return
            run_id = self.runs.get(entry.run)
            if run_id is None:
                raise RefusedError("its run could not be made")
            self._log(entry.kind, run_id, entry.values)

    def _start(self, entry: Entry, again: bool) -> None:
        if again:
            known = self.client.search_runs([self.experiment_id], f"tags.`{HANDLE_TAG}` = '{entry.run}'", max_results=1)
            if known:
                self.runs[entry.run] = known[0].info.run_id
                return
        tags = {**entry.values["tags"], HANDLE_TAG: entry.run}
        parent = entry.values.get("parent")
        if parent is not None:
            if parent not in self.runs:
                raise RefusedError("its parent run could not be made")
            tags["mlflow.parentRunId"] = self.runs[parent]
        run = self.client.create_run(
            self.experiment_id, start_time=entry.values["time_ms"], tags=tags, run_name=entry.values["name"]
        )
        self.runs[entry.run] = run.info.run_id

    def _log(self, kind: Kind, run_id: str, values: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        if kind == "params":
            self.client.log_batch(run_id, params=[Param(key, value) for key, value in values["params"]])
        elif kind == "tags":
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values["tags"]])
        elif kind == "metrics":
            self.client.log_batch(
                run_id, metrics=[Metric(key, value, time_ms, step) for key, value, time_ms, step in values["metrics"]]
            )
        elif kind == "artifact":
            self.client.log_artifact(run_id, values["file"], values["folder"])
        elif kind == "dataset":
            dataset = Dataset(
                name=values["name"],
                digest=values["digest"],
                source_type="local",
                source=values["source"],
                schema=values["schema"],
                profile=values["profile"],
            )
            self.client.log_inputs(
                run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", values["context"])])]
            )
        elif kind == "end":
            if values.get("error"):
                self.client.set_tag(run_id, "potstill.error", values["error"])
            self.client.set_terminated(run_id, status=values["status"], end_time=values["time_ms"])


def outbox_folder(run_dir: str | Path) -> Path:
    """Where a run's entries wait: in its folder, or under POTSTILL_HOME if that is remote."""
    text = str(run_dir).removeprefix("file://")
    return (
        home() / "tracking-spool" / digest(text, size=8)
        if "://" in text
        else Path(text).expanduser().absolute() / "tracking-spool"
    )


class Outbox:
    """The queue of entries to send, in memory and in a session folder. One process at a time owns it."""

    def __init__(self, folder: Path, session: Session) -> None:
        self.folder = folder
        self.session = session
        self._waiting: deque[Entry] = deque()
        self._sent = 0
        self._lock: IO[str] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @classmethod
    def new(cls, run_dir: str | Path, session: Session) -> Outbox:
        """An empty queue for a new session. Writes nothing yet."""
        return cls(outbox_folder(run_dir) / uuid.uuid4().hex[:12], session)

    @classmethod
    def load(cls, folder: Path) -> Outbox | None:
        """The queue that an earlier session left; ``None`` if its process is alive or its files are unreadable."""
        try:
            state = json.loads((folder / "session.json").read_text())
            lines = (folder / "entries.jsonl").read_text().splitlines()
        except (OSError, ValueError):
            return None
        sent = state.pop("sent")
        outbox = cls(folder, Session(**state))
        if not outbox._own():
            return None
        # The last line may be cut off if the disk was full or the process was killed.
        outbox._waiting.extend(entry for line in lines[sent:] if (entry := _parse(line)) is not None)
        outbox._sent = sent
        return outbox

    def append(self, entry: Entry) -> None:
        """Keep ``entry``; an artifact's file is moved here. Raises ``OSError`` if it can't be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own()
        if entry.kind == "artifact":
            kept = self.folder / "artifacts" / uuid.uuid4().hex[:12]
            kept.mkdir(parents=True)
            moved = shutil.move(entry.values["file"], kept)
            entry = Entry(entry.kind, entry.run, {**entry.values, "file": str(moved)})
        with (self.folder / "entries.jsonl").open("a") as lines:
            lines.write(json.dumps(asdict(entry)) + "\n")
        self._waiting.append(entry)
        if len(self._waiting) == 1:
            self._save()

    def drain(self, send: Callable[[Entry], None]) -> Iterator[tuple[Entry, RefusedError]]:
        """Send the queue in order; yields the entries that MLflow refused. Raises ``TrackingError`` on an outage."""
        try:
            while self._waiting:
                entry = self._waiting[0]
                try:
                    send(entry)
                except RefusedError as error:
                    yield entry, error
                self._waiting.popleft()
                self._sent += 1
                if entry.kind == "artifact":
                    shutil.rmtree(Path(entry.values["file"]).parent, ignore_errors=True)
        finally:
            if self._waiting:
                self._save()
            else:
                self._discard()

    def release(self) -> None:
        """Let another process send the queue."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _own(self) -> bool:
        if self._lock is None:
            lock = (self.folder / "lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                return False
            self._lock = lock
        return True

    def _save(self) -> None:
        # No password in the file: the next run of the job brings the full URI.
        state = {**asdict(self.session), "uri": redact(self.session.uri), "sent": self._sent}
        draft = self.folder / "session.json.new"
        draft.write_text(json.dumps(state))
        draft.replace(self.folder / "session.json")

    def _discard(self) -> None:
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._sent = 0
        with suppress(OSError):  # other sessions are still there
            self.folder.parent.rmdir()


def _parse(line: str) -> Entry | None:
    try:
        return Entry(**json.loads(line))
    except (ValueError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class Replay:
    """Counts of the entries that earlier runs left, and a line for each refused one."""

    sent: int = 0
    waiting: int = 0
    refused: tuple[str, ...] = ()


def replay(run_dir: str | Path, uri: str | None = None) -> Replay:
    """Send the entries that earlier runs in ``run_dir`` could not log, with their own times.

    ``uri`` is needed if the tracking URI holds a password, which is not stored. Entries for another server, and all
    entries during an outage, stay and count as ``waiting``.
    """
    sent, waiting, reachable = 0, 0, True
    refused: list[str] = []
    folder = outbox_folder(run_dir)
    for session_folder in sorted(folder.iterdir()) if folder.is_dir() else []:
        outbox = Outbox.load(session_folder)
        if outbox is None:
            continue
        before, refused_before = len(outbox), len(refused)
        full_uri = outbox.session.uri if uri is None else absolute_uri(uri)
        # Experiment and run ids are only valid on their own server. A server that just failed gets no second time-out.
        if reachable and redact(full_uri) == redact(outbox.session.uri):
            outbox.session.uri = full_uri
            try:
                for entry, error in outbox.drain(partial(outbox.session.send, again=True)):
                    refused.append(describe(entry, error))
            except TrackingError:
                reachable = False
        outbox.release()
        waiting += len(outbox)
        sent += before - len(outbox) - (len(refused) - refused_before)
    return Replay(sent, waiting, tuple(refused))


def describe(entry: Entry, error: Exception) -> str:
    """A refused entry on one line."""
    values = entry.values
    name = values.get("name") or (Path(values["file"]).name if "file" in values else "")
    return f"{entry.kind} {name}".strip() + f": {error}"
