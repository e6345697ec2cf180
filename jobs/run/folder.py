"""A run's folder: ``<storage>/<run>/<table>/<part>.parquet`` and a few JSON files beside them.

A run is named by its task and the digest of everything that decides its result. So the same config has the same folder,
and a stage command finds the tables of the stage before it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from fsspec.core import url_to_fs

from jobs.tracking.server import redact
from potstill.config import Config, parse
from potstill.draws import digest
from potstill.errors import InputError, Problem
from potstill.rows import Row, from_table, to_table
from potstill.student.arms import RECIPE
from potstill.task import Task, TaskData

ROW_GROUP = 10_000  # rows of a stream that are written together


def name_run(config: Config, task: Task, data: TaskData, teacher_weights: str | None) -> str:
    """``<task>-<digest>`` of config, task, seeds, test texts, teacher and training recipe.

    ``teacher_weights``: the digest of the teacher's weights, since the model under a path may change.
    """
    described = task.model_dump(mode="json", exclude={"data", "licence", "language", "subjectivity"})
    parts = [config.digest(), described, list(task.labels), data.digest(), teacher_weights, RECIPE]
    return f"{task.name}-{digest(parts, size=5)}"


@dataclass(frozen=True)
class Run:
    """Reads and writes the files of one run; ``storage`` is any fsspec path."""

    storage: str
    name: str
    _fs: fsspec.AbstractFileSystem = field(init=False, repr=False, compare=False)
    _root: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        filesystem, root = url_to_fs(self.storage)
        object.__setattr__(self, "_fs", filesystem)
        object.__setattr__(self, "_root", f"{root.rstrip('/')}/{self.name}")

    @property
    def digest(self) -> str:
        """The digest in the run's name."""
        return self.name.rsplit("-", 1)[1]

    @property
    def path(self) -> str:
        """The run's folder as an fsspec path with protocol, valid on every node."""
        return f"{self.storage.rstrip('/')}/{self.name}" if "://" in self.storage else self._root

    def place(self, relative: str) -> str:
        """The path of a file in its file system (without protocol). Creates the parent folder."""
        full = f"{self._root}/{relative}"
        self._fs.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
        return full

    @contextlib.contextmanager
    def _replacing(self, relative: str, mode: str) -> Iterator[Any]:
        """A new file that takes its place at the end of the block."""
        place = self.place(relative)
        with self._fs.open(f"{place}.new", mode) as file:
            yield file
        self._fs.mv(f"{place}.new", place)

    def write(self, kind: type[Row], part: str, rows: Sequence[Row]) -> None:
        """Write ``<table>/<part>.parquet`` atomically."""
        self.write_table(kind.__name__.lower(), part, to_table(rows, kind))

    def write_table(self, table: str, part: str, content: pa.Table) -> None:
        """Write an Arrow table atomically."""
        with self._replacing(f"{table}/{part}.parquet", "wb") as file:
            pq.write_table(content, file, compression="zstd")

    @contextlib.contextmanager
    def stream(self, table: str, part: str, schema: pa.Schema) -> Iterator[TableStream]:
        """Write a table as its rows come; it replaces an earlier one at the end of the block.

        After an error, the rows so far are kept for inspection.
        """
        place = self.place(f"{table}/{part}.parquet")
        try:
            with (
                self._fs.open(f"{place}.new", "wb") as file,
                pq.ParquetWriter(file, schema, compression="zstd") as writer,
            ):
                stream = TableStream(writer)
                try:
                    yield stream
                finally:
                    stream.flush()
        except BaseException:
            with contextlib.suppress(OSError):  # the first error matters more
                self._fs.mv(f"{place}.new", place)
            raise
        self._fs.mv(f"{place}.new", place)

    def read(self, kind: type[Row], part: str) -> list[Row]:
        """Rows of an earlier stage. Raises ``InputError`` if they are missing."""
        return from_table(self.read_table(kind.__name__.lower(), part), kind)

    def read_table(self, table: str, part: str) -> pa.Table:
        """An Arrow table of an earlier stage. Raises ``InputError`` if it is missing."""
        with self.open_table(table, part) as file:
            return file.read()

    def open_table(self, table: str, part: str) -> pq.ParquetFile:
        """The file of a table, for reading in parts. Raises ``InputError`` if it is missing."""
        return pq.ParquetFile(self._open(f"{table}/{part}.parquet", "rb"))

    def create(self, name: str) -> Any:
        """A file of the run, open for binary writing."""
        return self._fs.open(self.place(name), "wb")

    def write_json(self, name: str, value: Any) -> None:
        """Write ``<name>.json`` atomically. Dataclasses in ``value`` become JSON objects."""
        with self._replacing(f"{name}.json", "w") as file:
            json.dump(value, file, indent=2, ensure_ascii=False, default=asdict)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, such as ``report.html``."""
        with self._fs.open(self.place(name), "w", encoding="utf-8") as file:
            file.write(text)

    def has_file(self, name: str) -> bool:
        """Whether the run has that file."""
        return bool(self._fs.isfile(f"{self._root}/{name}"))

    def read_json(self, name: str) -> Any:
        """Read ``<name>.json``. Raises ``InputError`` if it is missing."""
        with self._open(f"{name}.json", "r") as file:
            return json.load(file)

    def find_json(self, name: str) -> Any:
        """Read ``<name>.json``; None if it is missing."""
        try:
            return self.read_json(name)
        except InputError:
            return None

    def _open(self, relative: str, mode: str) -> Any:
        try:
            return self._fs.open(f"{self._root}/{relative}", mode)
        except FileNotFoundError:
            message = "does not exist yet; run the previous stage first"
            raise InputError([Problem(f"{self._root}/{relative}", message)]) from None

    def write_config(self, config: Config, name: str = "config.yaml") -> None:
        """Write the whole config, defaults included, as ready-to-run YAML.

        Passwords in URIs are left out; a later run takes them from PGPASSWORD, ~/.pgpass, MLFLOW_TRACKING_PASSWORD or
        --set.
        """
        content = config.model_dump(mode="json")
        for section in ("ledger", "tracking"):
            content[section]["uri"] = redact(content[section]["uri"], mask="")
        if content["search"] is None:
            content.pop("search")
        with self._fs.open(self.place(name), "w") as file:
            yaml.safe_dump(content, file, sort_keys=False)

    @staticmethod
    def find(reference: str, storage: str) -> tuple[Run, Config] | None:
        """The run with that folder or name, and its config; None if there is none."""
        run = Run.holding("config.yaml", reference, storage)
        if run is None:
            return None
        with run._open("config.yaml", "r") as file:
            return run, parse(yaml.safe_load(file), where=f"{run.path}/config.yaml")

    @staticmethod
    def holding(file: str, reference: str, storage: str) -> Run | None:
        """The run with that folder or name, if it has ``file``."""
        for place in (reference.rstrip("/"), f"{storage.rstrip('/')}/{reference}"):
            filesystem, inner = url_to_fs(place)
            if filesystem.isfile(f"{inner}/{file}"):
                parent, name = (place if "://" in place else inner).rsplit("/", 1)
                return Run(parent, name)
        return None


class TableStream:
    """Writes the rows of a table; collects small batches, since each row group has an overhead in Parquet."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, rows: pa.Table) -> None:
        """Add rows of the table's schema."""
        self._waiting.append(rows)
        self._rows += rows.num_rows
        if self._rows >= ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write the collected rows."""
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting, self._rows = [], 0
