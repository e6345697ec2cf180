"""A run's folder: ``<storage>/<run>/<table>/<part>.parquet`` and a few JSON files beside them.

A run is named by its task and the digest of everything that decides its result, so the same config
comes back to the same folder, and a stage command finds the tables of the stage before.
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

ROW_GROUP = 10_000  # rows of a stream of tables that are written together


def name_run(config: Config, task: Task, data: TaskData, teacher_weights: str | None) -> str:
    """``<task>-<digest>``: the same config, task, seeds, test texts, teacher and training recipe are the same run.

    ``teacher_weights``: the digest of the teacher's weights; a model may be replaced under its path.
    """
    said = task.model_dump(mode="json", exclude={"data", "licence", "language", "subjectivity"})
    parts = [config.digest(), said, list(task.labels), data.digest(), teacher_weights, RECIPE]
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
        """Where the run is, as an fsspec path that means the same everywhere, protocol included."""
        return f"{self.storage.rstrip('/')}/{self.name}" if "://" in self.storage else self._root

    def place(self, relative: str) -> str:
        """The path of a file of the run as its file system knows it (no protocol), its folder made."""
        full = f"{self._root}/{relative}"
        self._fs.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
        return full

    def write(self, kind: type[Row], part: str, rows: Sequence[Row]) -> None:
        """Write ``<table>/<part>.parquet``, replacing an earlier one whole."""
        self.write_table(kind.__name__.lower(), part, to_table(rows, kind))

    def write_table(self, table: str, part: str, content: pa.Table) -> None:
        """Write an Arrow table, replacing an earlier one whole."""
        place = self.place(f"{table}/{part}.parquet")
        with self._fs.open(f"{place}.new", "wb") as file:
            pq.write_table(content, file, compression="zstd")
        self._fs.mv(f"{place}.new", place)

    @contextlib.contextmanager
    def stream(self, table: str, part: str, schema: pa.Schema) -> Iterator[TableStream]:
        """Write a table as its rows come, replacing an earlier one whole at the end of the block.

        Also where the block breaks off: what had come by then is there to be looked at.
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
            with contextlib.suppress(OSError):  # why it broke off is what counts
                self._fs.mv(f"{place}.new", place)
            raise
        self._fs.mv(f"{place}.new", place)

    def read(self, kind: type[Row], part: str) -> list[Row]:
        """Rows of an earlier stage. Raises ``InputError`` naming the stage that has to run first."""
        return from_table(self.read_table(kind.__name__.lower(), part), kind)

    def read_table(self, table: str, part: str) -> pa.Table:
        """An Arrow table of an earlier stage. Raises ``InputError`` if it is not there."""
        with self.open_table(table, part) as file:
            return file.read()

    def open_table(self, table: str, part: str) -> pq.ParquetFile:
        """The file of a table, to be read in parts. Raises ``InputError`` if it is not there."""
        place = f"{self._root}/{table}/{part}.parquet"
        try:
            return pq.ParquetFile(self._fs.open(place, "rb"))
        except FileNotFoundError:
            raise InputError([Problem(place, "is not there yet; run the stage before this one first")]) from None

    def has_table(self, table: str, part: str) -> bool:
        """Whether an earlier stage, or an earlier try, has left that table."""
        return bool(self._fs.exists(f"{self._root}/{table}/{part}.parquet"))

    def create(self, name: str) -> Any:
        """A file of the run to be written, in binary."""
        return self._fs.open(self.place(name), "wb")

    def write_json(self, name: str, value: Any) -> None:
        """Write ``<name>.json``, replacing an earlier one whole."""
        place = self.place(f"{name}.json")
        with self._fs.open(f"{place}.new", "w") as file:
            json.dump(value, file, indent=2, ensure_ascii=False)
        self._fs.mv(f"{place}.new", place)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, such as ``report.html``."""
        with self._fs.open(self.place(name), "w", encoding="utf-8") as file:
            file.write(text)

    def has_file(self, name: str) -> bool:
        """Whether the run's folder holds a file of that name."""
        return bool(self._fs.isfile(f"{self._root}/{name}"))

    def read_json(self, name: str) -> Any:
        """Read ``<name>.json``. Raises ``InputError`` if it is not there."""
        place = f"{self._root}/{name}.json"
        try:
            with self._fs.open(place, "r") as file:
                return json.load(file)
        except FileNotFoundError:
            raise InputError([Problem(place, "is not there yet; run the stage before this one first")]) from None

    def write_config(self, config: Config, name: str = "config.yaml") -> None:
        """Keep the whole config, defaults filled in, as ready-to-run YAML.

        Passwords in URIs are left out: whoever runs it again has them in PGPASSWORD, ~/.pgpass,
        MLFLOW_TRACKING_PASSWORD or a --set.
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
        """The run that a folder or a run's name means, with its config; ``None`` if there is none."""
        for place in (reference.rstrip("/"), f"{storage.rstrip('/')}/{reference}"):
            filesystem, inner = url_to_fs(place)
            if filesystem.isfile(f"{inner}/config.yaml"):
                with filesystem.open(f"{inner}/config.yaml", "r") as file:
                    content = yaml.safe_load(file)
                content.get("relabel", {}).pop("channel", None)  # a former field, in runs of older versions
                config = parse(content, where=f"{inner}/config.yaml")
                parent, name = inner.rsplit("/", 1)
                protocol = "" if "://" not in place else place.split("://", 1)[0] + "://"
                return Run(protocol + parent, name), config
        return None


class TableStream:
    """The rows of a table that is being written; small batches are gathered, since Parquet keeps a record of each."""

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
        """Hand on what waits."""
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting, self._rows = [], 0


def as_json(value: Any) -> Any:
    """A frozen report dataclass as plain JSON data."""
    return json.loads(json.dumps(asdict(value)))
