"""The texts of a study's sources: generated once per run folder, then read as training rows.

Sources with the same texts (PromptMix with and without relabelling) share a folder.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from actors.teachers.pool import TeacherPool
from jobs.stages import classify, generate, relabel
from jobs.stages.ask import Usage
from jobs.stages.finetune import first_of_each_class
from jobs.study.cells import Cell
from jobs.tracking.recorder import Recorder
from jobs.tracking.tracker import Tracker
from potstill.config.student import StudentConfig
from potstill.errors import StageError
from potstill.rows import Example
from potstill.student.arms import TrainingRow, from_examples, from_opinions, from_texts
from potstill.task import LabelledText

_DONE = "done-"  # prefix of a stage's marker in the run's folder


@dataclass(frozen=True, slots=True)
class SourceTexts:
    """A source's training ``rows``, its kept texts without seeds (``measured`` for diversity), all its ``examples``, and the
    rows that a seeds-only student is ``asked`` about."""

    rows: tuple[TrainingRow, ...]
    measured: tuple[LabelledText, ...]
    examples: tuple[Example, ...]
    asked: tuple[TrainingRow, ...]


def ask_teacher(cell: Cell, pool: TeacherPool, record: Recorder) -> None:
    """Generate and label the cell's texts, unless its run's folder has them."""
    job = replace(cell.job, tracker=cast(Tracker, record))

    def once(stage: str, run: Callable[[], object]) -> None:
        # Texts of the train split are collected again: that is free, and the run's name does not cover the split.
        # A stage without usable texts writes its tables but no marker.
        if not cell.source.asks or not job.run.has_file(f"{_DONE}{stage}.json"):
            run()
            job.run.write_json(f"{_DONE}{stage}", {})

    if cell.source.kind == "classifier":
        once(classify.PART, lambda: classify.classify(job, pool, job.data.test))
    elif cell.source.kind == "texts":
        once("generate", lambda: generate.generate(job, pool))
        if cell.source.labels == "relabelled":
            once("relabel", lambda: relabel.relabel(job, pool))


def read_texts(cell: Cell, config: StudentConfig) -> SourceTexts:
    """The rows that the cell's student learns from. Raises ``StageError`` if no text was kept."""
    job, labels = cell.job, cell.job.labels
    if cell.source.kind == "seeds":
        return SourceTexts(tuple(from_texts(job.data.seeds, labels)), (), (), ())
    relabelled = cell.source.labels == "relabelled"
    examples = job.run.read(Example, "relabelled" if relabelled else "generated")
    if relabelled:
        kept = [example for example in examples if example.kept]
    else:
        kept = first_of_each_class(examples, job.config.augment.per_class)
    rows = from_examples(kept, labels, soft=relabelled and job.config.relabel.soft)
    if not kept:
        raise StageError(f"{job.task.name}, {cell.source.name}: no text was kept; see {job.run.path}/example")
    if cell.source.seeds == "train":
        rows = [*from_texts(job.data.seeds, labels, weight=config.seed_weight), *rows]
    measured = tuple(LabelledText(example.example_id, example.text, example.label) for example in kept)
    return SourceTexts(tuple(rows), measured, tuple(examples), tuple(from_opinions(examples, labels)))


def usage_of(cell: Cell) -> Usage:
    """The teacher's usage for the cell's texts."""
    if not cell.source.asks:
        return Usage()
    if cell.source.kind == "classifier":
        return classify.usage_of(cell.job)
    stages = ["generate", *(["relabel"] if cell.source.labels == "relabelled" else [])]
    return sum((Usage(**cell.job.run.read_json(stage)["usage"]) for stage in stages), Usage())


def relabelling_of(cell: Cell) -> dict[str, Any]:
    """The report of the relabelling of the cell's texts; empty without relabelling."""
    if cell.source.kind != "texts" or cell.source.labels != "relabelled":
        return {}
    report: dict[str, Any] = cell.job.run.read_json("relabel")["report"]
    return report


def pick_examples(texts: SourceTexts, each: int) -> list[Example]:
    """Up to ``each`` kept texts of every class, and as many that selection dropped, in the order of the plan."""
    taken: collections.Counter[tuple[str, bool]] = collections.Counter()
    picked = []
    for example in texts.examples:
        key = (example.label, example.kept)
        if taken[key] < each and (example.kept or example.confidence is not None):
            taken[key] += 1
            picked.append(example)
    return picked
