"""A stage's answers beside its plan, in columns: what the next step computes with, without prompts.

A million requests with their prompts are gigabytes, and so are their replies. What is kept of a request is a few words
and the place of its answer; the answers stay in their file and are read some thousand at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PLANNED = ("request_id", "strategy", "choices", "target_label", "mix_label", "alpha")  # columns of a request
_ROWS = 10_000


class Answered:
    """The requests of ``plan`` (a table with ``request_id``, which may repeat), and the responses in ``file``.

    The file's rows are in any order, though what was planned together is best not far apart; ``request_id`` is unique.
    """

    def __init__(self, plan: pa.Table, file: pq.ParquetFile) -> None:
        self.plan = plan
        self._file = file
        asked = file.read(columns=["request_id", "error"])
        good = pc.if_else(pc.is_null(asked["error"]), asked["request_id"], None)
        places = pc.index_in(plan["request_id"], value_set=good)
        self._places = pc.fill_null(places, -1).to_numpy()  # in the file, of each request's answer
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])

    def slice(self, start: int, count: int | None = None) -> Answered:
        """Some of the requests in a row."""
        part = object.__new__(Answered)
        part.plan, part._file, part._starts = self.plan.slice(start, count), self._file, self._starts
        part._places = self._places[start:][:count]
        return part

    def rows(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Values of some columns of request and response, row by row in the order of the plan.

        The response's are ``None`` where a request failed or has no answer.
        """
        told = [name for name in columns if name not in self.plan.column_names]
        for start in range(0, self.plan.num_rows, _ROWS):
            plan, answers = self.plan.slice(start, _ROWS), self._read(self._places[start : start + _ROWS], told)
            both = [(answers if name in told else plan)[name].to_pylist() for name in columns]
            yield from zip(*both, strict=True)

    def _read(self, places: np.ndarray, columns: list[str]) -> pa.Table:
        """The rows at ``places`` of the file, nulls for -1; only the row groups that they are in are read."""
        groups = np.searchsorted(self._starts, places, side="right") - 1
        needed = np.unique(groups[places >= 0])
        read = [self._file.schema_arrow.empty_table().select(columns)]
        read += [self._file.read_row_group(int(group), columns=columns) for group in needed]
        first = np.cumsum([0, *(one.num_rows for one in read[1:])])  # where each group begins among those read
        local = first[np.searchsorted(needed, groups)] + places - self._starts[groups]
        return pa.concat_tables(read).take(pa.array(local, pa.int64(), mask=places < 0))
