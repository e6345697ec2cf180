"""The tables that a study leaves, for whoever reads them: the report, a notebook, a later assessment.

A study's folder is ``<storage>/study-<name>-<digest>/``. It is laid out like any run's folder (``jobs.run.folder.Run``):

    study.json                        ``Study``: what was compared, in which order, and the settings
    study/cells.parquet               ``CELLS``: one row a trained (or asked) classifier
    study/differences.parquet         ``DIFFERENCES``: each source against a reference, over all repeats
    study/classes.parquet             ``CLASSES``: precision, recall, F1 by cell and class
    study/confusions.parquet          ``CONFUSIONS``: counts by cell, class and predicted class
    study/diversity.parquet           ``DIVERSITY``: by source, overall and by class
    study/examples.parquet            ``EXAMPLES``: some texts of every source, with alpha, old and new label
    prediction/<cell>.parquet         ``potstill.rows.Prediction``, one file a cell: the test texts in their order
    cell/<cell>.json                  a finished cell as it was computed; a study that is resumed reads these

A *cell* is (teacher, task, source, student, repeat). Its ``cell`` is a digest of all that decides its result, so the same
cell in another study has the same name. A *source* is where training texts come from (``potstill.study.sources``). ``run``
names the folder beside the study's (``<storage>/<run>``) with the requests, responses and examples of a cell; null
where the teacher had no part in it. Macro-F1, accuracy and shares are fractions of 1. An interval is a 95 % bootstrap
interval (``docs/study.md`` has every formula). Tables are rewritten whole after every task; only ``study.json`` with
``finished: true`` says that all cells are there.

    from potstill.study.tables import CELLS, read_study
    study, tables = read_study("/home/me/.potstill/runs/study-small-1a2b3c4d5e")
    tables["cells"].to_pylist()
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from potstill.errors import InputError, Problem

LAYOUT = 1
"""Raised when a column changes its meaning; new columns don't raise it."""

FOLDER = "study"  # of the Parquet files
TEACHER_ALONE, REGRESSION = "teacher", "regression"
"""Students that are none of the config's: the teacher itself as classifier, and a logistic regression on frozen
sentence embeddings (k-shot's second baseline)."""

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_WHICH = [("teacher", _TEXT), ("task", _TEXT), ("source", _TEXT), ("student", _TEXT)]

CELLS = pa.schema(
    [
        ("cell", _TEXT),
        *_WHICH,
        ("repeat", _WHOLE),  # from 0; the data seed is the study's plus this
        ("run", _TEXT),  # folder of requests and examples, beside the study's; null: no teacher asked
        ("export", _TEXT),  # the student as a transformers folder; null for the teacher and the regression
        ("seeds", _WHOLE),  # labelled examples among the training texts
        ("texts", _WHOLE),  # other training texts: generated, or real ones for the sources of real data
        ("test_texts", _WHOLE),
        ("accuracy", _REAL),
        ("accuracy_low", _REAL),
        ("accuracy_high", _REAL),
        ("macro_f1", _REAL),
        ("macro_f1_low", _REAL),
        ("macro_f1_high", _REAL),
        ("expected_calibration_error", _REAL),
        # What relabelling did to this source's texts; null where it was off. ``potstill.labels.resolution.RelabelReport``.
        ("texts_written", _WHOLE),  # that passed the filters, before selection
        ("share_changed", _REAL),  # label used is another one than was written for
        ("share_contradicted", _REAL),  # teacher's first choice is another class
        ("seed_accuracy", _REAL),  # the teacher on the labelled seeds
        ("guard", _TEXT),  # what that was taken for, in words
        # Whole source's requests, answered from the ledger or not. Sources that share requests each count them.
        ("requests", _WHOLE),
        ("prompt_tokens", _WHOLE),
        ("completion_tokens", _WHOLE),
        ("cost_usd", _REAL),  # paid in the run that made the cell: 0 for answers that the ledger had
        ("teacher_seconds", _REAL),  # waited for the teacher in the run that made the cell
        ("training_seconds", _REAL),
    ]
)

DIFFERENCES = pa.schema(
    [
        *_WHICH,
        ("reference", _TEXT),  # another source; differences are source minus reference
        ("reference_student", _TEXT),
        ("repeats", _WHOLE),
        ("macro_f1", _REAL),
        ("macro_f1_low", _REAL),
        ("macro_f1_high", _REAL),
        ("accuracy", _REAL),
        ("accuracy_low", _REAL),
        ("accuracy_high", _REAL),
    ]
)

