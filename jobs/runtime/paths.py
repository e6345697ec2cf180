"""Make the paths of a config absolute, so that they are valid in every process.

A relative path is relative to the folder of the command; Ray's workers run in other folders. A submitted job runs in a
copy of the repository whose name changes with every edit. Nothing may be stored there: the next job would not find it
and would pay for the same answers again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from potstill.config import Config
from potstill.errors import Problem
from potstill.study.config import StudyConfig
from potstill.task import find_shipped

_PACKAGE = re.compile(r"/runtime_resources/working_dir_files/_ray_pkg_[^/]+")
_SQLITE = re.compile(r"^(sqlite(?:\+\w+)?:///)([^?]+)(.*)$")


def make_absolute(config: Config) -> Config:
    """``config`` with every relative path resolved against the current directory."""
    sections = {name: _resolve(getattr(config, name), name) for name in _RULES}
    return config.model_copy(update={"storage": _absolute(config.storage), **sections})


def make_study_absolute(config: StudyConfig) -> StudyConfig:
    """``make_absolute`` for a study."""
    update: dict[str, Any] = {name: _resolve(getattr(config, name), name) for name in ("ledger", "student", "tracking")}
    places = {name: getattr(config, name) for name in ("storage", "data_dir", "judgements")}
    update |= {name: _absolute(place) for name, place in places.items() if place is not None}
    update["tasks"] = tuple(_resolve(one, "task") for one in config.tasks)
    update["teachers"] = {name: _resolve(one, "teacher") for name, one in config.teachers.items()}
    update["students"] = {
        name: {**one, "model": _absolute_if_there(one["model"])} if isinstance(one.get("model"), str) else one
        for name, one in config.students.items()
    }
    return config.model_copy(update=update)


def problems(config: Config) -> Iterator[Problem]:
    """Problems of places inside a submitted job's copy of the repository, which must outlive it."""
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
    """Whether a path looks local to one machine (it may still be a network mount)."""
    return "://" not in place or place.startswith("file://")


def absolute_uri(uri: str) -> str:
    """``uri`` with a relative SQLite path made absolute."""
    match = _SQLITE.match(uri)
    if match is None or match[2].startswith((":memory:", "file:")):
        return uri
    return f"{match[1]}{_absolute(match[2])}{match[3]}"


def _absolute(place: str) -> str:
    if "://" in place or place.startswith("memory:"):
        return place
    # Symbolic links stay, so that a later change of their target takes effect.
    return str(Path(place).expanduser().absolute())


def _absolute_preset(preset: str) -> str:
    """A preset is a path only if no shipped preset has that name and the path exists."""
    return _absolute(preset) if preset and find_shipped(preset) is None and _exists(preset) else preset


def _absolute_texts(unlabelled: str) -> str:
    """``train`` stands for the train split."""
    return unlabelled if unlabelled == "train" else _absolute(unlabelled)


def _absolute_if_there(model: str) -> str:
    """A model is a path if it looks like one or exists, else a name (a hub id or the packaged model)."""
    return _absolute(model) if model.startswith(("./", "../", "~")) or (model and _exists(model)) else model


def _exists(place: str) -> bool:
    return Path(place).expanduser().exists()


_RULES: dict[str, dict[str, Callable[[str], str]]] = {
    "task": {"preset": _absolute_preset, "data_dir": _absolute, "unlabelled": _absolute_texts},
    "ledger": {"uri": absolute_uri},
    "teacher": {"model": _absolute_if_there},
    "student": {"model": _absolute_if_there},
    "tracking": {"uri": absolute_uri, "artifacts": _absolute},
}
"""How to resolve each path, by section and field of a config."""


def _resolve(section: Any, name: str) -> Any:
    """A section with absolute paths, by the rules of ``name``."""
    values = {field: (getattr(section, field), rule) for field, rule in _RULES[name].items()}
    return section.model_copy(update={f: rule(value) for f, (value, rule) in values.items() if value is not None})
