"""Read files of human annotations, one vote per row, as CSV, JSON lines or Parquet.

    item,annotator,label                    annotations
    judge,task_a,task_b,more_subjective     pairwise judgements

All problems of a file are reported at once, with row numbers (the first row below a header is row 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

from potstill.errors import InputError, Problem

ANNOTATION = ("item", "annotator", "label")
JUDGEMENT = ("judge", "task_a", "task_b", "more_subjective")
_SHOWN = 5  # rows listed per kind of problem

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Votes:
    """``counts[i][c]``: votes on item ``i`` for label ``c``, (items, labels). ``annotators``: their number."""

    items: tuple[str, ...]
    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    annotators: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """One person's answer to "which of the two tasks is more subjective?"."""

    judge: str
    task_a: str
    task_b: str
    more_subjective: str


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a CSV, JSON lines or Parquet file. Raises ``InputError`` if it can't be read."""
    place = Path(path).expanduser()
    try:
        match place.suffix.lower():
            case ".parquet":
                table = pyarrow.parquet.read_table(place)
            case ".jsonl" | ".json":
                table = pyarrow.json.read_json(place)
            case ".csv":
                # Read as text, so that item 007 and label "yes" keep their spelling.
                names = pyarrow.csv.open_csv(place).schema.names
                types = {name: pyarrow.string() for name in names}
                options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
                table = pyarrow.csv.read_csv(place, convert_options=options)
            case suffix:
                raise InputError([Problem(str(path), f"ends in {suffix!r}; known: .csv, .jsonl, .parquet")])
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError([Problem(str(path), f"can't be read: {str(error).splitlines()[0]}")]) from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def read_annotations(rows: Sequence[Row], labels: Sequence[str] | None = None, where: str = "annotations") -> Votes:
    """Votes from rows of (item, annotator, label). ``labels``: allowed labels; default: all that occur, sorted.

    Raises ``InputError`` with all problems: missing columns, empty cells, unknown labels, two votes by one annotator on
    one item, fewer than two annotators.
    """
    cells = _cells(rows, ANNOTATION, where)
    allowed = tuple(labels) if labels is not None else tuple(sorted({label for _, _, label in cells if label}))
    found = _empty(cells, ANNOTATION, where)
    unknown: dict[str, list[int]] = {}
    seen: dict[tuple[str, str], int] = {}
    doubled = []
    for number, (item, annotator, label) in enumerate(cells, 1):
        if label and label not in allowed:
            unknown.setdefault(label, []).append(number)
        if item and annotator and seen.setdefault((item, annotator), number) != number:
            doubled.append(f"{item!r} by {annotator!r} in rows {seen[item, annotator]} and {number}")
    known = ", ".join(map(repr, allowed))
    found += [
        Problem(f"{where}: label = {name!r}", f"is not a class (row{_numbers(numbers)}); classes: {known}")
        for name, numbers in unknown.items()
    ]
    if doubled:
        found.append(
            Problem(where, f"only one vote per annotator and item is allowed, but {_some(doubled)}; keep one of each")
        )
    annotators = {annotator for _, annotator, _ in cells if annotator}
    if len(annotators) < 2:
        who = f"all votes are by {next(iter(annotators))!r}" if annotators else "there are no votes"
        found.append(Problem(where, f"{who}; agreement needs at least two annotators"))
    if found:
        raise InputError(found)
    items = tuple(dict.fromkeys(item for item, _, _ in cells))
    row, column = {item: i for i, item in enumerate(items)}, {label: i for i, label in enumerate(allowed)}
    counts = np.zeros((len(items), len(allowed)), dtype=np.int64)
    for item, _, label in cells:
        counts[row[item], column[label]] += 1
    return Votes(items, allowed, counts, len(annotators))


def read_judgements(rows: Sequence[Row], tasks: Sequence[str], where: str = "judgements") -> list[Judgement]:
    """Judgements from rows of (judge, task_a, task_b, more_subjective).

    Raises ``InputError`` with all problems: missing columns, empty cells, unknown tasks, a task compared with itself, an
    answer that is neither of the two tasks, two answers by one judge on one pair.
    """
    cells = _cells(rows, JUDGEMENT, where)
    found = _empty(cells, JUDGEMENT, where)
    seen: dict[tuple[str, frozenset[str]], int] = {}
    known = ", ".join(tasks)
    for number, (judge, first, second, answer) in enumerate(cells, 1):
        if not (judge and first and second and answer):
            continue
        place = f"{where}: row {number}"
        unknown = [task for task in dict.fromkeys((first, second)) if task not in tasks]
        if unknown:
            found.append(Problem(place, f"no task {' or '.join(map(repr, unknown))}; tasks: {known}"))
        if first == second:
            found.append(Problem(place, f"{first!r} is compared with itself"))
        elif answer not in (first, second):
            found.append(Problem(place, f"more_subjective = {answer!r} is neither {first!r} nor {second!r}"))
        before = seen.setdefault((judge, frozenset((first, second))), number)
        if before != number:
            found.append(Problem(place, f"{judge!r} already judged {first!r} and {second!r} in row {before}; keep one"))
    if not cells:
        found.append(Problem(where, "there are no judgements"))
    if found:
        raise InputError(found)
    return [Judgement(*row) for row in cells]


def _cells(rows: Sequence[Row], columns: Sequence[str], where: str) -> list[tuple[str, ...]]:
    """The columns' values as stripped text, "" for empty cells."""
    missing = [name for name in columns if rows and all(name not in row for row in rows)]
    if missing:
        there = ", ".join(map(repr, dict.fromkeys(name for row in rows[:100] for name in row)))
        message = f"has no column {', '.join(map(repr, missing))}; its columns: {there}"
        raise InputError([Problem(where, message)])
    return [
        tuple("" if row.get(name) is None else " ".join(str(row[name]).split()) for name in columns) for row in rows
    ]


def _empty(cells: Sequence[tuple[str, ...]], columns: Sequence[str], where: str) -> list[Problem]:
    found = []
    for i, name in enumerate(columns):
        numbers = [number for number, row in enumerate(cells, 1) if not row[i]]
        if numbers:
            found.append(Problem(where, f"column {name!r} is empty in row{_numbers(numbers)}; fill it or drop the row"))
    return found


def _numbers(numbers: Sequence[int]) -> str:
    return ("s " if len(numbers) > 1 else " ") + _some([str(number) for number in numbers])


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more
