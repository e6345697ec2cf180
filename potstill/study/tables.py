"""The schemas of a study's tables, and a reader for reports, notebooks and later assessments.

A study's folder is ``<storage>/study-<name>-<digest>/``, laid out like any run's folder (``jobs.run.folder.Run``):

    study.json                        ``Study``: tasks, sources, students, teachers, config
    study/cells.parquet               ``CELLS``: one row per classifier
    study/differences.parquet         ``DIFFERENCES``: each source against a reference, over all repeats
    study/classes.parquet             ``CLASSES``: precision, recall, F1 by cell and class
    study/confusions.parquet          ``CONFUSIONS``: counts by cell, class and predicted class
    study/diversity.parquet           ``DIVERSITY``: by source, overall and by class
    study/examples.parquet            ``EXAMPLES``: some texts of every source with their labels
    prediction/<cell>.parquet         ``potstill.rows.Prediction``, one file per cell, in the order of the test texts
    cell/<cell>.json                  a finished cell's rows; a resumed study reads these

A *cell* is (teacher, task, source, student, repeat). Its name is a digest of everything that decides its result, so the
same cell has the same name in every study. Macro-F1, accuracy and shares are fractions of 1; intervals are 95 % bootstrap
intervals (``docs/study.md`` has every formula). All tables are rewritten after every fit; they are complete once
``study.json`` has ``finished: true``.

    from potstill.study.tables import read_study
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
"""Incremented when a column changes its meaning, not for new columns."""

FOLDER = "study"  # of the Parquet files
TEACHER_ALONE, REGRESSION = "teacher", "regression"
"""Names of two classifiers without a config: the teacher itself, and a logistic regression on frozen sentence embeddings
(the second k-shot baseline)."""

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_WHICH = [("teacher", _TEXT), ("task", _TEXT), ("source", _TEXT), ("student", _TEXT)]
_TEXTS = [*_WHICH[:3], ("repeat", _WHOLE)]

CELLS = pa.schema(
    [
        ("cell", _TEXT),
        *_WHICH,
        ("repeat", _WHOLE),  # from 0; the data seed is the study's seed plus this
        ("run", _TEXT),  # folder of requests and examples, ``<storage>/<run>``; null for the seeds alone
        ("export", _TEXT),  # the student as a transformers folder; null for the teacher and the regression
        ("seeds", _WHOLE),  # labelled examples among the training texts
        ("texts", _WHOLE),  # other training texts, generated or real
        ("test_texts", _WHOLE),
        ("accuracy", _REAL),
        ("accuracy_low", _REAL),
        ("accuracy_high", _REAL),
        ("macro_f1", _REAL),
        ("macro_f1_low", _REAL),
        ("macro_f1_high", _REAL),
        ("expected_calibration_error", _REAL),
        # Of ``potstill.labels.resolution.RelabelReport``; null without relabelling.
        ("texts_written", _WHOLE),  # passed the filters, before selection
        ("share_changed", _REAL),  # final label differs from the target class
        ("share_contradicted", _REAL),  # teacher's first choice differs from the target class
        ("seed_accuracy", _REAL),  # the teacher on the labelled seeds
        ("guard", _TEXT),  # the conclusion from it, in words
        # All requests of the source, answered by the ledger or not. Sources that share requests each count them.
        ("requests", _WHOLE),
        ("prompt_tokens", _WHOLE),
        ("completion_tokens", _WHOLE),
        ("cost_usd", _REAL),  # paid for new answers in the run that made the cell
        ("teacher_seconds", _REAL),  # spent waiting for the teacher in that run
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
        *_TEXTS,
        ("label", _TEXT),  # null: all classes together
        ("texts", _WHOLE),  # measured training texts, without seeds
        ("remote_clique", _REAL),  # mean cosine distance to the other texts; null for fewer than two texts
        ("chamfer", _REAL),  # mean cosine distance to the nearest other text
    ]
)

EXAMPLES = pa.schema(
    [
        *_TEXTS,
        ("text", _TEXT),
        ("label", _TEXT),  # final label
        ("target_label", _TEXT),  # class it was written for; null for real and unlabelled texts
        ("teacher_label", _TEXT),  # teacher's first choice; null if it was not asked
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
    """A task of a study. ``subjectivity``: its rank from 1, the least subjective; ``order_from``: the ranking's origin
    ("Li et al. 2023", "judgements", or "not known" for tasks that come last)."""

    name: str
    description: str
    labels: tuple[str, ...]
    test_texts: int
    real_texts: int
    subjectivity: int
    order_from: str


@dataclass(frozen=True, slots=True)
class StudySource:
    """A source of a study: its name, its ``title`` in tables, and a description."""

    name: str
    title: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Study:
    """``study.json``. ``tasks`` are ordered by subjectivity; ``sources``, ``students`` and ``teachers`` as in the config.

    ``reference``: the source that others are compared with; ``seconds``: duration of the last run that computed cells.
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
        """The study in a ``study.json``. Raises ``InputError`` if its layout is newer than this version."""
        if data["layout"] > LAYOUT:
            raise InputError(
                [
                    Problem(
                        "study.json",
                        f"has layout {data['layout']}, but this potstill reads at most {LAYOUT}; update it",
                    )
                ]
            )
        known = {one.name: data[one.name] for one in fields(cls) if one.name in data}
        known["tasks"] = tuple(StudyTask(**{**one, "labels": tuple(one["labels"])}) for one in data["tasks"])
        known["sources"] = tuple(StudySource(**one) for one in data["sources"])
        for name in ("students", "teachers", "models"):
            known[name] = tuple(data[name])
        return cls(**known)


def read_study(folder: str) -> tuple[Study, dict[str, pa.Table]]:
    """The study in ``folder`` (any fsspec path) and its tables by name; those not written yet are empty.

    Raises ``InputError`` if the folder contains no study.
    """
    filesystem, root = url_to_fs(folder.rstrip("/"))
    try:
        with filesystem.open(f"{root}/study.json", "r") as file:
            study = Study.from_json(json.load(file))
    except FileNotFoundError:
        raise InputError([Problem(folder, "contains no study.json; give the folder of a study")]) from None
    tables = {}
    for name, schema in TABLES.items():
        path = f"{root}/{FOLDER}/{name}.parquet"
        tables[name] = (
            pq.read_table(path, filesystem=filesystem, partitioning=None)
            if filesystem.exists(path)
            else schema.empty_table()
        )
    return study, tables
