"""Read a task and its real texts, split them by the data seed, and report everything that is wrong with them.

Seeds come from keyed draws, so the same data seed gives the same seeds on every machine. Validation texts come from
train, never from test.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from fsspec.core import url_to_fs

from potstill import draws
from potstill.config import Config
from potstill.errors import InputError, Problem
from potstill.rows import example_id
from potstill.strategies import STRATEGIES
from potstill.task import DataSource, LabelledText, Task, TaskData, find, read
from potstill.texts.filters import normalise

VALIDATION_SHARE = 0.1
UNLABELLED = "unlabelled"  # a split without labels
Pairs = list[tuple[Any, ...]]  # raw (text, label) rows


def load(config: Config) -> tuple[Task, TaskData]:
    """The task and its data. Raises ``InputError`` with every problem of the data at once."""
    path = find(config.task.preset)
    task = read(path)
    problems: list[Problem] = []
    found = _read_splits(task, path, config.task.data_dir, problems)
    splits = {split: _check(task, split, where, rows, problems) for split, (where, rows) in found.items()}
    # A split without rows because of a reported problem causes no further complaints.
    named = {problem.where for problem in problems}
    broken = {split for split, (where, _) in found.items() if where in named and not splits[split]}
    data = _split(task, config, splits, broken, problems, where=str(path))
    strategy, relabel = STRATEGIES[config.augment.strategy], config.relabel.enabled
    given = config.task.unlabelled or UNLABELLED in (task.data.files or {})
    if strategy.unlabelled or (given and strategy.collect is None and relabel and config.augment.unlabelled):
        data = replace(data, unlabelled=_unlabelled(task, path, config, data, problems))
    if problems:
        raise InputError(problems)
    return task, data


def _unlabelled(task: Task, path: Path, config: Config, data: TaskData, problems: list[Problem]) -> tuple[str, ...]:
    """The texts for the teacher to label: distinct, none of them in the test split."""
    named, listed = config.task.unlabelled, (task.data.files or {}).get(UNLABELLED)
    where = f"task.unlabelled = {named!r}"
    if named == "train":
        texts: list[Any] = [row.text for row in data.train]
    elif named or listed:
        place = named or str((path if path.is_dir() else path.parent) / str(listed))
        try:
            remedy = "set task.unlabelled to a file of texts"
            texts = [text for (text,) in _read_file(place, task.data, (task.data.text_column,), remedy)]
        except InputError as error:
            problems += error.problems
            return ()
    else:
        message = f"strategy {config.augment.strategy} needs texts without labels and the task has none"
        problems.append(Problem(where, f"{message}; give a file of them, or train for the train split's texts"))
        return ()
    in_test = {normalise(row.text) for row in data.test}
    good = {normalise(text): text for text in reversed(texts) if isinstance(text, str) and text.strip()}
    found = [text for plain, text in reversed(good.items()) if plain not in in_test]
    if not found:
        problems.append(Problem(where, "holds no text that is not in the test split; give a file with texts"))
    return tuple(found)


def _split(
    task: Task,
    config: Config,
    splits: dict[str, list[LabelledText]],
    broken: set[str],
    problems: list[Problem],
    where: str,
) -> TaskData:
    train, test = splits.get("train", []), splits.get("test", [])
    if not test and "test" not in broken:
        problems.append(Problem(where, "the task has no test split with labels; evaluation needs one"))
    in_test = {normalise(row.text) for row in test}
    if task.seeds:
        problems += _seed_problems(task, in_test, where)
        seeds = [LabelledText(example_id(seed.text, "seed"), seed.text, seed.label) for seed in task.seeds]
        seeds = [row for label in task.labels for row in _of(seeds, label)[: config.task.seeds_per_class]]
    else:
        candidates = _distinct(row for row in train if normalise(row.text) not in in_test)
        seeds = [
            row
            for label in task.labels
            for row in draws.sample(
                _of(candidates, label), config.task.seeds_per_class, config.task_seed, "seeds", label
            )
        ]
    counts = collections.Counter(row.label for row in seeds)
    for label in task.labels:
        if counts[label] < config.task.seeds_per_class and (task.seeds or "train" not in broken):
            problems.append(
                Problem(
                    where,
                    f"class {label!r} has {counts[label]} labelled example(s), task.seeds_per_class asks for "
                    f"{config.task.seeds_per_class}; add some under `seeds:` or to the train split, or lower it",
                )
            )
    shown = {normalise(row.text) for row in seeds}
    # Test texts in train would inflate the real-text student that the distilled one is compared with.
    rest = [row for row in train if normalise(row.text) not in shown | in_test]
    validation = splits.get("validation")
    if validation is not None:
        validation = [row for row in validation if normalise(row.text) not in in_test]
    else:
        order = draws.shuffle(rest, config.task_seed, "validation")
        cut = round(len(order) * VALIDATION_SHARE)
        validation, rest = order[:cut], order[cut:]
    if config.task.max_test is not None:
        test = draws.sample(test, config.task.max_test, config.task_seed, "test")
    return TaskData(tuple(seeds), tuple(rest), tuple(validation), tuple(test))


def _seed_problems(task: Task, in_test: set[str], where: str) -> list[Problem]:
    """Problems of the texts under `seeds:`, one line per kind."""
    texts = [seed.text for seed in task.seeds]
    plain = [normalise(text) or text.strip() for text in texts]
    complaints = {
        "is blank": [text for text in texts if not text.strip()],
        "occurs twice": [text for i, text in enumerate(texts) if text.strip() and plain[i] in plain[:i]],
        "is in the test split": [text for i, text in enumerate(texts) if text.strip() and plain[i] in in_test],
    }
    return [
        Problem(f"{where}: seeds", f"{found[0]!r} {complaint}{f' (and {len(found) - 1} more)' * (len(found) > 1)}")
        for complaint, found in complaints.items()
        if found
    ]


def _of(rows: Iterable[LabelledText], label: str) -> list[LabelledText]:
    return [row for row in rows if row.label == label]


def _distinct(rows: Iterable[LabelledText]) -> list[LabelledText]:
    """Rows with distinct texts; texts with several labels are left out."""
    rows = list(rows)
    labels: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        labels[normalise(row.text)].add(row.label)
    first = {normalise(row.text): row for row in reversed(rows)}
    return [row for row in rows if first[normalise(row.text)] is row and len(labels[normalise(row.text)]) == 1]


def _check(
    task: Task, split: str, where: str, rows: Sequence[tuple[Any, Any]], problems: list[Problem]
) -> list[LabelledText]:
    """The valid rows of a split. Adds one problem per kind of invalid row to ``problems``."""
    good: list[LabelledText] = []
    bad: dict[str, list[int]] = collections.defaultdict(list)
    unknown: collections.Counter[str] = collections.Counter()
    for number, (text, label) in enumerate(rows):
        if not isinstance(text, str):
            bad[f"text is of type {type(text).__name__}"].append(number)
        elif not text.strip():
            bad["text is empty"].append(number)
        elif label is None or label == "":
            bad["label is missing"].append(number)
        else:
            name = str(label) if str(label) in task.classes else task.data.label_map.get(str(label))
            if name is None:
                unknown[str(label)] += 1
            else:
                good.append(LabelledText(example_id(text, f"{split}-{number}"), text, name))
    for reason, numbers in bad.items():
        problems.append(Problem(where, f"{reason} in {len(numbers)} row(s), the first is row {numbers[0]}"))
    if unknown:
        shown = ", ".join(f"{label!r} ({count})" for label, count in unknown.most_common(5))
        problems.append(
            Problem(where, f"labels not among the classes {', '.join(task.labels[:10])}: {shown}; add data.label_map")
        )
    return good


def _read_splits(task: Task, path: Path, data_dir: str | None, problems: list[Problem]) -> dict[str, tuple[str, Pairs]]:
    """Place and raw rows of each split. An unreadable file is a problem and an empty split."""
    source = task.data
    if data_dir is not None:
        folder = f"{data_dir.rstrip('/')}/{task.name}"
        source = DataSource(files={"train": "train.parquet", "test": "test.parquet"})
        places = {split: f"{folder}/{split}.parquet" for split in ("train", "test", "validation")}
        if not _exists(places["test"]):
            raise InputError([Problem(f"task.data_dir = {data_dir!r}", f"has no {places['test']}")])
        places = {split: place for split, place in places.items() if _exists(place)}
    elif source.hub is not None:
        return _read_hub(task)
    else:
        base = path if path.is_dir() else path.parent
        places = {
            split: name if "://" in name or Path(name).is_absolute() else str(base / name)
            for split, name in (source.files or {}).items()
            if split != UNLABELLED
        }
    splits: dict[str, tuple[str, Pairs]] = {}
    for split, place in places.items():
        try:
            remedy = "set task.data_dir or data.files to the data"
            splits[split] = (place, _read_file(place, source, (source.text_column, source.label_column), remedy))
        except InputError as error:
            problems += error.problems
            splits[split] = (place, [])
    return splits


def _exists(place: str) -> bool:
    try:
        filesystem, inner = url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise InputError([Problem(place, f"can't be read: {error}")]) from error
    return bool(filesystem.exists(inner))


def _read_file(place: str, source: DataSource, columns: Sequence[str], remedy: str) -> Pairs:
    """The ``columns`` of a file's rows. A .txt file, one text a line, has only a text column."""
    try:
        with fsspec.open(place, "rb") as file:
            content = file.read()
        if place.endswith(".txt") and source.label_column not in columns:
            records = [{source.text_column: line} for line in content.decode().splitlines()]
        else:
            records = _records(place, content, source.label_column)
    except FileNotFoundError:
        raise InputError([Problem(place, f"no such file; {remedy}")]) from None
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise InputError([Problem(place, f"can't be read: {str(error).splitlines()[0]}")]) from error
    return _select(records, columns, place)


