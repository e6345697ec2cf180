"""The cells of a study: (teacher, task, source, student, repeat), each with the job that makes its texts.

A cell's name is a digest of everything that decides its result, so that a study which is started again knows what is
done. Sources that ask no teacher are computed once, however many teachers there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jobs.run import data as loading
from jobs.run.job import Job, find_run
from jobs.runtime.terminal import Terminal
from jobs.tracking.tracker import NullTracker
from potstill.config import Config, TaskRef
from potstill.config.student import STUDENT_WITHOUT_EFFECT, StudentConfig
from potstill.draws import digest
from potstill.errors import InputError, Problem
from potstill.student import encoders
from potstill.study.config import StudyConfig, cell_config, student_config
from potstill.study.sources import Source
from potstill.study.tables import LAYOUT, REGRESSION, TEACHER_ALONE
from potstill.task import LabelledText, Task, TaskData

_WITHOUT_EFFECT = (*STUDENT_WITHOUT_EFFECT, "repeats")  # a study has repeats of its own


@dataclass(frozen=True)
class Cell:
    """One classifier of the study. ``teacher`` is ``None`` where none was asked; ``config`` is the student's, ``None``
    for the teacher alone and the regression. ``job``: its texts, in the folder ``job.run``."""

    name: str
    teacher: str | None
    source: Source
    student: str
    repeat: int
    job: Job
    config: StudentConfig | None

    @property
    def task(self) -> Task:
        """The cell's task."""
        return self.job.task


@dataclass(frozen=True, slots=True)
class FitGroup:
    """Cells that are trained together: one task, one repeat, one student."""

    cells: tuple[Cell, ...]

    @property
    def job(self) -> Job:
        """Any of the group's jobs: task, labels and test texts are the same in all."""
        return self.cells[0].job

    @property
    def seeds(self) -> tuple[LabelledText, ...]:
        """The labelled seeds, which some sources hide."""
        return max((cell.job.data.seeds for cell in self.cells), key=len)


def plan_cells(study: StudyConfig, terminal: Terminal, verbose: bool = False) -> list[Cell]:
    """All cells, task by task. Reads the data, starts nothing; raises ``InputError`` with all problems."""
    reader = _Reader()
    problems: list[Problem] = []
    cells: list[Cell] = []
    named: dict[tuple[TaskRef, str], None] = {}
    for reference in study.tasks:
        for repeat in range(study.repeats):
            for one in study.sources:
                source = one.source
                for teacher in study.teachers if source.asks else [next(iter(study.teachers))]:
                    try:
                        config = cell_config(study, reference, source, teacher, repeat, classes=2)
                        task, data = reader.read(config)
                        config = cell_config(study, reference, source, teacher, repeat, len(task.labels))
                    except InputError as error:
                        problems += error.problems
                        continue
                    named[reference, task.name] = None
                    problems += _lacking(config, task, data, source)
                    data = replace(data, seeds=()) if source.seeds == "hidden" else data
                    run = find_run(config, task, data)
                    job = Job(config, task, data, run, terminal, NullTracker(), verbose)
                    cells += _of_students(study, source, teacher, repeat, job)
    places = {name: reference.preset for reference, name in named}
    twins = [name for reference, name in named if places[name] != reference.preset]
    problems += [
        Problem(f"tasks: {name!r}", "two have this name; a study tells its tasks apart by name") for name in twins
    ]
    if problems:
        raise InputError(dict.fromkeys(problems))
    return cells


def _lacking(config: Config, task: Task, data: TaskData, source: Source) -> list[Problem]:
    """Classes of which a source of real texts would have none."""
    if config.augment.strategy != "real":
        return []
    found = {row.label for row in data.train}
    missing = [label for label in task.labels if label not in found]
    if not missing:
        return []
    message = f"task {task.name} has no training text beyond the seeds of {', '.join(map(repr, missing[:5]))}"
    return [Problem(f"source {source.name}", f"{message}; add some, or leave the source out")]


def groups(cells: list[Cell]) -> Iterator[FitGroup]:
    """The cells that have a student to train, grouped for one fit each, in their order."""
    together: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in cells:
        if cell.config is not None:
            together.setdefault((cell.task.name, cell.repeat, cell.student), []).append(cell)
    for some in together.values():
        yield FitGroup(tuple(some))


def _of_students(study: StudyConfig, source: Source, teacher: str, repeat: int, job: Job) -> list[Cell]:
    asked = teacher if source.asks else None
    if source.kind == "classifier":
        return [_cell(source, asked, TEACHER_ALONE, repeat, job, None)]
    cells = [_cell(source, asked, name, repeat, job, student_config(study, name)) for name in study.students]
    if source.kind == "seeds":
        cells.append(_cell(source, asked, REGRESSION, repeat, job, None))
    return cells


def _cell(
    source: Source, teacher: str | None, student: str, repeat: int, job: Job, config: StudentConfig | None
) -> Cell:
    trained = None
    if config is not None:
        trained = {name: value for name, value in config.model_dump(mode="json").items() if name not in _WITHOUT_EFFECT}
        trained["weights"] = encoders.weights_digest(config.model)
    said = [source.kind, source.seeds, source.labels, source.anchored, source.calibrated]
    real = job.config.augment.strategy == "real"
    train = [(row.text, row.label) for row in job.data.train] if real else None
    # The seeds are in the run's name, though not for a source that hides them: then they don't matter either.
    name = digest([LAYOUT, source.name, said, job.run.name, student, trained, digest(train)], size=8)
    return Cell(name, teacher, source, student, repeat, job, config)


class _Reader:
    """Reads each task once for every data seed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Task, TaskData] | InputError] = {}

    def read(self, config: Config) -> tuple[Task, TaskData]:
        key = digest([config.task.model_dump(mode="json"), config.seed, config.augment.strategy == "annotate"])
        if key not in self._known:
            try:
                self._known[key] = loading.load(config)
            except InputError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, InputError):
            raise found
        return found
