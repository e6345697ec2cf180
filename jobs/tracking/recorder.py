"""Methods by which a job, a stage or a trial writes to its MLflow run.

A ``Recorder`` only makes entries (``outbox.py``); ``tracker.py`` sends or keeps them.
"""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jobs.tracking.outbox import Entry, Kind
from jobs.tracking.server import one_line, redact
from jobs.tracking.values import arrow_schema, chunks, flatten, param_value, safe_key, write_preview

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED"]
MAX_TAG_CHARACTERS = 5000


class Recorder:
    """Writes one MLflow run: the job's, a stage's or a trial's.

    Every method returns at once or after one short request; none raises if MLflow fails.
    """

    def __init__(self, put: Callable[[Entry], None], handle: str) -> None:
        self._put_entry = put
        self._handle = handle

    def params(self, values: Mapping[str, object]) -> None:
        """Log settings. Nested mappings become ``a.b`` names; a value that is too long is cut and marked with its digest."""
        pairs = [[safe_key(key), param_value(value)] for key, value in flatten(values).items()]
        for part in chunks(pairs, 100):
            self._put("params", params=part)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers in one request: scores, tokens, ``cost_usd``, ``requests_new``, ``requests_reused``, seconds."""
        self.curves({key: [value] for key, value in values.items()}, steps=[step])

    def curves(self, values: Mapping[str, Sequence[float]], steps: Sequence[int] | None = None) -> None:
        """Log numbers over steps (such as the loss), 1000 points per request. ``steps``: default 0, 1, 2, ..."""
        now = now_ms()
        points = [
            [safe_key(key), float(value), now, int(step)]
            for key, series in values.items()
            for step, value in zip(steps if steps is not None else range(len(series)), series, strict=True)
        ]
        for part in chunks(points, 1000):
            self._put("metrics", metrics=part)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run, to search by."""
        for part in chunks([[safe_key(key), str(value)[:MAX_TAG_CHARACTERS]] for key, value in values.items()], 100):
            self._put("tags", tags=part)

    def table(self, name: str, table: pa.Table, preview_rows: int = 20) -> None:
        """``tables/<name>.parquet``, and its first rows as ``tables/<name>.preview.json``, which MLflow shows."""
        import pyarrow.parquet as pq

        self._file(f"{name}.parquet", "tables", lambda path: pq.write_table(table, path))
        self._file(f"{name}.preview.json", "tables", lambda path: write_preview(table.slice(0, preview_rows), path))

    def figure(self, name: str, figure: Figure) -> None:
        """``figures/<name>.png``."""
        self._file(f"{name}.png", "figures", lambda path: figure.savefig(path, dpi=120))

    def text(self, name: str, text: str) -> None:
        """``<name>`` (such as ``report.md``) at the top of the run's artifacts."""
        self._file(name, None, lambda path: path.write_text(text))

    def dataset(self, name: str, table: pa.Table, digest: str, context: str, source: str = "") -> None:
        """Log a table as an input of the run. ``context``: its use (``training``, ``test``); ``source``: its path."""
        self._put(
            "dataset",
            name=name[:500],
            digest=digest[:36],
            context=context,
            source=json.dumps({"uri": redact(source) or f"{name}.parquet"}),
            schema=arrow_schema(table),
            profile=json.dumps({"num_rows": table.num_rows}),
        )

    @contextmanager
    def stage(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Recorder]:
        """A child run. Ends FINISHED; FAILED with the error as a tag; KILLED on Ctrl-C."""
        child = self.begin_stage(name, tags)
        try:
            yield child
        except BaseException as error:
            child.finish(status_of(error), error)
            raise
        child.finish("FINISHED")

    def begin_stage(self, name: str, tags: Mapping[str, str] | None = None) -> Recorder:
        """A child run that stays open until ``finish``, for overlapping work such as trials."""
        child = Recorder(self._put_entry, uuid.uuid4().hex)
        self._put_entry(child.start_entry(name, {"potstill.stage": name, **(tags or {})}, parent=self._handle))
        return child

    def finish(self, status: Status, error: BaseException | None = None) -> None:
        """End the run."""
        reason = None if error is None else f"{type(error).__name__}: {one_line(error, 1000)}"
        self._put("end", status=status, time_ms=now_ms(), error=reason)

    def start_entry(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> Entry:
        """The entry that starts this run, as a child of the run with handle ``parent``."""
        short = {safe_key(key): str(value)[:MAX_TAG_CHARACTERS] for key, value in tags.items()}
        return Entry("start", self._handle, {"name": name, "tags": short, "parent": parent, "time_ms": now_ms()})

    def _put(self, kind: Kind, **values: Any) -> None:
        self._put_entry(Entry(kind, self._handle, values))

    def _file(self, name: str, folder: str | None, write: Callable[[Path], object]) -> None:
        with tempfile.TemporaryDirectory(prefix="potstill-") as scratch:
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            self._put("artifact", file=str(path), folder=folder)


def status_of(error: BaseException) -> Status:
    """The final status of a run that raised ``error``."""
    return "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
