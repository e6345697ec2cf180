"""Conversion by column, rows to tables and back, equals conversion by row."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, get_args

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.rows import (
    SCHEMAS,
    Example,
    Message,
    Prediction,
    Request,
    Response,
    Role,
    Sampling,
    from_record,
    from_table,
    to_table,
)

TEXT = st.text(max_size=12)
NUMBER = st.floats(allow_nan=False)


def row_by_row(rows: list[Any], kind: Any) -> pa.Table:
    """The reference: a dict for every row."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMAS[kind])


def rows_of(table: pa.Table, kind: Any) -> list[Any]:
    """The reference of the conversion back."""
    names = [one.name for one in fields(kind)]
    return [from_record({name: record.get(name) for name in names}, kind) for record in table.to_pylist()]


def tuples(values: Any, **sizes: int) -> Any:
    return st.lists(values, **{"max_size": 3, **sizes}).map(tuple)


KINDS = {
    Request: st.builds(
        Request,
        **dict.fromkeys(("stage", "task", "strategy", "renderer", "provider", "model"), TEXT),
        weights_digest=st.none() | TEXT,
        messages=tuples(st.builds(Message, st.sampled_from(get_args(Role)), TEXT)),
        sampling=st.builds(Sampling, NUMBER, NUMBER, st.integers(0, 2**40), tuples(TEXT)),
        choices=tuples(TEXT),
        occurrence=st.integers(0, 2**40),
        target_label=st.none() | TEXT,
        mix_label=st.none() | TEXT,
        alpha=st.none() | NUMBER,
        exemplar_ids=tuples(TEXT),
    ),
    Response: st.builds(
        Response,
        TEXT,
        TEXT,
        finish_reason=st.none() | TEXT,
        choice_logprobs=tuples(st.none() | NUMBER),
        residual_mass=st.none() | NUMBER,
        error=st.none() | TEXT,
    ),
    Example: st.builds(Example, TEXT, TEXT, TEXT, tuples(NUMBER), confidence=st.none() | NUMBER, kept=st.booleans()),
    Prediction: st.builds(Prediction, TEXT, TEXT, tuples(NUMBER), TEXT),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_columns_are_as_rows(kind: Any, data: st.DataObject) -> None:
    rows = data.draw(st.lists(KINDS[kind], max_size=6))
    table = to_table(rows, kind)
    table.validate(full=True)
    assert table.equals(row_by_row(rows, kind))
    # A table of several chunks with offsets, as slices and files make them.
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    pieces = [table.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    parted = pa.concat_tables(pieces)
    assert from_table(parted, kind) == rows == rows_of(parted, kind)
    if kind is Request:
        assert [row.request_id for row in from_table(parted, kind)] == [row.request_id for row in rows]


def test_a_column_that_an_older_table_lacks_is_empty() -> None:
    table = to_table([Example("1", "text", "a", teacher_label="b")], Example).drop_columns("teacher_label")
    assert from_table(table, Example) == [Example("1", "text", "a")]


def test_ids_in_ledgers_stay_the_same() -> None:
    sampling = Sampling(0.7, 0.9, 32, ("\n",))
    request = Request("s", "t", "s", "list", "embedded", "m", "abc", (Message("user", "Wörter"),), sampling, ("a", "b"))
    assert request.request_id == "211461c56b34d3b4cf934e1262e7183b"
