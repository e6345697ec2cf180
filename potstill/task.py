"""Tasks: classes, descriptions, seeds and the location of the texts.

This module parses task YAML. ``jobs/run/data.py`` reads the data, which may need a network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from potstill.config.files import explain
from potstill.config.sections import Section
from potstill.draws import digest
from potstill.errors import InputError, Problem

PRESETS = Path(__file__).resolve().parent.parent / "tasks"
_KEPT_TAGS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class ClassSpec(Section):
    """One class. ``prompt_name`` replaces the id in prompts."""

    description: str = Field(min_length=3, description="one sentence saying which texts belong to the class")
    prompt_name: str | None = None


class Contexts(Section):
    """Generation contexts (Li et al. 2023, sec. 3.2): styles, lengths and topics to vary between requests."""

    styles: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    class_topics: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class HubData(Section):
    """A Parquet data set on a hub. ``verified``: whether the id was reachable when the task was written."""

    dataset: str
    config: str | None = None
    revision: str | None = None
    splits: dict[str, str]
    verified: bool = False


class DataSource(Section):
    """The source of the splits: files relative to the YAML, URLs, or a hub data set."""

    files: dict[str, str] | None = None
    hub: HubData | None = None
    text_column: str = "text"
    label_column: str = "label"
    label_map: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        if (self.files is None) == (self.hub is None):
            raise ValueError("needs exactly one of `files` and `hub`")
        return self


class Seed(Section):
    """One labelled example available to teacher and student."""

    text: str = Field(min_length=1)
    label: str


class Task(Section):
    """A classification task as described by its YAML. The order of ``classes`` is the label order."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    description: str = Field(min_length=3)
    text_kind: str = "text"
    attribute: str = Field("Class", min_length=1)
    """What the classes are classes of, as a prompt says it: Topic, Emotion, Intent."""
    source: str = "short texts"
    language: str = "en"
    licence: str = "not stated"
    subjectivity: int | None = Field(
        None,
        ge=1,
        description="rank in Li et al. 2023, where 1 is the least subjective; unset if not in their study",
    )
    classes: dict[str, ClassSpec] = Field(min_length=2)
    contexts: Contexts = Contexts()
    data: DataSource
    seeds: tuple[Seed, ...] = ()

    @field_validator("classes", mode="before")
    @classmethod
    def _plain_descriptions(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): {"description": spec} if isinstance(spec, str) else spec for name, spec in value.items()}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        complaints = []
        folded: dict[str, str] = {}
        spelt: dict[str, str] = {}
        classes = ", ".join(map(repr, self.classes))
        for name in self.classes:
            other = folded.setdefault(name.casefold().strip(), name)
            twin = spelt.setdefault(" ".join(self.prompt_name(name).casefold().replace("_", " ").split()), name)
            if other != name:
                complaints.append(f"classes {other!r} and {name!r} differ only in case or spacing")
            elif twin != name:
                complaints.append(
                    f"classes {twin!r} and {name!r} are both {self.prompt_name(name)!r} in prompts; change one prompt_name"
                )
        for where, labels in {
            "seeds": [seed.label for seed in self.seeds],
            "data.label_map": list(self.data.label_map.values()),
            "contexts.class_topics": list(self.contexts.class_topics),
        }.items():
            unknown = sorted(set(labels) - set(self.classes))
            if unknown:
                complaints.append(f"{where} names {', '.join(map(repr, unknown))}, not among the classes {classes}")
        if complaints:
            raise ValueError("; ".join(complaints))
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(self.classes)

    def prompt_name(self, label: str) -> str:
        """How prompts spell a class."""
        return self.classes[label].prompt_name or label.replace("_", " ")


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A real text and its class. ``example_id`` is stable across runs."""

    example_id: str
    text: str
    label: str


@dataclass(frozen=True, slots=True)
class TaskData:
    """The real texts of a task, split by the data seed.

    ``seeds``: the only labelled texts that the teacher and the distilled student see. ``train``: the other real training
    texts, used only for the equal-size comparison. ``validation``: the task's own split, or taken from train. ``test``:
    used for the final scores and, without labels, for decontamination. ``unlabelled``: texts for the strategy
    ``annotate``, empty for other strategies.
    """

    seeds: tuple[LabelledText, ...]
    train: tuple[LabelledText, ...]
    validation: tuple[LabelledText, ...]
    test: tuple[LabelledText, ...]
    unlabelled: tuple[str, ...] = ()

    def digest(self) -> str:
        """Hash of the seeds and test texts with their labels, and of any unlabelled texts."""
        labelled = [[(row.text, row.label) for row in rows] for rows in (self.seeds, self.test)]
        return digest([*labelled, list(self.unlabelled)] if self.unlabelled else labelled, size=8)

    def test_digest(self) -> str:
        """Hash of the test texts with their labels; scores with the same hash are comparable."""
        return digest([(row.text, row.label) for row in self.test], size=8)


class _TaskLoader(yaml.SafeLoader):
    """Loads all scalars as text and rejects repeated keys, which YAML would silently overwrite.

    YAML 1.1 reads yes as True, 010 as 8 and 2024-01-01 as a date, which would change class names. Reading everything as
    text is safe: pydantic converts the few numbers and booleans of a task.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name for it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _unique_mapping(loader: _TaskLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=deep)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} appears twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_TaskLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def find_shipped(name: str) -> Path | None:
    """The YAML of a preset in tasks/; None if there is no such preset."""
    places = (PRESETS / f"{name}.yaml", PRESETS / name / f"{name}.yaml") if Path(name).name == name else ()
    return next((place for place in places if place.is_file()), None)