def _records(place: str, content: bytes, label_column: str) -> list[Any]:
    if place.endswith(".parquet"):
        return pyarrow.parquet.read_table(pa.BufferReader(content)).to_pylist()
    if place.endswith((".csv", ".tsv")):
        options = pyarrow.csv.ParseOptions(delimiter="\t" if place.endswith(".tsv") else ",", newlines_in_values=True)
        # Keep labels as written: Arrow would turn 01 into 1 and true into True.
        as_written = pyarrow.csv.ConvertOptions(column_types={label_column: pa.string()})
        return pyarrow.csv.read_csv(
            pa.BufferReader(content), parse_options=options, convert_options=as_written
        ).to_pylist()
    if place.endswith((".jsonl", ".ndjson")):
        # Arrow's reader would reject the whole file for one value of another type.
        return [json.loads(line) for line in content.splitlines() if line.strip()]
    raise InputError([Problem(place, "must be .parquet, .csv, .tsv or .jsonl")])


def _select(records: list[Any], columns: Sequence[str], place: str) -> Pairs:
    present = sorted({name for record in records if isinstance(record, dict) for name in record})
    missing = [name for name in columns if records and name not in present]
    if missing:
        raise InputError([Problem(place, f"has no column {' and no '.join(map(repr, missing))}, only {present}")])
    return [
        tuple(map(record.get, columns)) if isinstance(record, dict) else (record, *[None] * (len(columns) - 1))
        for record in records
    ]


def _read_hub(task: Task) -> dict[str, tuple[str, Pairs]]:
    import datasets

    hub = task.data.hub
    assert hub is not None
    splits = {}
    for split, name in hub.splits.items():
        where = f"{hub.dataset}[{name}]"
        try:
            table = datasets.load_dataset(hub.dataset, hub.config, split=name, revision=hub.revision)
        except Exception as error:  # the hub's client raises OSError and types of its own
            note = "" if hub.verified else " (this id was never verified)"
            remedy = "or set task.data_dir (of a study: data_dir) to local copies"
            message = f"can't be loaded{note}: {str(error).splitlines()[0]}; {remedy}"
            raise InputError([Problem(where, message)]) from error
        splits[split] = (where, _select(table.to_list(), (task.data.text_column, task.data.label_column), where))
    return splits
