"""A stage's planned requests joined with its answers, by column.

A million requests take gigabytes, and so do their replies. Memory holds only a few columns of each request and the row
number of its answer; answers are read from their file 10,000 at a time.
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
    """The requests of ``plan`` (a table whose ``request_id`` may repeat) and the responses in ``file``.

    ``request_id`` is unique in the file. Its rows may be in any order; reading is fastest if they follow the plan.
    """

    def __init__(self, plan: pa.Table, file: pq.ParquetFile) -> None:
        self.plan = plan
        self._file = file
        asked = file.read(columns=["request_id", "error"])
        good = pc.if_else(pc.is_null(asked["error"]), asked["request_id"], None)
        places = pc.index_in(plan["request_id"], value_set=good)
        self._places = pc.fill_null(places, -1).to_numpy()  # row of each request's answer, -1 without one
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])

    def slice(self, start: int, count: int | None = None) -> Answered:
        """``count`` consecutive requests from ``start``, by default all that follow."""
        part = object.__new__(Answered)
        part.plan, part._file, part._starts = self.plan.slice(start, count), self._file, self._starts
        part._places = self._places[start:][:count]
        return part

    def rows(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Values of the named columns of request and response, in the order of the plan.

        The response's values are None if the request failed or has no answer.
        """
        from_file = [name for name in columns if name not in self.plan.column_names]
        for start in range(0, self.plan.num_rows, _ROWS):
            plan, answers = self.plan.slice(start, _ROWS), self._read(self._places[start : start + _ROWS], from_file)
            both = [(answers if name in from_file else plan)[name].to_pylist() for name in columns]
            yield from zip(*both, strict=True)

    def _read(self, places: np.ndarray, columns: list[str]) -> pa.Table:
        """The file's rows at ``places``, nulls for -1. Reads only the row groups that hold them."""
        groups = np.searchsorted(self._starts, places, side="right") - 1
        needed = np.unique(groups[places >= 0])
        read = [self._file.schema_arrow.empty_table().select(columns)]
        read += [self._file.read_row_group(int(group), columns=columns) for group in needed]
        first = np.cumsum([0, *(one.num_rows for one in read[1:])])  # start of each group among those read
        local = first[np.searchsorted(needed, groups)] + places - self._starts[groups]
        return pa.concat_tables(read).take(pa.array(local, pa.int64(), mask=places < 0))