def find(preset: str) -> Path:
    """The YAML or layout folder for ``preset``. Raises ``InputError`` with the known names.

    A shipped preset takes precedence over a local folder of the same name.
    """
    for candidate in (find_shipped(preset), Path(preset).expanduser()):
        if candidate is not None and (candidate.is_file() or (candidate / "classes.json").is_file()):
            return candidate.absolute()
    known = ", ".join(sorted(path.stem for path in [*PRESETS.glob("*.yaml"), *PRESETS.glob("*/*.yaml")]))
    message = f"no such task; use one of {known}, or the path of a task YAML or of a folder with classes.json"
    raise InputError([Problem(f"task.preset = {preset!r}", message)])


def read(path: Path) -> Task:
    """Read a task from a YAML file or a layout folder. Raises ``InputError``."""
    if path.is_dir():
        return _read_folder(path)
    try:
        content = yaml.load(path.read_text(), _TaskLoader)  # noqa: S506 (a SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError([Problem(str(path), f"can't be read as YAML: {' '.join(str(error).split())}")]) from error
    return _validate(content, str(path))


def _read_folder(path: Path) -> Task:
    place = path / "classes.json"

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError([Problem(str(place), f"{', '.join(map(repr, twice))} appears twice")])
        return dict(pairs)

    try:
        classes = json.loads(place.read_text(), object_pairs_hook=without_repeats)
    except (OSError, ValueError) as error:
        raise InputError([Problem(str(place), f"can't be read as JSON: {' '.join(str(error).split())}")]) from error
    if not isinstance(classes, dict):
        raise InputError([Problem(str(place), "must be a mapping of class names to descriptions")])
    splits = [split for split in ("train", "test", "validation") if (path / f"{split}.parquet").is_file()]
    files = {split: f"{split}.parquet" for split in splits}
    description = f"Texts of {path.name}, by class."
    content = {"name": path.name, "description": description, "classes": classes, "data": {"files": files}}
    return _validate(content, str(path))


def _validate(content: Any, where: str) -> Task:
    if not isinstance(content, dict):
        raise InputError([Problem(where, "must be a mapping with name, classes and data")])
    try:
        return Task.model_validate(content)
    except ValidationError as error:
        raise InputError(explain(error, where)) from error
