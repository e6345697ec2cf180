"""Arms. An arm, as in a clinical trial, is one student to be trained: named, weighted rows and a training seed.

A fit takes 15-27 s to start, so a job trains all its arms (baseline, distilled, repeats) in one. The digest of an arm's
rows, its seed and the student's config names its export; an arm that has an export is not trained again.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import pyarrow as pa

from potstill.config.student import STUDENT_WITHOUT_EFFECT, StudentConfig
from potstill.draws import digest
from potstill.errors import InputError, Problem
from potstill.rows import Example
from potstill.task import LabelledText

RECIPE = 5
"""Incremented when a change of the training loop changes the student of the same rows and config."""

# Beside these, the fields that an arm has itself: its seed, the weights of its rows, its validation texts.
_WITHOUT_EFFECT = (*STUDENT_WITHOUT_EFFECT, "seed", "repeats", "seed_weight", "early_stopping")
_OF_THE_ANCHOR = ("second_opinion", "blend")


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A text, its distribution over the classes (in label order, summing to 1) and its weight in the loss."""

    text: str
    label_probs: tuple[float, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Arm:
    """One student to train. ``seed``: of the order, dropout and head. ``contrastive``: its encoder is trained on groups
    of the rows (``potstill.student.groups``) and its head fitted, instead of both on the rows' classes. ``start`` names an
    earlier arm of the job whose encoder this one starts from; with ``self_trained`` that arm also labels the rows that
    have no class (``potstill.student.self_training``). ``validation`` (real texts, if the setting allows them)
    turns on early stopping. ``anchor`` names an earlier arm whose opinion and weights go into this one
    (``potstill.student.second_opinion``), weighted by its agreement with the labels of the texts in ``asked`` (kept for
    training or not). ``lineage`` goes into the model card and has no effect on training."""

    name: str
    rows: tuple[TrainingRow, ...]
    seed: int = 0
    contrastive: bool = False
    start: str | None = None
    self_trained: bool = False
    validation: tuple[TrainingRow, ...] = ()
    anchor: str | None = None
    asked: tuple[TrainingRow, ...] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)


ROW_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("label_probs", pa.list_(pa.float64())),
        ("weight", pa.float64()),
    ]
)


def from_texts(texts: Iterable[LabelledText], labels: Sequence[str], weight: float = 1.0) -> list[TrainingRow]:
    """Labelled texts as one-hot rows. Raises ``InputError`` for a label not in ``labels``."""
    texts = list(texts)
    one_hot = _one_hot(labels, texts)
    return [TrainingRow(row.text, one_hot[row.label], weight) for row in texts]


def from_examples(
    examples: Iterable[Example], labels: Sequence[str], soft: bool = True, weight: float = 1.0
) -> list[TrainingRow]:
    """Kept examples as rows: with ``soft`` their distribution, if they have one, else one-hot.

    Raises ``InputError`` for a label not in ``labels``.
    """
    kept = [row for row in examples if row.kept]
    one_hot = _one_hot(labels, kept)
    return [
        TrainingRow(row.text, tuple(row.label_probs) if soft and row.label_probs else one_hot[row.label], weight)
        for row in kept
    ]


def _one_hot(labels: Sequence[str], rows: Sequence[LabelledText | Example]) -> dict[str, tuple[float, ...]]:
    unknown = collections.Counter(row.label for row in rows if row.label not in labels)
    if unknown:
        shown = ", ".join(f"{label!r} ({count})" for label, count in unknown.most_common(5))
        raise InputError(
            [Problem("labels to train on", f"{shown} not among the task's classes {', '.join(labels[:10])}")]
        )
    return {label: tuple(float(label == other) for other in labels) for label in labels}


def from_opinions(examples: Iterable[Example], labels: Sequence[str]) -> list[TrainingRow]:
    """The texts that the teacher was asked about, kept or not: half the probability on the class that each was written
    for, half on the class that the teacher assigned."""
    index = {label: i for i, label in enumerate(labels)}
    rows = []
    for row in examples:
        if row.teacher_label is not None:
            probs = [0.0] * len(labels)
            for label in (row.target_label or row.label, row.teacher_label):
                probs[index[label]] += 0.5
            rows.append(TrainingRow(row.text, tuple(probs)))
    return rows


