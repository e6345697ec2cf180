"""Paths of a config, made independent of where its parts run.

A relative path means the folder in which the command is typed; Ray's workers have others. A submitted job's
folder is a copy of the repository under a name that changes with every edit, so nothing may be kept there:
the next job would not find it, and would pay for the same answers again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from potstill.config import Config, Section, TaskRef
from potstill.config.teacher import TeacherConfig
from potstill.errors import Problem
from potstill.study.config import StudyConfig
from potstill.task import find_shipped

_PACKAGE = re.compile(r"/runtime_resources/working_dir_files/_ray_pkg_[^/]+")
_SQLITE = re.compile(r"^(sqlite(?:\+\w+)?:///)([^?]+)(.*)$")


def make_absolute(config: Config, base: Path | None = None) -> Config:
    """``config`` with every relative path resolved against ``base`` (default: the current directory)."""
    base = base or Path.cwd()

    def changed(section: Section, **changes: Callable[[str, Path], str]) -> dict[str, str]:
        values = {name: getattr(section, name) for name in changes}
        return {name: changes[name](value, base) for name, value in values.items() if value is not None}

    return config.model_copy(
        update={
            "storage": _absolute(config.storage, base),
            "task": config.task.model_copy(
                update=changed(config.task, preset=_absolute_preset, data_dir=_absolute, unlabelled=_absolute_texts)
            ),
            "ledger": config.ledger.model_copy(update=changed(config.ledger, uri=absolute_uri)),
            "teacher": config.teacher.model_copy(update=changed(config.teacher, model=_absolute_if_there)),
            "student": config.student.model_copy(update=changed(config.student, model=_absolute_if_there)),
            "tracking": config.tracking.model_copy(
                update=changed(config.tracking, uri=absolute_uri, artifacts=_absolute)
            ),
        }
    )


def make_study_absolute(config: StudyConfig, base: Path | None = None) -> StudyConfig:
    """``make_absolute`` for a study."""
    base = base or Path.cwd()
    # A job's config has all these places, and the rules for them.
    like = make_absolute(
        Config.model_validate(
            {
                "task": "demo",
                "storage": config.storage,
                "ledger": config.ledger,
                "student": config.student,
                "tracking": config.tracking,
            }
        ),
        base,
    )

    def task(one: TaskRef) -> TaskRef:
        return make_absolute(like.model_copy(update={"task": one}), base).task

    def teacher(one: TeacherConfig) -> TeacherConfig:
        return make_absolute(like.model_copy(update={"teacher": one}), base).teacher

    def student(one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "model": _absolute_if_there(one["model"], base)} if isinstance(one.get("model"), str) else one

    return config.model_copy(
        update={
            "tasks": tuple(task(one) for one in config.tasks),
            "data_dir": None if config.data_dir is None else _absolute(config.data_dir, base),
            "judgements": None if config.judgements is None else _absolute(config.judgements, base),
            "teachers": {name: teacher(one) for name, one in config.teachers.items()},
            "students": {name: student(one) for name, one in config.students.items()},
            "storage": like.storage,
            "ledger": like.ledger,
            "student": like.student,
            "tracking": like.tracking,
        }
    )


def problems(config: Config) -> Iterator[Problem]:
    """Places inside a submitted job's copy of the repository that must outlive it."""
    places = {
        "storage": config.storage,
        "ledger.uri": config.ledger.uri,
        "tracking.uri": config.tracking.uri,
        "tracking.artifacts": config.tracking.artifacts or "",
    }
    for name, place in places.items():
        if _PACKAGE.search(place):
            yield Problem(
                f"{name} = {place!r}",
                "is inside this submitted job's copy of the repository and lost after the next edit; "
                "give an absolute path or a URL that all nodes share",
            )


def is_local(place: str) -> bool:
    """Whether a path is of one machine's file system as far as its name tells (it may be a network mount)."""
    return "://" not in place or place.startswith("file://")


def _absolute(place: str, base: Path) -> str:
    if "://" in place or place.startswith("memory:"):
        return place
    # Not resolved: a link that is turned elsewhere later is meant to be followed then.
    return str(base / Path(place).expanduser())


def absolute_uri(uri: str, base: Path) -> str:
    """``uri`` with a relative path of SQLite's resolved against ``base``."""
    match = _SQLITE.match(uri)
    if match is None or match[2].startswith((":memory:", "file:")):
        return uri
    return f"{match[1]}{_absolute(match[2], base)}{match[3]}"


def _absolute_preset(preset: str, base: Path) -> str:
    """A preset is a name first: a path it is if no preset is so called and it is there."""
    path = base / Path(preset).expanduser()
    return str(path) if preset and find_shipped(preset) is None and path.exists() else preset


def _absolute_texts(unlabelled: str, base: Path) -> str:
    """``train`` means the train split."""
    return unlabelled if unlabelled == "train" else _absolute(unlabelled, base)


def _absolute_if_there(model: str, base: Path) -> str:
    """A model may be a name too (a hub id, the packaged one), so it is a path if it looks like one or is there."""
    path = base / Path(model).expanduser()
    return str(path) if model.startswith(("./", "../", "~")) or (model and path.exists()) else model
