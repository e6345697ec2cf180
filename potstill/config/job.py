"""The config: one frozen pydantic model, read from YAML, overridden with ``--set a.b=c``.

    potstill distill conf/trec6.yaml --set augment.per_class=50

Unknown fields are refused. Secrets never stand here, only the names of environment variables.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from potstill.config.files import explain, override, place_of
from potstill.config.search import SearchConfig
from potstill.config.sections import Section, home
from potstill.config.student import STUDENT_WITHOUT_EFFECT, StudentConfig
from potstill.config.teacher import WITHOUT_EFFECT, EmbeddedTeacher, TeacherConfig
from potstill.draws import digest
from potstill.errors import InputError, Problem


class TaskRef(Section):
    """Which task, and where its data is. ``task: trec6`` is short for ``task: {preset: trec6}``."""

    preset: str = Field(
        description="name of a preset in tasks/, a path to a task YAML, or a folder with {train,test}.parquet and classes.json"
    )
    data_dir: str | None = Field(
        None, description="read <data_dir>/<name>/{train,test[,validation]}.parquet instead of the preset's own data"
    )
    seeds_per_class: int = Field(
        2, ge=1, le=64, description="labelled examples a class that the teacher and the student may see"
    )
    unlabelled: str | None = Field(
        None,
        description="augment.strategy annotate: a file of texts without labels (column text; or one a line in .txt), or "
        "train: the train split's texts, labels ignored; default: the task's own unlabelled split",
    )
    max_test: int | None = Field(
        None, ge=10, description="evaluate on at most this many test texts, drawn by the data seed"
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="data seed of the labelled examples and splits alone; null: as `seed`. A search keeps it while it draws afresh",
    )


class LedgerConfig(Section):
    """Where every paid answer is kept."""

    uri: str = Field("", description="SQLAlchemy URL; default sqlite:///<POTSTILL_HOME>/ledger.db")

    @model_validator(mode="after")
    def _default(self) -> LedgerConfig:
        if not self.uri:
            object.__setattr__(self, "uri", f"sqlite:///{home()}/ledger.db")
        elif self.uri.startswith("sqlite:///~"):
            object.__setattr__(self, "uri", "sqlite:///" + str(Path(self.uri.removeprefix("sqlite:///")).expanduser()))
        return self


class Alpha(Section):
    """The mixup ratio: how much of a text belongs to its own class, drawn as low + (high - low) * Beta(a, b)."""

    low: float = Field(0.5, ge=0.5, le=1.0, description="smallest share of the text's own class")
    high: float = Field(1.0, ge=0.5, le=1.0, description="largest share of the text's own class")
    beta: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (5.0, 2.0), description="parameters of the Beta distribution"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Alpha:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
        return self


class AugmentConfig(Section):
    """What the teacher is asked to write."""

    strategy: Literal["promptmix", "few_shot", "zero_shot", "sahu2022", "gpt3mix", "eda", "real", "annotate"] = Field(
        "promptmix",
        description="where texts come from: written by the teacher (the first five), edited seeds, real texts, or your own "
        "unlabelled ones for the teacher to label",
    )
    shots: int = Field(2, ge=0, le=32, description="seeds a class shown in a prompt")
    per_class: int = Field(80, ge=1, le=100_000, description="texts a class to keep, after all filters")
    over_generate: float = Field(
        1.5, ge=1.0, le=50.0, description="texts to write for each one kept; the surest are kept"
    )
    classes_per_prompt: int = Field(4, ge=2, le=32, description="promptmix: classes shown together")
    alpha: Alpha = Alpha()
    temperature: float = Field(0.8, gt=0.0, le=2.0, description="sampling temperature of the teacher")
    top_p: float = Field(0.95, gt=0.0, le=1.0, description="nucleus sampling: share of probability kept")
    max_tokens: int = Field(64, ge=8, le=4096, description="longest text, in tokens")
    texts_per_reply: int = Field(
        3, ge=1, le=50, description="texts a chat prompt asks for; a list prompt is continued by one text"
    )
    contexts: bool = Field(True, description="vary style, length and topic where the task lists some")
    max_rounds: int = Field(3, ge=1, le=20, description="rounds of asking again for classes that fell short")


class RelabelConfig(Section):
    """What the teacher is asked about its own texts afterwards."""

    enabled: bool = Field(True, description="ask the teacher for the class of every text it wrote")
    votes: int = Field(
        2,
        ge=1,
        le=16,
        description="times a text is asked about, each with the seeds in another order; the votes are averaged",
    )
    neighbours: int = Field(
        6, ge=2, le=200, description="nearest classes offered as choices (all, where there are fewer)"
    )
    shots: int = Field(
        4, ge=0, le=100, description="seeds a class that a question shows at most; every pair of votes draws its own"
    )
    soft: bool = Field(True, description="train on the distribution over classes instead of the one class")
    min_confidence: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = Field(
        "auto", description="apply a change of label only above this (0 to 1); auto: found from the labelled seeds"
    )
    target_prior: float = Field(
        0.8, ge=0.0, le=1.0, description="prior probability that a text belongs to the class it was written for"
    )
    descriptions: Annotated[float, Field(ge=0.0, le=10.0)] | Literal["auto"] = Field(
        "auto",
        description="weight of what a sentence encoder says by the classes' names and descriptions (0 to 10); "
        "auto: up to 1.5, as far as it agrees with the teacher and the class a text was written for",
    )


class EvaluateConfig(Section):
    """What the distilled student is held against."""

    compare: tuple[Literal["seeds_only", "generated", "real_equal"], ...] = Field(
        ("seeds_only", "real_equal"),
        description="further students: on the seeds alone, on the texts without relabelling, on as many real texts",
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="bootstrap resamples behind the 95 % intervals")


class TrackingConfig(Section):
    """MLflow: where runs are logged and what the model is called in the registry."""

    uri: str = Field(
        "", description="MLflow tracking URI; default sqlite:///<POTSTILL_HOME>/mlflow.db; none: nothing is tracked"
    )
    experiment: str | None = Field(None, description="experiment name; default: the task's name")
    register_as: str | None = Field(None, description="registered model name; default: <task>-student")
    artifacts: str | None = Field(
        None, description="artifact location of a new experiment; default <POTSTILL_HOME>/mlartifacts for SQLite"
    )

    @model_validator(mode="after")
    def _default(self) -> TrackingConfig:
        if not self.uri:
            object.__setattr__(self, "uri", f"sqlite:///{home()}/mlflow.db")
        elif self.uri.startswith("sqlite:///~"):
            object.__setattr__(self, "uri", "sqlite:///" + str(Path(self.uri.removeprefix("sqlite:///")).expanduser()))
        return self


class Config(Section):
    """Everything a job needs to know."""

    task: TaskRef
    seed: int = Field(0, ge=0, description="data seed: which seeds and exemplars, which requests")
    storage: str = Field(
        "", description="folder of the runs, any fsspec path that all nodes share; default <POTSTILL_HOME>/runs"
    )
    ledger: LedgerConfig = Field(default_factory=LedgerConfig)
    teacher: TeacherConfig = EmbeddedTeacher()
    augment: AugmentConfig = AugmentConfig()
    relabel: RelabelConfig = RelabelConfig()
    student: StudentConfig = StudentConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    search: SearchConfig | None = None

    @property
    def task_seed(self) -> int:
        """The data seed of labelled examples and splits."""
        return self.seed if self.task.seed is None else self.task.seed

    @model_validator(mode="before")
    @classmethod
    def _task_shorthand(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("task"), str):
            return {**data, "task": {"preset": data["task"]}}
        return data

    @model_validator(mode="after")
    def _cross_checks(self) -> Config:
        if not self.storage:
            object.__setattr__(self, "storage", str(home() / "runs"))
        wrong = []
        if self.augment.strategy in _SHOWING_SEEDS and self.augment.shots > self.task.seeds_per_class:
            wrong.append(
                f"augment.shots = {self.augment.shots} is more than task.seeds_per_class = {self.task.seeds_per_class}; lower the one or raise the other"
            )
        if self.augment.strategy == "annotate" and not self.relabel.enabled:
            wrong.append(
                "augment.strategy = 'annotate' has the teacher label texts, and relabel.enabled is false; set it to true"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def digest(self) -> str:
        """Hash of what the config says about the result: not where things are stored or how many processes work.

        Nor where the task is: what it says, and its texts, are digested themselves (``jobs.run.folder.name_run``).
        """
        content = self.model_dump(mode="json")
        for name in ("storage", "ledger", "tracking", "search"):
            content.pop(name)
        if content["task"]["seed"] is None:  # runs from before there was such a field keep their names
            content["task"].pop("seed")
        if not content["student"]["early_stopping"]:  # runs from before there was such a field keep their names
            content["student"].pop("early_stopping")
        content["relabel"]["channel"] = "off"  # a former field: runs from before its removal keep their names
        for section, names in _WITHOUT_EFFECT.items():
            for name in names:
                content[section].pop(name, None)
        return digest(content, size=6)


_SHOWING_SEEDS = ("promptmix", "few_shot", "sahu2022", "gpt3mix")
_WITHOUT_EFFECT = {
    "task": ("preset", "data_dir", "unlabelled"),
    "teacher": WITHOUT_EFFECT,
    "student": STUDENT_WITHOUT_EFFECT,
}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply ``a.b=c`` overrides. Raises ``InputError`` with every problem."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError([Problem(str(path), "no such file; ready-made configs are in conf/")]) from None
    except OSError as error:
        raise InputError([Problem(str(path), f"can't be read: {error.strerror}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError([Problem(str(path), f"is not valid YAML: {' '.join(str(error).split())}")]) from error
    if not isinstance(content, dict):
        raise InputError([Problem(str(path), "must hold a mapping of fields, such as `task: trec6`")])
    return parse(override(content, overrides), where=str(path))


def parse(content: dict[str, Any], where: str = "config") -> Config:
    """Validate a mapping. Raises ``ConfigError`` naming ``where``, field, value and what is allowed.

    Does not check a search space against the config: ``potstill.search.points.problems`` does.
    """
    problems: list[Problem] = []
    rest: Any = content
    config: Config | None = None
    # What is wrong in one field hides what is wrong between others, so those are looked at without it.
    while config is None and rest is not None:
        try:
            config = Config.model_validate(rest)
        except ValidationError as error:
            problems += explain(error, where)
            rest = _without(rest, [place_of(item) for item in error.errors()])
    if problems or config is None:
        raise ConfigError(problems, config)
    return config


class ConfigError(InputError):
    """A config that can't be used; ``rest`` is it without the wrong fields, so that one can look what else is wrong."""

    def __init__(self, problems: Sequence[Problem], rest: Config | None = None) -> None:
        super().__init__(problems)
        self.rest = rest


def _without(content: dict[str, Any], places: Sequence[tuple[int | str, ...]]) -> dict[str, Any] | None:
    """``content`` without what stands at ``places``; ``None`` where nothing of them stands in it."""
    rest = copy.deepcopy(content)
    for place in places:
        # A complaint about the whole config is one about these.
        crossed = [("augment", "shots"), ("task", "seeds_per_class"), ("relabel", "enabled")]
        for path in [place] if place else crossed:
            target: Any = rest
            *parents, name = path
            while parents and isinstance(target.get(parents[0]), dict):
                target = target[parents.pop(0)]
            if place or not parents:  # below a value that is no section, the whole value is wrong
                target.pop(parents[0] if parents else name, None)
    return rest if rest != content else None
