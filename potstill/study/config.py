"""The config of a study: tasks, sources, students, teachers and repeats; the rest as in a job's config.

    potstill study conf/study-small.yaml --set data_dir=DIR --set repeats=3

``cell_config`` derives the config of one job: one task, source, teacher and repeat.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from potstill.config import (
    AugmentConfig,
    Config,
    EvaluateConfig,
    LedgerConfig,
    RelabelConfig,
    StudentConfig,
    TaskRef,
    TrackingConfig,
    parse,
)
from potstill.config.files import explain, override, read_yaml, set_field
from potstill.config.sections import Section, home
from potstill.config.teacher import EmbeddedTeacher, TeacherConfig
from potstill.errors import InputError, Problem
from potstill.study import sources
from potstill.study.sources import Source
from potstill.study.tables import REGRESSION, TEACHER_ALONE

ALL_REAL = 100_000  # texts per class; more than any task has
SECTIONS = ("augment", "relabel")
"""The sections that a source may change. All sources of a fit share task, seeds and student."""


class SourceRef(Section):
    """A source of the study. ``promptmix`` is short for ``{name: promptmix}``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="name in the tables")
    of: str | None = Field(None, description="the known source that it varies; default: the source with its own name")
    set: dict[str, Any] = Field(
        {}, description="changed fields of augment and relabel, such as augment.temperature: 1.2"
    )

    @property
    def source(self) -> Source:
        """The source with its changes. Raises ``InputError`` for an unknown source or a field that can't be set."""
        base = sources.find(self.of or self.name)
        wrong = [name for name in self.set if name.partition(".")[0] not in SECTIONS or "." not in name]
        if wrong:
            message = f"only fields of {' and '.join(SECTIONS)} can be set, such as augment.temperature"
            raise InputError([Problem(f"sources: {self.name!r}: set.{name}", message) for name in wrong])
        if base.name == self.name and not self.set:
            return base
        return replace(
            base,
            name=self.name,
            title=base.title if self.name == base.name else self.name,
            meaning="; ".join([base.meaning, *(f"{name} = {value}" for name, value in self.set.items())]),
            changes={**base.changes, **self.set},
        )


