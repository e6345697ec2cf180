"""A study's folder: finished cells and their tables (layout: ``potstill/study/tables.py``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from actors.backends.identity import identify
from jobs.run.folder import Run
from jobs.run.job import Job
from jobs.stages.ask import Usage
from jobs.study.cells import Cell
from potstill.draws import digest
from potstill.measures.annotations import read_judgements, read_rows
from potstill.measures.scores import Interval, Scores
from potstill.measures.subjectivity import Ranking, rank
from potstill.rows import Example, Prediction
from potstill.study.config import StudyConfig
from potstill.study.differences import mean_difference
from potstill.study.tables import EXAMPLES, FOLDER, LAYOUT, TABLES, Study, StudySource, StudyTask
from potstill.texts.diversity import Diversity

_FROM_RELABELLING = ("share_changed", "share_contradicted", "seed_accuracy", "guard")  # columns and fields
_Key = tuple[str, str, str | None, str]  # task, source, teacher, student


@dataclass(frozen=True, slots=True)
class Finished:
    """The results of a cell. ``relabelling``: its ``RelabelReport`` as JSON; ``export``: the student's folder."""

    predictions: tuple[Prediction, ...]
    scores: Scores
    usage: Usage
    relabelling: dict[str, Any]
    texts: int
    seeds: int
    examples: tuple[Example, ...] = ()
    export: str | None = None
    training_seconds: float = 0.0
    diversity: tuple[Diversity, ...] = ()