def repeat(arms: Sequence[Arm], repeats: int) -> list[Arm]:
    """All arms under ``repeats`` training seeds: ``name``, ``name-seed1``, ``name-seed2``, ...

    A repeat's anchor and start are repeats too, so that everything training draws is drawn anew.
    """
    return [
        arm
        if i == 0
        else replace(
            arm,
            name=repeat_name(arm.name, i),
            seed=arm.seed + i,
            anchor=repeat_name(arm.anchor, i) if arm.anchor else None,
            start=repeat_name(arm.start, i) if arm.start else None,
        )
        for i in range(repeats)
        for arm in arms
    ]


def repeat_name(name: str, number: int) -> str:
    """The name of the ``number``-th repeat of an arm; the arm itself is number 0."""
    return f"{name}-seed{number}" if number else name


def repeats_of(name: str, names: Iterable[str]) -> list[str]:
    """The arm ``name`` and those of its repeats that are among ``names``."""
    known = set(names)
    return [name, *itertools.takewhile(known.__contains__, (repeat_name(name, i) for i in itertools.count(1)))]


def to_table(rows: Sequence[TrainingRow]) -> pa.Table:
    """Rows as an Arrow table of ``ROW_SCHEMA``."""
    columns = [[getattr(row, name) for row in rows] for name in ROW_SCHEMA.names]
    return pa.table(columns, schema=ROW_SCHEMA)


def from_table(table: pa.Table) -> list[TrainingRow]:
    """The rows of a table written by ``to_table``."""
    return [TrainingRow(**{**row, "label_probs": tuple(row["label_probs"])}) for row in table.to_pylist()]


def arm_digest(
    arm: Arm,
    student: StudentConfig,
    labels: Sequence[str],
    weights_digest: str,
    digests: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Hash of what decides the student: rows, seed, config, classes, starting weights, and its anchor and start by their
    ``digests`` (by arm).

    The arm's name and the number of processes that train it are not part of it.
    """
    anchor_digest = digests[arm.anchor] if arm.anchor else None
    origin = digests[arm.start] if arm.start else weights_digest
    left_out: tuple[str, ...] = _WITHOUT_EFFECT if anchor_digest else _WITHOUT_EFFECT + _OF_THE_ANCHOR
    left_out += () if arm.contrastive else ("contrastive_steps",)
    config = {name: value for name, value in student.model_dump(mode="json").items() if name not in left_out}
    parts = [arm.rows, arm.validation, *([arm.asked] if anchor_digest else [])]
    rows = [[[row.text, list(row.label_probs), row.weight] for row in part] for part in parts]
    return digest(
        [RECIPE, rows, arm.seed, arm.contrastive, arm.self_trained, config, list(labels), origin, anchor_digest], size=8
    )


def problems(arms: Sequence[Arm], labels: Sequence[str]) -> list[Problem]:
    """Everything about the arms that would make training fail."""
    found = []
    names = [arm.name for arm in arms]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(Problem(f"arm {name!r}", "appears twice in one training job"))
    if len(labels) < 2:
        found.append(Problem("labels", f"{len(labels)} class can't be told apart; at least 2 are needed"))
    for number, arm in enumerate(arms):
        where = f"arm {arm.name!r}"
        for role, other in (("anchor", arm.anchor), ("start", arm.start)):
            if other is not None and other not in names[:number]:
                found.append(Problem(where, f"its {role} {other!r} must come before it"))
        if not arm.rows:
            found.append(Problem(where, "has no texts to learn from"))
        for position, row in enumerate((*arm.rows, *arm.validation)):
            complaint = _complain(row, len(labels))
            if complaint:
                found.append(Problem(f"{where}, row {position}", complaint))
                break
        else:
            top = {max(range(len(row.label_probs)), key=row.label_probs.__getitem__) for row in arm.rows}
            if arm.rows and len(top) < 2:
                found.append(Problem(where, "all its texts are of one class; a classifier needs at least 2"))
    return found


def _complain(row: TrainingRow, classes: int) -> str | None:
    if not isinstance(row.text, str) or not row.text.strip():
        return f"its text is {row.text!r}; it must be a non-empty string"
    if len(row.label_probs) != classes:
        return f"has {len(row.label_probs)} probabilities for {classes} classes"
    if not all(0.0 <= p <= 1.0 for p in row.label_probs) or abs(sum(row.label_probs) - 1.0) > 1e-3:
        return f"its probabilities {row.label_probs} are not a distribution"
    if not 0.0 < row.weight < float("inf"):
        return f"its weight {row.weight} must be above 0 and finite"
    return None