CLASSES = pa.schema(
    [
        ("cell", _TEXT),
        ("label", _TEXT),
        ("precision", _REAL),
        ("recall", _REAL),
        ("f1", _REAL),
        ("support", _WHOLE),
        ("predicted", _WHOLE),
    ]
)

CONFUSIONS = pa.schema([("cell", _TEXT), ("label", _TEXT), ("predicted", _TEXT), ("count", _WHOLE)])

DIVERSITY = pa.schema(
    [
        ("teacher", _TEXT),
        ("task", _TEXT),
        ("source", _TEXT),
        ("repeat", _WHOLE),
        ("label", _TEXT),  # null: all classes together
        ("texts", _WHOLE),  # that were measured: the student's training texts, seeds left out
        ("remote_clique", _REAL),  # mean cosine distance to the other texts; null for fewer than two texts
        ("chamfer", _REAL),  # mean cosine distance to the nearest other text
    ]
)

EXAMPLES = pa.schema(
    [
        ("teacher", _TEXT),
        ("task", _TEXT),
        ("source", _TEXT),
        ("repeat", _WHOLE),
        ("text", _TEXT),
        ("label", _TEXT),  # what it was used with
        ("target_label", _TEXT),  # what it was written for; null for real and unlabelled texts
        ("teacher_label", _TEXT),  # what the teacher took it for; null where it was not asked
        ("mix_label", _TEXT),
        ("alpha", _REAL),
        ("confidence", _REAL),
        ("kept", pa.bool_()),
        ("dropped_because", _TEXT),
    ]
)

TABLES: dict[str, pa.Schema] = {
    "cells": CELLS,
    "differences": DIFFERENCES,
    "classes": CLASSES,
    "confusions": CONFUSIONS,
    "diversity": DIVERSITY,
    "examples": EXAMPLES,
}


@dataclass(frozen=True, slots=True)
class StudyTask:
    """A task of a study. ``subjectivity``: its place among the study's tasks, least subjective first, from 1;
    ``order_from``: who says so ("Li et al. 2023", "judgements", "not known": then it stands behind the others)."""

    name: str
    description: str
    labels: tuple[str, ...]
    test_texts: int
    real_texts: int
    subjectivity: int
    order_from: str


@dataclass(frozen=True, slots=True)
class StudySource:
    """A source of a study: its name, what a table calls it, and a sentence on what it is."""

    name: str
    title: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Study:
    """``study.json``. ``tasks`` are in order of subjectivity, ``sources``, ``students`` and ``teachers`` in the config's.

    ``reference``: the source that Table 1's differences are to; ``seconds``: of the last run of the study that had something to do.
    """

    name: str
    digest: str
    layout: int
    tasks: tuple[StudyTask, ...]
    sources: tuple[StudySource, ...]
    students: tuple[str, ...]
    teachers: tuple[str, ...]
    models: tuple[str, ...]
    repeats: int
    reference: str
    finished: bool
    seconds: float
    config: dict[str, Any]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Study:
        """A study from its ``study.json``. Raises ``InputError`` for one of a newer layout."""
        if data["layout"] > LAYOUT:
            raise InputError(
                [Problem("study.json", f"has layout {data['layout']}, this potstill reads up to {LAYOUT}; update it")]
            )
        known = {name: data[name] for name in (one.name for one in fields(cls)) if name in data}
        known["tasks"] = tuple(StudyTask(**{**one, "labels": tuple(one["labels"])}) for one in data["tasks"])
        known["sources"] = tuple(StudySource(**one) for one in data["sources"])
        for name in ("students", "teachers", "models"):
            known[name] = tuple(data[name])
        return cls(**known)


def read_study(folder: str) -> tuple[Study, dict[str, pa.Table]]:
    """A study and its tables, by the names in ``TABLES``; one that is not there yet is empty.

    ``folder`` is any fsspec path. Raises ``InputError`` where it holds no study.
    """
    filesystem, root = url_to_fs(folder.rstrip("/"))
    try:
        with filesystem.open(f"{root}/study.json", "r") as file:
            study = Study.from_json(json.load(file))
    except FileNotFoundError:
        raise InputError([Problem(folder, "holds no study.json; give the folder of a study")]) from None
    tables = {}
    for name, schema in TABLES.items():
        place = f"{root}/{FOLDER}/{name}.parquet"
        if filesystem.exists(place):
            with filesystem.open(place, "rb") as file:
                tables[name] = pq.read_table(file)
        else:
            tables[name] = schema.empty_table()
    return study, tables
