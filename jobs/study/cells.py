"""The cells of a study: (teacher, task, source, student, repeat), each with the job that makes its texts.

A cell's name is a digest of everything that decides its result, so a restarted study knows which cells are finished.
Sources that need no teacher are computed once, regardless of the number of teachers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.run.data import load
from jobs.run.job import Job, find_run
from jobs.runtime.terminal import Terminal
from jobs.tracking.tracker import NullTracker
from potstill.config import Config
from potstill.config.student import STUDENT_WITHOUT_EFFECT, StudentConfig
from potstill.draws import digest
from potstill.errors import InputError, Problem
from potstill.student import encoders
from potstill.study.config import StudyConfig, cell_config, student_config
from potstill.study.sources import Source
from potstill.study.tables import LAYOUT, REGRESSION, TEACHER_ALONE
from potstill.task import Task, TaskData

_WITHOUT_EFFECT = (*STUDENT_WITHOUT_EFFECT, "repeats")  # always 1 in a study


@dataclass(frozen=True)
class Cell:
    """One classifier of the study. ``teacher``: None if the source needs none; ``job``: makes its texts; ``config``: of the
    student, None for the teacher alone and the regression."""

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

    @property
    def texts_name(self) -> str:
        """Task, source, repeat and teacher. Students with the same texts have the same name."""
        teacher = f" {self.teacher}" if self.teacher else ""
        return f"{self.task.name} {self.source.name} repeat {self.repeat + 1}{teacher}"


def plan_cells(study: StudyConfig, terminal: Terminal, verbose: bool = False) -> list[Cell]:
    """All cells, task by task. Reads the data but starts nothing. Raises ``InputError`` with all problems."""
    reader = _Reader()
    problems: list[Problem] = []
    cells: list[Cell] = []
    presets: dict[str, str] = {}  # by task name
    for reference, repeat, one in itertools.product(study.tasks, range(study.repeats), study.sources):
        source = one.source
        for teacher in study.teachers if source.asks else [next(iter(study.teachers))]:
            try:
                config = cell_config(study, reference, source, teacher, repeat, classes=2)
                task, data = reader.read(config)
                config = cell_config(study, reference, source, teacher, repeat, len(task.labels))
            except InputError as error:
                problems += error.problems
                continue
            if presets.setdefault(task.name, reference.preset) != reference.preset:
                problems.append(Problem(f"tasks: {task.name!r}", "two tasks have this name; rename one"))
            problems += _missing_texts(config, task, data, source)
            data = replace(data, seeds=()) if source.seeds == "hidden" else data
            run = find_run(config, task, data)
            job = Job(config, task, data, run, terminal, NullTracker(), verbose)
            cells += _cells_of_job(study, source, teacher, repeat, job)
    if problems:
        raise InputError(dict.fromkeys(problems))
    return cells


def _missing_texts(config: Config, task: Task, data: TaskData, source: Source) -> list[Problem]:
    """The problem of classes without a real text, for a source of real texts."""
    if config.augment.strategy != "real":
        return []
    found = {row.label for row in data.train}
    missing = [label for label in task.labels if label not in found]
    if not missing:
        return []
    message = f"task {task.name} has no training texts besides the seeds for {', '.join(map(repr, missing[:5]))}"
    return [Problem(f"source {source.name}", f"{message}; add some, or remove the source")]


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells with a student to train, grouped by fit: task, repeat and student."""
    grouped: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in cells:
        if cell.config is not None:
            grouped.setdefault((cell.task.name, cell.repeat, cell.student), []).append(cell)
    return list(grouped.values())


def _cells_of_job(study: StudyConfig, source: Source, teacher: str, repeat: int, job: Job) -> list[Cell]:
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
    settings = [source.kind, source.seeds, source.labels, source.anchored, source.calibrated]
    real = job.config.augment.strategy == "real"
    train = [(row.text, row.label) for row in job.data.train] if real else None
    # The run's name covers the seeds, unless the source hides them.
    name = digest([LAYOUT, source.name, settings, job.run.name, student, trained, digest(train)], size=8)
    return Cell(name, teacher, source, student, repeat, job, config)


class _Reader:
    """Reads each task once per data seed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Task, TaskData] | InputError] = {}

    def read(self, config: Config) -> tuple[Task, TaskData]:
        key = digest([config.task.model_dump(mode="json"), config.seed, config.augment.strategy == "annotate"])
        if key not in self._known:
            try:
                self._known[key] = load(config)
            except InputError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, InputError):
            raise found
        return found
