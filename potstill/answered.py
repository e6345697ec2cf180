"""A stage's answers beside its plan, in columns: what the next step computes with, without prompts.

A million requests with their prompts are gigabytes; what their answers mean needs some words and numbers of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

PLANNED = ("request_id", "strategy", "choices", "target_label", "mix_label", "alpha")  # columns of a request
_ROWS = 10_000


def join_answers(plan: pa.Table, responses: pa.Table) -> pa.Table:
    """One row a request of ``plan`` (with ``request_id``; it may repeat), in its order, with the columns of both.

    ``responses``: any order, ``request_id`` unique; ``error``, where there, says which failed. The response's columns
    are null where a request failed or has no answer.
    """
    if "error" in responses.column_names:
        responses = responses.filter(pc.is_null(responses["error"])).drop_columns("error")
    places = pc.index_in(plan["request_id"], value_set=responses["request_id"])
    found = responses.drop_columns("request_id").take(places)
    for name in found.column_names:
        plan = plan.append_column(name, found[name])
    return plan


def iterate(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of some columns row by row, as Python's; only some thousand rows are held at a time."""
    for batch in table.select(columns).to_batches(max_chunksize=_ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