class StudyConfig(Section):
    """The fields of a study's YAML."""

    name: str = Field("study", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="name of the study's folder and run")
    tasks: tuple[TaskRef, ...] = Field(min_length=1, description="names of tasks, or mappings like `task` of a job")
    data_dir: str | None = Field(None, description="task.data_dir of every task without its own")
    max_test: int | None = Field(None, ge=10, description="task.max_test of every task without its own")
    sources: tuple[SourceRef, ...] = Field(min_length=1, description="sources of training texts; see docs/study.md")
    students: dict[str, dict[str, Any]] = Field(
        {"embedded": {}}, min_length=1, description="students by name, each with its differences from `student`"
    )
    teachers: dict[str, TeacherConfig] = Field(
        {"embedded": EmbeddedTeacher()}, min_length=1, description="teachers by name, each like `teacher` of a job"
    )
    repeats: int = Field(3, ge=1, le=100, description="repeats of every cell, each with its own data seed")
    seed: int = Field(0, ge=0, description="data seed of the first repeat")
    reference: str = Field("real", description="source that Table 1 compares the others with")
    judgements: str | None = Field(
        None,
        description="file of pairwise judgements (judge, task_a, task_b, more_subjective) that ranks the tasks; default: the "
        "order of Li et al. 2023",
    )
    real_per_class: int | None = Field(None, ge=1, description="real texts per class of the source real; default: all")
    examples: int = Field(3, ge=0, le=100, description="texts per source and class in the table of examples")
    storage: str = Field("", description="folder of the runs; default <POTSTILL_HOME>/runs")
    ledger: LedgerConfig = Field(default_factory=LedgerConfig)
    augment: AugmentConfig = AugmentConfig()
    relabel: RelabelConfig = RelabelConfig()
    student: StudentConfig = StudentConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @field_validator("tasks", "sources", mode="before")
    @classmethod
    def _names(cls, value: Any, field: ValidationInfo) -> Any:
        """A string is short for a mapping with only that name."""
        key = "preset" if field.field_name == "tasks" else "name"
        return [{key: one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value

    @field_validator("students", "teachers", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """A list of models is short for a mapping, and a name without a value for an empty one."""
        if isinstance(value, list):
            return {str(one): {"model": one} for one in value}
        return {name: {} if one is None else one for name, one in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if not self.storage:
            object.__setattr__(self, "storage", str(home() / "runs"))
        problems = []
        for what, names in {
            "tasks": [one.preset for one in self.tasks],
            "sources": [one.name for one in self.sources],
        }.items():
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                problems.append(f"{what}: {', '.join(map(repr, twice))} is listed twice")
        if self.student.repeats != 1 or any(one.get("repeats", 1) != 1 for one in self.students.values()):
            problems.append("student.repeats: use the study's `repeats`, which repeat with other data seeds")
        reserved = sorted({REGRESSION, TEACHER_ALONE} & set(self.students))
        if reserved:
            problems.append(f"students: {', '.join(map(repr, reserved))} is reserved in the tables; rename it")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def is_study(path: str | Path) -> bool:
    """Whether a config file describes a study, not a job: it has ``tasks``. False for unreadable files."""
    try:
        content = read_yaml(path)
    except InputError:
        return False
    return isinstance(content, dict) and "tasks" in content and "task" not in content


def load(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML and apply ``a.b=c`` overrides. Raises ``InputError`` with every problem."""
    content = read_yaml(path)
    if not isinstance(content, dict) or "tasks" not in content:
        hint = "must be a mapping with `tasks` and `sources`, such as conf/study-small.yaml"
        if isinstance(content, dict) and "task" in content:
            hint += "; this is a job's config, for potstill distill"
        raise InputError([Problem(str(path), hint)])
    return parse_study(override(content, overrides), str(path))


def parse_study(content: dict[str, Any], where: str = "study") -> StudyConfig:
    """Validate a study, with its sources and students. Raises ``InputError`` with every problem."""
    try:
        study = StudyConfig.model_validate(content)
    except ValidationError as error:
        raise InputError(explain(error, where)) from error
    problems: list[Problem] = []
    known: dict[str, Source] = {}
    for one in study.sources:
        try:
            known[one.name] = one.source
        except InputError as error:
            problems += [Problem(f"{where}: {problem.where}", problem.message) for problem in error.problems]
    if study.reference not in known and not problems:
        message = f"must be one of the study's sources: {', '.join(known)}"
        problems.append(Problem(f"{where}: reference = {study.reference!r}", message))
    for name in study.students:
        try:
            student_config(study, name)
        except ValidationError as error:
            problems += explain(error, f"{where}: students.{name}")
    if problems:
        raise InputError(problems)
    for task in study.tasks:
        for source in known.values():
            try:
                cell_config(study, task, source, next(iter(study.teachers)), 0, classes=2)
            except InputError as error:
                problems += error.problems
    if problems:
        raise InputError(dict.fromkeys(problems))
    return study


def student_config(study: StudyConfig, name: str) -> StudentConfig:
    """A student of the study, with the same training seed in all repeats."""
    return StudentConfig.model_validate({**study.student.model_dump(), **study.students[name]})


def cell_config(study: StudyConfig, task: TaskRef, source: Source, teacher: str, repeat: int, classes: int) -> Config:
    """The config of one job of the study. Raises ``InputError`` if the source's settings are invalid."""
    reference = task.model_dump()
    reference["data_dir"] = reference["data_dir"] or study.data_dir
    reference["max_test"] = reference["max_test"] or study.max_test
    if source.changes.get("augment.strategy") == "annotate":
        reference["unlabelled"] = reference["unlabelled"] or "train"
    content: dict[str, Any] = {
        "task": reference,
        "seed": study.seed + repeat,
        "teacher": study.teachers[teacher].model_dump(),
        "student": student_config(study, next(iter(study.students))).model_dump(),
        **study.model_dump(include={"storage", "ledger", "augment", "relabel", "evaluate", "tracking"}),
    }
    content["evaluate"]["teacher"] = 0  # the teacher alone is a source of its own
    content["augment"]["unlabelled"] = 0  # real texts too
    changes = copy.deepcopy(dict(source.changes))  # sources share mappings, and a later change may set a field of one
    if source.name == "real":
        changes.setdefault("augment.per_class", study.real_per_class or ALL_REAL)
    for name, value in changes.items():
        set_field(content, name, 1.0 / classes if value == sources.EVEN else value)
    return parse(content, where=f"source {source.name}")
