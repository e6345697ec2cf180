"""A study's folder: finished cells, and the tables made of them (``potstill/study/tables.py`` has the layout)."""

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
from potstill.errors import InputError
from potstill.measures.annotations import read_judgements, read_rows
from potstill.measures.scores import Scores
from potstill.measures.subjectivity import Ranking, rank
from potstill.rows import Example, Prediction
from potstill.study.config import StudyConfig
from potstill.study.differences import mean_difference
from potstill.study.tables import (
    DIFFERENCES,
    EXAMPLES,
    FOLDER,
    LAYOUT,
    TABLES,
    Study,
    StudySource,
    StudyTask,
    read_study,
)
from potstill.texts.diversity import Diversity

ORDER_OF_PAPER, JUDGEMENTS = "Li et al. 2023", "judgements"


@dataclass(frozen=True, slots=True)
class Finished:
    """What came out of a cell. ``relabelling``: its ``RelabelReport`` as JSON; ``export``: the student's folder."""

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
    """The folder of one study, and the cells it is to hold. ``models``: what each teacher of the config is
    called in its requests; ``ranking``: of the tasks by people's judgements, where the config names some."""

    run: Run
    config: StudyConfig
    cells: tuple[Cell, ...]
    models: tuple[str, ...]
    ranking: Ranking | None = None

    @classmethod
    def of(cls, config: StudyConfig, cells: Sequence[Cell]) -> StudyFolder:
        """``<storage>/study-<name>-<digest of its cells>``: the same comparison comes back to the same folder.

        Raises ``InputError`` where the file of judgements can't be used, ``TeacherError`` where a local teacher is not there.
        """
        name = (
            f"study-{config.name}-{digest([[cell.name for cell in cells], config.reference, config.examples], size=5)}"
        )
        ranking = None
        if config.judgements:
            tasks = list(dict.fromkeys(cell.task.name for cell in cells))
            rows = read_rows(config.judgements)
            ranking = rank(read_judgements(rows, tasks, config.judgements), tasks)
        models = tuple(identify(teacher).model for teacher in config.teachers.values())
        return cls(Run(config.storage, name), config, tuple(cells), models, ranking)

    def has(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        try:
            self.run.read_json(f"cell/{cell.name}")
        except (InputError, ValueError):  # half a file is none
            return False
        return True

    def finish(self, cell: Cell, result: Finished) -> None:
        """Keep a finished cell; its JSON last, since that is what makes it finished."""
        self.run.write(Prediction, cell.name, result.predictions)
        rows = {
            "cells": [self._row(cell, result)],
            "classes": [{"cell": cell.name, **asdict(one)} for one in result.scores.per_class],
            "confusions": [
                {"cell": cell.name, "label": label, "predicted": predicted, "count": count}
                for label, counts in zip(cell.task.labels, result.scores.confusion, strict=True)
                for predicted, count in zip(cell.task.labels, counts, strict=True)
                if count
            ],
            "diversity": [{**_which(cell), **asdict(one)} for one in result.diversity],
            "examples": [
                {**_which(cell), **{name: getattr(one, name) for name in EXAMPLES.names[4:]}} for one in result.examples
            ],
        }
        self.run.write_json(f"cell/{cell.name}", as_json_rows(rows))

    def write_tables(self, seconds: float, finished: bool) -> Study:
        """Make all tables of the cells that are there, and ``study.json``."""
        done = [cell for cell in self.cells if self.has(cell)]
        kept = [self.run.read_json(f"cell/{cell.name}") for cell in done]
        for name, schema in TABLES.items():
            rows = [row for one in kept for row in one.get(name, [])]
            if name == "differences":
                rows = list(self._differences(done))
            elif name in ("diversity", "examples"):  # the same for every student
                rows = [dict(row) for row in dict.fromkeys(tuple(row.items()) for row in rows)]
            self.run.write_table(FOLDER, name, pa.Table.from_pylist(rows, schema=schema))
        study = self._study(seconds, finished)
        self.run.write_json("study", study)
        return study

    def read(self) -> tuple[Study, dict[str, pa.Table]]:
        """The study as it stands in the folder."""
        return read_study(self.run.path)

    def _row(self, cell: Cell, result: Finished) -> dict[str, Any]:
        scores, usage, told = result.scores, result.usage, result.relabelling
        return {
            "cell": cell.name,
            "teacher": cell.teacher,
            "task": cell.task.name,
            "source": cell.source.name,
            "student": cell.student,
            "repeat": cell.repeat,
            "run": None if cell.source.kind == "seeds" else cell.job.run.name,
            "export": result.export,
            "seeds": result.seeds,
            "texts": result.texts,
            "test_texts": scores.texts,
            "accuracy": scores.accuracy.value,
            "accuracy_low": scores.accuracy.low,
            "accuracy_high": scores.accuracy.high,
            "macro_f1": scores.macro_f1.value,
            "macro_f1_low": scores.macro_f1.low,
            "macro_f1_high": scores.macro_f1.high,
            "expected_calibration_error": scores.expected_calibration_error,
            "texts_written": told.get("texts"),
            "share_changed": told.get("share_changed"),
            "share_contradicted": told.get("share_contradicted"),
            "seed_accuracy": told.get("seed_accuracy"),
            "guard": told.get("guard"),
            "requests": usage.requests,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_usd": usage.new_cost_usd,
            "teacher_seconds": usage.seconds,
            "training_seconds": result.training_seconds,
        }

    def _differences(self, done: Sequence[Cell]) -> Iterable[dict[str, Any]]:
        """Every source against the reference and against k-shot, where both are there in the same repeats."""
        predictions = {cell.name: self.run.read(Prediction, cell.name) for cell in done}
        by_key: dict[tuple[str, str, str | None, str], dict[int, Cell]] = {}
        for cell in done:
            by_key.setdefault((cell.task.name, cell.source.name, cell.teacher, cell.student), {})[cell.repeat] = cell
        for (task, source, teacher, student), cells in by_key.items():
            for reference, its_student, others in self._references(by_key, task, source, student):
                repeats = sorted(set(cells) & set(others))
                if not repeats:
                    continue
                labels = list(next(iter(cells.values())).task.labels)
                pairs = [(predictions[others[i].name], predictions[cells[i].name]) for i in repeats]
                found = mean_difference(pairs, labels, self.config.seed, self.config.evaluate.resamples)
                values: dict[str, Any] = {"teacher": teacher, "task": task, "source": source, "student": student}
                for measure, one in (("macro_f1", found.macro_f1), ("accuracy", found.accuracy)):
                    values |= {measure: one.value, f"{measure}_low": one.low, f"{measure}_high": one.high}
                values |= {"reference": reference, "reference_student": its_student, "repeats": found.repeats}
                yield {name: values[name] for name in DIFFERENCES.names}

    def _references(
        self, by_key: dict[tuple[str, str, str | None, str], dict[int, Cell]], task: str, source: str, student: str
    ) -> Iterable[tuple[str, str, dict[int, Cell]]]:
        """The study's reference and every k-shot baseline, as (source, student, cells by repeat)."""
        for (its_task, name, _, its_student), cells in by_key.items():
            kind = next(iter(cells.values())).source.kind
            same = its_student == student or its_student not in self.config.students
            # The teacher alone and the regression have no student of their own: they are held against the first.
            same = same or (student not in self.config.students and its_student == next(iter(self.config.students)))
            if its_task == task and name != source and same and (name == self.config.reference or kind == "seeds"):
                yield name, its_student, cells

    def _study(self, seconds: float, finished: bool) -> Study:
        config = self.config
        jobs: dict[str, Job] = {}
        for cell in self.cells:
            jobs.setdefault(cell.task.name, cell.job)
        known = {name: job.task.subjectivity for name, job in jobs.items()}
        order = sorted(jobs, key=lambda name: (known[name] is None, known[name] or 0))
        if self.ranking is not None:
            order = list(self.ranking.tasks)
        tasks = tuple(
            StudyTask(
                name,
                jobs[name].task.description,
                tuple(jobs[name].labels),
                len(jobs[name].data.test),
                len(jobs[name].data.train),
                place,
                JUDGEMENTS if self.ranking is not None else "not known" if known[name] is None else ORDER_OF_PAPER,
            )
            for place, name in enumerate(order, 1)
        )
        named = [one.source for one in config.sources]
        return Study(
            name=config.name,
            digest=self.run.digest,
            layout=LAYOUT,
            tasks=tasks,
            sources=tuple(StudySource(one.name, one.title, one.meaning) for one in named),
            students=tuple(config.students),
            teachers=tuple(config.teachers),
            models=self.models,
            repeats=config.repeats,
            reference=config.reference,
            finished=finished,
            seconds=seconds,
            config=config.model_dump(mode="json"),
        )


def _which(cell: Cell) -> dict[str, Any]:
    return {"teacher": cell.teacher, "task": cell.task.name, "source": cell.source.name, "repeat": cell.repeat}


def as_json_rows(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Rows that JSON can hold: numbers of NumPy as Python's."""
    return {
        name: [{key: value.item() if hasattr(value, "item") else value for key, value in row.items()} for row in some]
        for name, some in rows.items()
    }
