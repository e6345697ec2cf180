"""The texts of a study's sources: asked of the teacher once a run's folder, read as rows to train on.

Sources that share their texts (PromptMix with and without relabelling) share the folder; what the ledger holds is
never asked again.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
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
from potstill.errors import InputError, StageError
from potstill.rows import Example
from potstill.student.arms import TrainingRow, from_examples, from_opinions, from_texts
from potstill.task import LabelledText

_DONE = "done-"  # of a stage, in the run's folder


@dataclass(frozen=True, slots=True)
class SourceTexts:
    """What a source has to train on: rows, the texts of them that are not seeds (to measure their diversity), all
    examples it had (to show some), and what a seeds-only student would be asked about."""

    rows: tuple[TrainingRow, ...]
    measured: tuple[LabelledText, ...]
    examples: tuple[Example, ...]
    asked: tuple[TrainingRow, ...]


def ask_teacher(cell: Cell, pool: TeacherPool, record: Recorder) -> None:
    """Have the cell's texts written and labelled, where its run's folder does not hold them yet."""
    job = replace(cell.job, tracker=cast(Tracker, record))

    def once(stage: str, run: Callable[[], object]) -> None:
        # What was collected cost nothing, and the train split is not in the run's name.
        if not cell.source.asks or not _is_done(cell, stage):
            run()
            job.run.write_json(f"{_DONE}{stage}", {})

    if cell.source.kind == "classifier":
        once(classify.PART, lambda: classify.classify(job, pool, job.data.test))
    elif cell.source.kind == "texts":
        once("generate", lambda: generate.generate(job, pool))
        if cell.source.labels == "relabelled":
            once("relabel", lambda: relabel.relabel(job, pool))


def read_texts(cell: Cell, config: StudentConfig) -> SourceTexts:
    """The rows that the cell's student learns from. Raises ``StageError`` where no text was kept."""
    job, labels = cell.job, cell.job.labels
    if cell.source.kind == "seeds":
        return SourceTexts(tuple(from_texts(job.data.seeds, labels)), (), (), ())
    examples = job.run.read(Example, "relabelled" if cell.source.labels == "relabelled" else "generated")
    if cell.source.labels == "relabelled":
        kept = [example for example in examples if example.kept]
        rows = from_examples(kept, labels, soft=job.config.relabel.soft)
    else:
        kept = first_of_each_class(examples, job.config.augment.per_class)
        rows = from_examples(kept, labels, soft=False)
    if not kept:
        raise StageError(f"{job.task.name}, {cell.source.name}: no text was kept; see {job.run.path}/example")
    if cell.source.seeds == "train":
        rows = [*from_texts(job.data.seeds, labels, weight=config.seed_weight), *rows]
    measured = tuple(LabelledText(example.example_id, example.text, example.label) for example in kept)
    return SourceTexts(tuple(rows), measured, tuple(examples), tuple(from_opinions(examples, labels)))


def usage_of(cell: Cell) -> Usage:
    """What the cell's texts took of the teacher."""
    if not cell.source.asks:
        return Usage()
    if cell.source.kind == "classifier":
        return classify.usage_of(cell.job)
    stages = ["generate", *(["relabel"] if cell.source.labels == "relabelled" else [])]
    return sum((Usage(**cell.job.run.read_json(stage)["usage"]) for stage in stages), Usage())


def relabelling_of(cell: Cell) -> dict[str, Any]:
    """The report of the relabelling behind the cell's labels; empty where there was none."""
    if cell.source.kind != "texts" or cell.source.labels != "relabelled":
        return {}
    report: dict[str, Any] = cell.job.run.read_json("relabel")["report"]
    return report


def pick_examples(texts: SourceTexts, labels: Sequence[str], each: int) -> list[Example]:
    """``each`` kept texts of every class and as many that were dropped for low evidence, in the order of the plan."""
    taken: collections.Counter[tuple[str, bool]] = collections.Counter()
    picked = []
    for example in texts.examples:
        key = (example.label, example.kept)
        if taken[key] < each and (example.kept or example.confidence is not None):
            taken[key] += 1
            picked.append(example)
    return picked


def _is_done(cell: Cell, stage: str) -> bool:
    """Whether a stage of the cell's run came to a good end; one that found no texts leaves its tables too."""
    try:
        cell.job.run.read_json(f"{_DONE}{stage}")
    except InputError:
        return False
    return True
