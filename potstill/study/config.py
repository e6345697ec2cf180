"""The config of a study: which tasks, sources, students and teachers, how often; the rest as in a job's config.

    potstill study conf/study-small.yaml --set data_dir=DIR --set repeats=3

``cell_config`` makes of it the config of one job: one task, one source, one teacher, one repeat.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

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
from potstill.config.files import explain, override
from potstill.config.sections import Section, home
from potstill.config.teacher import EmbeddedTeacher, TeacherConfig
from potstill.errors import InputError, Problem
from potstill.study import sources
from potstill.study.sources import Source
from potstill.study.tables import REGRESSION, TEACHER_ALONE

ALL_REAL = 100_000  # texts a class: all there are
SECTIONS = ("augment", "relabel")
"""What a source may set. Task and student are the same for all sources of a fit, and so are the seeds."""


class SourceRef(Section):
    """A source of the study. ``promptmix`` is short for ``{name: promptmix}``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="name in the tables")
    of: str | None = Field(None, description="the known source that it varies; default: the one of its name")
    set: dict[str, Any] = Field(
        {}, description="fields of augment and relabel that make it another, such as augment.temperature: 1.2"
    )

    @property
    def source(self) -> Source:
        """The source that is meant. Raises ``InputError`` for one that nobody knows or that sets what it can't."""
        base = sources.find(self.of or self.name)
        wrong = [name for name in self.set if name.partition(".")[0] not in SECTIONS or "." not in name]
        if wrong:
            message = f"only fields of {' and '.join(SECTIONS)} can be set, such as augment.temperature"
            raise InputError([Problem(f"sources: {self.name!r}: set.{name}", message) for name in wrong])
        if base.name == self.name and not self.set:
            return base
        words = ", ".join(f"{name} = {value}" for name, value in self.set.items())
        return replace(
            base,
            name=self.name,
            title=base.title if self.name == base.name else self.name,
            meaning=f"{base.meaning}; {words}" if words else base.meaning,
            changes={**base.changes, **self.set},
        )


