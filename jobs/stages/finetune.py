"""Stage 3: train all students in one Ray Train fit.

    potstill finetune RUN

``start`` is trained contrastively on the seeds and class descriptions. It is the strongest student that costs no teacher
on most tasks, and ``distilled`` goes on from its encoder, with the seeds and the kept texts. The others, for comparison:
``seeds_only`` (the seeds alone, from the encoder as it comes); ``self_trained`` (with unlabelled texts: what ``start``
makes of them, without a teacher); ``generated`` (the first texts of every class as written,
without selection or relabelling); ``real_equal`` (as many real texts per class as ``distilled`` has synthetic ones). Only
``real_equal`` sees real labels beyond the seeds, and nothing flows from it to the others.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import replace

from jobs.run.job import Job
from jobs.stages.train import TrainedStudent, TrainingResult, train
from potstill import draws
from potstill.errors import StageError
from potstill.labels.prototypes import describe_classes
from potstill.rows import Example
from potstill.student import second_opinion
from potstill.student.arms import Arm, TrainingRow, from_examples, from_opinions, from_texts, repeat
from potstill.task import LabelledText

START, DISTILLED = "start", "distilled"
SEEDS_ONLY, SELF_TRAINED = "seeds_only", "self_trained"
GENERATED, REAL_EQUAL = "generated", "real_equal"


def finetune(job: Job) -> TrainingResult:
    """Run the stage; writes ``finetune.json`` (the place of every student)."""
    with job.terminal.stage("finetune") as line, job.tracker.stage("finetune") as record:
        arms = plan_arms(job)
        line.note(f"{len(arms)} students: {', '.join(arm.name for arm in arms)}")
        result = train(arms, job.config.student, job.labels, job.config.storage, verbose=job.verbose)
        job.run.write_json(
            "finetune",
            {
                name: {
                    "export": one.export,
                    "digest": one.digest,
                    "reused": one.reused,
                    "seconds": one.report.seconds,
                    "anchor_weight": one.report.anchor_weight,
                }
                for name, one in result.students.items()
            },
        )
        for name, one in result.students.items():
            record.curves({f"{name}/loss": one.report.losses})
            for remark in () if one.reused else remarks(one):
                job.terminal.warn(f"{name}: {remark}")
            record.metrics({f"{name}/seconds": one.report.seconds, f"{name}/examples_per_s": one.examples_per_s})
            weights = {what: value for what, value in one.report.anchor_weight.items() if value is not None}
            record.metrics({f"{name}/anchor_{what}": value for what, value in weights.items()})
        reused = len(result.students) - result.trained
        if result.trained:
            line.summary = f"{result.trained} students trained on {result.workers} workers"
            line.summary += f", {reused} of the same digest reused" if reused else ""
        else:
            line.summary = f"{reused} trained students of the same digest reused"
        words = second_opinion.in_words(result.students[DISTILLED].report.anchor_weight)
        line.summary += f"; {words}" if words else ""
    return result


def remarks(student: TrainedStudent) -> list[str]:
    """Warnings for the user about a student's training."""
    report = student.report
    found = list(report.warnings)
    if report.resumed:
        steps = ", ".join(map(str, report.resumed))
        found.append(f"interrupted; resumed from the checkpoint of step {steps}, {report.workers} workers at the end")
    if report.truncated:
        found.append(f"{report.truncated} texts were cut at the length limit (student.max_length)")
    return found


def plan_arms(job: Job) -> list[Arm]:
    """The arms that the config asks for. Raises ``StageError`` if no text was kept."""
    config, labels = job.config, job.labels
    relabelled = job.run.read(Example, "relabelled")
    kept = [example for example in relabelled if example.kept]
    if not kept:
        raise StageError("finetune: no text was kept; `potstill report` shows why they were dropped")
    lineage = {"run": job.run.name, "task": job.task.name, "teacher": config.teacher.model}
    counts = collections.Counter(example.label for example in kept)
    seeds = from_texts(job.data.seeds, labels, weight=config.student.seed_weight)
    held_out = tuple(from_texts(job.data.validation, labels)) if config.student.early_stopping else ()

    def arm(name: str, rows: Sequence[TrainingRow], start: str | None = START) -> Arm:
        return Arm(
            name,
            tuple(rows),
            seed=config.student.seed,
            start=start,
            validation=held_out if start else (),
            lineage={**lineage, "arm": name},
        )

    described = from_texts([*job.data.seeds, *describe_classes(job.task)], labels)
    arms = [replace(arm(START, described, start=None), contrastive=True)]
    if SEEDS_ONLY in config.evaluate.compare:
        arms.append(replace(arm(SEEDS_ONLY, from_texts(job.data.seeds, labels), start=None), validation=held_out))
    if SEEDS_ONLY in config.evaluate.compare and (real := [row for row in relabelled if row.target_label is None]):
        even = (1.0 / len(labels),) * len(labels)
        alone = [*from_texts(job.data.seeds, labels), *(TrainingRow(row.text, even) for row in real)]
        arms.append(replace(arm(SELF_TRAINED, alone), self_trained=True))
    distilled = [*seeds, *from_examples(kept, labels, soft=config.relabel.soft)]
    asked = tuple(from_opinions(relabelled, labels))
    anchor = START if second_opinion.wanted(config.student) else None
    arms.append(replace(arm(DISTILLED, distilled), anchor=anchor, asked=asked))
    if GENERATED in config.evaluate.compare and not job.strategy.unlabelled:
        first = first_of_each_class(job.run.read(Example, "generated"), config.augment.per_class)
        arms.append(arm(GENERATED, [*seeds, *from_examples(first, labels, soft=False)]))
    if REAL_EQUAL in config.evaluate.compare and job.data.train:
        arms.append(arm(REAL_EQUAL, [*seeds, *from_texts(real_texts(job, counts), labels)]))
    return repeat(arms, config.student.repeats)


def first_of_each_class(examples: Sequence[Example], per_class: int) -> list[Example]:
    """The first texts of every class that passed the filters, in the order of the plan."""
    taken: collections.Counter[str] = collections.Counter()
    first = []
    for example in examples:
        if example.kept and example.target_label and taken[example.label] < per_class:
            taken[example.label] += 1
            first.append(example)
    return first


def real_texts(job: Job, counts: collections.Counter[str]) -> list[LabelledText]:
    """As many real texts of every class as there are kept synthetic ones (all, if there are fewer)."""
    return [
        row
        for label in job.labels
        for row in draws.sample(
            [row for row in job.data.train if row.label == label], counts[label], job.config.seed, "real", label
        )
    ]