@dataclass(frozen=True)
class StudyFolder:
    """The folder of one study and its planned cells. ``models``: each teacher's model name in requests; ``ranking``: of the
    tasks by human judgements, if the config has any."""

    run: Run
    config: StudyConfig
    cells: tuple[Cell, ...]
    models: tuple[str, ...]
    ranking: Ranking | None = None

    @classmethod
    def of(cls, config: StudyConfig, cells: Sequence[Cell]) -> StudyFolder:
        """``<storage>/study-<name>-<digest of its cells>``, so the same comparison has the same folder.

        Raises ``InputError`` if the judgements are invalid, ``TeacherError`` if a local teacher is missing.
        """
        decided_by = [[cell.name for cell in cells], config.reference, config.examples]
        name = f"study-{config.name}-{digest(decided_by, size=5)}"
        ranking = None
        if config.judgements:
            tasks = list(dict.fromkeys(cell.task.name for cell in cells))
            rows = read_rows(config.judgements)
            ranking = rank(read_judgements(rows, tasks, config.judgements), tasks)
        models = tuple(identify(teacher).model for teacher in config.teachers.values())
        return cls(Run(config.storage, name), config, tuple(cells), models, ranking)

    def has(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return self.run.has_file(f"cell/{cell.name}.json")

    def finish(self, cell: Cell, result: Finished) -> None:
        """Write a finished cell. Its JSON comes last, since that marks it as finished."""
        self.run.write(Prediction, cell.name, result.predictions)
        rows: dict[str, list[dict[str, Any]]] = {
            "cells": [self._row(cell, result)],
            "classes": [{"cell": cell.name, **asdict(one)} for one in result.scores.per_class],
            "confusions": [
                {"cell": cell.name, "label": label, "predicted": predicted, "count": count}
                for label, counts in zip(cell.task.labels, result.scores.confusion, strict=True)
                for predicted, count in zip(cell.task.labels, counts, strict=True)
                if count
            ],
            "diversity": [{**_identity(cell), **asdict(one)} for one in result.diversity],
            "examples": [
                {**_identity(cell), **{name: getattr(one, name) for name in EXAMPLES.names[4:]}}
                for one in result.examples
            ],
        }
        self.run.write_json(f"cell/{cell.name}", rows)

    def write_tables(self, seconds: float, finished: bool) -> Study:
        """Write all tables, with the cells finished so far, and ``study.json``."""
        done = [cell for cell in self.cells if self.has(cell)]
        contents = [self.run.read_json(f"cell/{cell.name}") for cell in done]
        for name, schema in TABLES.items():
            rows = [row for one in contents for row in one.get(name, [])]
            if name == "differences":
                rows = list(self._differences(done))
            elif name in ("diversity", "examples"):  # repeated by every student
                rows = [dict(row) for row in dict.fromkeys(tuple(row.items()) for row in rows)]
            self.run.write_table(FOLDER, name, pa.Table.from_pylist(rows, schema=schema))
        study = self._study(seconds, finished)
        self.run.write_json("study", study)
        return study

    def _row(self, cell: Cell, result: Finished) -> dict[str, Any]:
        scores, usage = result.scores, result.usage
        return {
            **_identity(cell),
            "cell": cell.name,
            "student": cell.student,
            "run": None if cell.source.kind == "seeds" else cell.job.run.name,
            "export": result.export,
            "seeds": result.seeds,
            "texts": result.texts,
            "test_texts": scores.texts,
            **_columns(scores.accuracy, scores.macro_f1),
            "expected_calibration_error": scores.expected_calibration_error,
            "texts_written": result.relabelling.get("texts"),
            **{name: result.relabelling.get(name) for name in _FROM_RELABELLING},
            "requests": usage.requests,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_usd": usage.new_cost_usd,
            "teacher_seconds": usage.seconds,
            "training_seconds": result.training_seconds,
        }

    def _differences(self, done: Sequence[Cell]) -> Iterable[dict[str, Any]]:
        """Every source compared with the reference and with k-shot, over the repeats that both have."""
        predictions = {cell.name: self.run.read(Prediction, cell.name) for cell in done}
        by_key: dict[_Key, dict[int, Cell]] = {}
        for cell in done:
            by_key.setdefault((cell.task.name, cell.source.name, cell.teacher, cell.student), {})[cell.repeat] = cell
        for (task, source, teacher, student), cells in by_key.items():
            for reference, reference_student, others in self._references(by_key, task, source, student):
                repeats = sorted(set(cells) & set(others))
                if not repeats:
                    continue
                labels = list(next(iter(cells.values())).task.labels)
                pairs = [(predictions[others[i].name], predictions[cells[i].name]) for i in repeats]
                found = mean_difference(pairs, labels, self.config.seed, self.config.evaluate.resamples)
                yield {
                    "teacher": teacher,
                    "task": task,
                    "source": source,
                    "student": student,
                    "reference": reference,
                    "reference_student": reference_student,
                    "repeats": found.repeats,
                    **_columns(found.accuracy, found.macro_f1),
                }

    def _references(
        self, by_key: dict[_Key, dict[int, Cell]], task: str, source: str, student: str
    ) -> Iterable[tuple[str, str, dict[int, Cell]]]:
        """The study's reference and every k-shot baseline, as (source, student, cells by repeat)."""
        for (its_task, name, _, its_student), cells in by_key.items():
            kind = next(iter(cells.values())).source.kind
            same = its_student == student or its_student not in self.config.students
            # The teacher alone and the regression are compared with the first student.
            same = same or (student not in self.config.students and its_student == next(iter(self.config.students)))
            if its_task == task and name != source and same and (name == self.config.reference or kind == "seeds"):
                yield name, its_student, cells

    def _study(self, seconds: float, finished: bool) -> Study:
        config = self.config
        jobs: dict[str, Job] = {}
        for cell in self.cells:
            jobs.setdefault(cell.task.name, cell.job)
        if self.ranking is not None:
            ordered = [jobs[name] for name in self.ranking.tasks]
        else:
            ordered = sorted(jobs.values(), key=lambda job: (job.task.subjectivity is None, job.task.subjectivity or 0))
        return Study(
            name=config.name,
            digest=self.run.digest,
            layout=LAYOUT,
            tasks=tuple(self._study_task(job, rank) for rank, job in enumerate(ordered, 1)),
            sources=tuple(StudySource(one.source.name, one.source.title, one.source.meaning) for one in config.sources),
            students=tuple(config.students),
            teachers=tuple(config.teachers),
            models=self.models,
            repeats=config.repeats,
            reference=config.reference,
            finished=finished,
            seconds=seconds,
            config=config.model_dump(mode="json"),
        )

    def _study_task(self, job: Job, subjectivity: int) -> StudyTask:
        task, data = job.task, job.data
        order_from = "not known" if task.subjectivity is None else "Li et al. 2023"
        if self.ranking is not None:
            order_from = "judgements"
        texts = (len(data.test), len(data.train))
        return StudyTask(task.name, task.description, tuple(job.labels), *texts, subjectivity, order_from)


def _identity(cell: Cell) -> dict[str, Any]:
    return {"teacher": cell.teacher, "task": cell.task.name, "source": cell.source.name, "repeat": cell.repeat}


def _columns(accuracy: Interval, macro_f1: Interval) -> dict[str, float]:
    """The columns of two intervals."""
    columns: dict[str, float] = {}
    for measure, one in (("accuracy", accuracy), ("macro_f1", macro_f1)):
        columns |= {measure: one.value, f"{measure}_low": one.low, f"{measure}_high": one.high}
    return columns