class StudyConfig(Section):
    """Everything a study needs to know."""

    name: str = Field("study", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="name of the study's folder and run")
    tasks: tuple[TaskRef, ...] = Field(min_length=1, description="the tasks: names, or mappings as `task` of a job")
    data_dir: str | None = Field(None, description="task.data_dir of every task that names none")
    max_test: int | None = Field(None, ge=10, description="task.max_test of every task that names none")
    sources: tuple[SourceRef, ...] = Field(
        min_length=1, description="where training texts come from; see docs/study.md"
    )
    students: dict[str, dict[str, Any]] = Field(
        {"embedded": {}}, min_length=1, description="students by name, each with what differs from `student`"
    )
    teachers: dict[str, TeacherConfig] = Field(
        {"embedded": EmbeddedTeacher()}, min_length=1, description="teachers by name, each as `teacher` of a job"
    )
    repeats: int = Field(3, ge=1, le=100, description="runs of every cell, each with a data seed of its own")
    seed: int = Field(0, ge=0, description="data seed of the first repeat")
    reference: str = Field("real", description="source that Table 1's differences are to")
    judgements: str | None = Field(
        None,
        description="file of pairwise judgements (judge, task_a, task_b, more_subjective) that order the tasks; default: the "
        "order of Li et al. 2023",
    )
    real_per_class: int | None = Field(
        None, ge=1, description="real texts a class of the source real; default: all there are"
    )
    examples: int = Field(3, ge=0, le=100, description="texts a source and class in the table of examples")
    storage: str = Field("", description="folder of the runs; default <POTSTILL_HOME>/runs")
    ledger: LedgerConfig = Field(default_factory=LedgerConfig)
    augment: AugmentConfig = AugmentConfig()
    relabel: RelabelConfig = RelabelConfig()
    student: StudentConfig = StudentConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @field_validator("tasks", mode="before")
    @classmethod
    def _task_names(cls, value: Any) -> Any:
        return [{"preset": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value

    @field_validator("sources", mode="before")
    @classmethod
    def _source_names(cls, value: Any) -> Any:
        return [{"name": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value

    @field_validator("students", "teachers", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """A list of models is short for a mapping; so is nothing behind a name."""
        if isinstance(value, list):
            return {str(one): {"model": one} for one in value}
        return {name: {} if one is None else one for name, one in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if not self.storage:
            object.__setattr__(self, "storage", str(home() / "runs"))
        complaints = []
        for what, names in {
            "tasks": [one.preset for one in self.tasks],
            "sources": [one.name for one in self.sources],
        }.items():
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                complaints.append(f"{what}: {', '.join(map(repr, twice))} stands twice")
        if self.student.repeats != 1 or any(one.get("repeats", 1) != 1 for one in self.students.values()):
            complaints.append("student.repeats: a study has `repeats` of its own, of data seeds; leave it out")
        reserved = sorted({REGRESSION, TEACHER_ALONE} & set(self.students))
        if reserved:
            complaints.append(
                f"students: {', '.join(map(repr, reserved))} has another meaning in the tables; rename it"
            )
        if complaints:
            raise ValueError("; ".join(complaints))
        return self


def is_study(path: str | Path) -> bool:
    """Whether a config file is a study's and no job's, by its field ``tasks``; loading says what is wrong with others."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and "tasks" in content and "task" not in content


def load(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML and apply ``a.b=c`` overrides. Raises ``InputError`` with every problem."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError([Problem(str(path), f"can't be read: {error.strerror}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError([Problem(str(path), f"is not valid YAML: {' '.join(str(error).split())}")]) from error
    if not isinstance(content, dict) or "tasks" not in content:
        hint = "must hold a mapping with `tasks` and `sources`, such as conf/study-small.yaml"
        if isinstance(content, dict) and "task" in content:
            hint += "; this is a job's config: potstill distill takes it"
        raise InputError([Problem(str(path), hint)])
    return parse_study(override(content, overrides), str(path))


def parse_study(content: dict[str, Any], where: str = "study") -> StudyConfig:
    """Validate a mapping. Raises ``InputError`` with every problem, unknown sources and students' settings included."""
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
        message = f"is none of the study's sources: {', '.join(known)}"
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
    """A student of the study. Its training seed is the same in all repeats, as in jobs of several data seeds."""
    content = override(study.student.model_dump(), [])
    content |= study.students[name]
    return StudentConfig.model_validate(content)


def cell_config(study: StudyConfig, task: TaskRef, source: Source, teacher: str, repeat: int, classes: int) -> Config:
    """The config of one job of the study. Raises ``InputError`` for settings of the source that no job can have."""
    reference = task.model_dump()
    reference["data_dir"] = reference["data_dir"] or study.data_dir
    reference["max_test"] = reference["max_test"] or study.max_test
    if source.changes.get("augment.strategy") == "annotate":
        reference["unlabelled"] = reference["unlabelled"] or "train"
    content: dict[str, Any] = {
        "task": reference,
        "seed": study.seed + repeat,
        "storage": study.storage,
        "ledger": study.ledger.model_dump(),
        "teacher": study.teachers[teacher].model_dump(),
        "augment": study.augment.model_dump(),
        "relabel": study.relabel.model_dump(),
        "student": student_config(study, next(iter(study.students))).model_dump(),
        "evaluate": study.evaluate.model_dump(),
        "tracking": study.tracking.model_dump(),
    }
    changes = copy.deepcopy(dict(source.changes))  # a field of a section may be set in one that other sources share
    if source.name == "real":
        changes.setdefault("augment.per_class", study.real_per_class or ALL_REAL)
    for name, value in changes.items():
        *parents, last = name.split(".")
        target = content
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}  # no section: the config's own check says so
            target = target[parent]
        target[last] = 1.0 / classes if value == sources.EVEN else value
    return parse(content, where=f"source {source.name}")
