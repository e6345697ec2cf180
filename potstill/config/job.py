"""The config: one frozen pydantic model, read from YAML, overridden with ``--set a.b=c``.

    potstill distill conf/trec6.yaml --set augment.per_class=50

Unknown fields are errors. Secrets never appear here, only the names of the environment variables that hold them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from potstill.config.files import explain, override, place_of, read_yaml
from potstill.config.search import SearchConfig
from potstill.config.sections import Section, database_uri, home
from potstill.config.student import STUDENT_WITHOUT_EFFECT, StudentConfig
from potstill.config.teacher import WITHOUT_EFFECT, EmbeddedTeacher, TeacherConfig
from potstill.draws import digest
from potstill.errors import InputError, Problem


class TaskRef(Section):
    """The task and its data. ``task: trec6`` is short for ``task: {preset: trec6}``."""

    preset: str = Field(description="preset in tasks/, task YAML, or folder with {train,test}.parquet and classes.json")
    data_dir: str | None = Field(None, description="read `<data_dir>/<name>/{train,test[,validation]}.parquet` instead")
    seeds_per_class: int = Field(2, ge=1, le=64, description="labelled examples per class for teacher and student")
    unlabelled: str | None = Field(
        None,
        description="real texts for the teacher to label, beside those that it writes: a file (column `text`, or one per line "
        "in .txt), or `train` for the train split without its labels; default: the task's unlabelled split, if it has one",
    )
    max_test: int | None = Field(None, ge=10, description="maximum number of test texts, sampled with the data seed")
    seed: int | None = Field(
        None,
        ge=0,
        description="data seed for the labelled examples and splits only; null: same as `seed`. A search keeps it fixed "
        "when it redraws everything else",
    )


class LedgerConfig(Section):
    """The ledger: a database of all answers paid for."""

    uri: str = Field("", description="SQLAlchemy URL; default: `sqlite:///<POTSTILL_HOME>/ledger.db`")

    @field_validator("uri")
    @classmethod
    def _default(cls, value: str) -> str:
        return database_uri(value, "ledger.db")


class Alpha(Section):
    """The mixup ratio: the share of the target class in a text, drawn as low + (high - low) * Beta(a, b)."""

    low: float = Field(0.5, ge=0.5, le=1.0, description="smallest share of the target class")
    high: float = Field(1.0, ge=0.5, le=1.0, description="largest share of the target class")
    beta: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (5.0, 2.0), description="parameters of the Beta distribution"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Alpha:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
        return self


class AugmentConfig(Section):
    """How training texts are generated."""

    strategy: Literal["promptmix", "few_shot", "zero_shot", "sahu2022", "gpt3mix", "eda", "real", "annotate"] = Field(
        "promptmix",
        description="source of the texts: the first five strategies ask the teacher to write them, eda edits the seeds, real "
        "takes real texts, annotate has the teacher label your unlabelled texts",
    )
    unlabelled: int = Field(
        500,
        ge=0,
        le=1_000_000,
        description="maximum number of unlabelled texts to label (task.unlabelled); texts are only written for classes of "
        "which there seem to be fewer than wanted among them; 0: none",
    )
    shots: int = Field(2, ge=0, le=32, description="seeds per class shown in a prompt")
    per_class: int = Field(80, ge=1, le=100_000, description="texts per class to keep after all filters")
    over_generate: float = Field(1.5, ge=1.0, le=50.0, description="texts generated per text kept (the most confident)")
    classes_per_prompt: int = Field(4, ge=2, le=32, description="promptmix: classes per prompt")
    alpha: Alpha = Alpha()
    temperature: float = Field(0.8, gt=0.0, le=2.0, description="the teacher's sampling temperature")
    top_p: float = Field(0.95, gt=0.0, le=1.0, description="nucleus sampling: probability mass kept")
    max_tokens: int = Field(64, ge=8, le=4096, description="maximum length of a text, in tokens")
    texts_per_reply: int = Field(3, ge=1, le=50, description="texts per chat prompt; a list prompt yields one")
    contexts: bool = Field(True, description="vary style, length and topic if the task lists any")
    max_rounds: int = Field(3, ge=1, le=20, description="generation rounds for classes short of texts")


class RelabelConfig(Section):
    """How the teacher relabels the generated texts."""

    enabled: bool = Field(True, description="ask the teacher to classify every generated text")
    votes: int = Field(1, ge=1, le=16, description="votes per text, each to the question asked in another way")
    trial: int = Field(
        48,
        ge=0,
        le=10_000,
        description="texts on which six ways of asking are tried first (at most a sixth of all; from 16 on): the `votes` ways "
        "whose answers tell most about the texts are used for all; 0: the first ways, without a trial",
    )
    neighbours: int = Field(6, ge=2, le=200, description="nearest classes offered as choices; all if there are fewer")
    shots: int = Field(4, ge=0, le=100, description="maximum seeds per class in a question, drawn per pair of votes")
    soft: bool = Field(True, description="train on the distribution over classes rather than on a single class")
    min_confidence: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = Field(
        "auto", description="change a label only above this confidence; auto: calibrated on the labelled seeds"
    )
    target_prior: float = Field(0.8, ge=0.0, le=1.0, description="prior probability of a text's target class")
    descriptions: float = Field(
        1.0,
        ge=0.0,
        le=10.0,
        description="weight of a regression on embeddings of the seeds and class descriptions, beside the teacher's answer",
    )

    @field_validator("descriptions", mode="before")
    @classmethod
    def _auto_of_older_files(cls, value: Any) -> Any:
        return 1.0 if value == "auto" else value


class EvaluateConfig(Section):
    """The students that the distilled one is compared with."""

    compare: tuple[Literal["seeds_only", "generated", "real_equal"], ...] = Field(
        ("seeds_only", "real_equal"),
        description="additional students, trained on the seeds only, on the generated texts before relabelling, or on an "
        "equal number of real texts",
    )
    teacher: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="on how many test texts the teacher itself is scored, which shows whether teacher or student is the "
        "limit; auto: 200 for an embedded teacher, none for one that is paid for",
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="bootstrap resamples for the 95 % intervals")


class TrackingConfig(Section):
    """MLflow tracking and the name of the registered model."""

    uri: str = Field("", description="MLflow URI or `none`; default: `sqlite:///<POTSTILL_HOME>/mlflow.db`")
    experiment: str | None = Field(None, description="experiment name; default: the task's name")
    register_as: str | None = Field(None, description="registered model name; default: `<task>-student`")
    artifacts: str | None = Field(
        None, description="artifact folder or URI of a new experiment; with SQLite: `<POTSTILL_HOME>/mlartifacts`"
    )

    @field_validator("uri")
    @classmethod
    def _default(cls, value: str) -> str:
        return database_uri(value, "mlflow.db")


class Config(Section):
    """The config of a job."""

    task: TaskRef
    seed: int = Field(0, ge=0, description="data seed: draws the labelled seeds, the exemplars and the requests")
    storage: str = Field("", description="runs folder, an fsspec path for all nodes; default: `<POTSTILL_HOME>/runs`")
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
        """The data seed for labelled examples and splits."""
        return self.seed if self.task.seed is None else self.task.seed

    @model_validator(mode="before")
    @classmethod
    def _shorthand_and_former_fields(cls, data: Any) -> Any:
        """``task: trec6`` for ``task: {preset: trec6}``; and ``relabel.channel: off``, a former default that runs keep."""
        if not isinstance(data, dict):
            return data
        if isinstance(data.get("task"), str):
            data = {**data, "task": {"preset": data["task"]}}
        if isinstance(data.get("relabel"), dict) and data["relabel"].get("channel") in ("off", False):
            data = {**data, "relabel": {name: one for name, one in data["relabel"].items() if name != "channel"}}
        return data

    @field_validator("storage")
    @classmethod
    def _default_storage(cls, value: str) -> str:
        return value or str(home() / "runs")

    @model_validator(mode="after")
    def _cross_checks(self) -> Config:
        wrong = []
        if self.augment.strategy in _SHOWING_SEEDS and self.augment.shots > self.task.seeds_per_class:
            wrong.append(
                f"augment.shots = {self.augment.shots} is more than task.seeds_per_class = {self.task.seeds_per_class}; "
                "lower the first or raise the second"
            )
        if self.augment.strategy == "annotate" and not self.relabel.enabled:
            wrong.append("augment.strategy = 'annotate' needs relabel.enabled; set it to true")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def digest(self) -> str:
        """Hash of the fields that decide the result, so not of storage locations or numbers of processes.

        The task's location is left out too: its content and texts have their own digests (``jobs.run.folder.name_run``).
        """
        content = self.model_dump(mode="json")
        for name in ("storage", "ledger", "tracking", "search"):
            content.pop(name)
        # These fields were added later: while they are off, existing runs keep their names.
        if content["task"]["seed"] is None:
            content["task"].pop("seed")
        if not content["student"]["early_stopping"]:
            content["student"].pop("early_stopping")
        content["relabel"]["channel"] = "off"  # a removed field: existing runs keep their names
        for section, names in _WITHOUT_EFFECT.items():
            for name in names:
                content[section].pop(name, None)
        return digest(content, size=6)


_SHOWING_SEEDS = ("promptmix", "few_shot", "sahu2022", "gpt3mix")
_TASK_WITHOUT_EFFECT = ("preset", "data_dir", "unlabelled")
_WITHOUT_EFFECT = {"task": _TASK_WITHOUT_EFFECT, "teacher": WITHOUT_EFFECT, "student": STUDENT_WITHOUT_EFFECT}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply ``a.b=c`` overrides. Raises ``InputError`` with all problems."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError([Problem(str(path), "must be a mapping of fields, such as `task: trec6`")])
    return parse(override(content, overrides), where=str(path))


def parse(content: dict[str, Any], where: str = "config") -> Config:
    """Validate a mapping. Raises ``ConfigError`` with ``where``, field, value and what is allowed.

    ``potstill.search.points.problems`` checks a search space against the config.
    """
    problems: list[Problem] = []
    rest: Any = content
    config: Config | None = None
    # Pydantic skips checks across fields while a single field is invalid: validate again without the invalid fields.
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
    """An invalid config. ``rest`` is the config without the invalid fields, for further checks."""

    def __init__(self, problems: Sequence[Problem], rest: Config | None = None) -> None:
        super().__init__(problems)
        self.rest = rest


def _without(content: dict[str, Any], places: Sequence[tuple[int | str, ...]]) -> dict[str, Any] | None:
    """``content`` without the fields at ``places``; None if it holds none of them."""
    rest = copy.deepcopy(content)
    for place in places:
        # An error about the whole config comes from the cross-checks of these fields.
        crossed = [("augment", "shots"), ("task", "seeds_per_class"), ("relabel", "enabled")]
        for path in [place] if place else crossed:
            target: Any = rest
            *parents, name = path
            while parents and isinstance(target.get(parents[0]), dict):
                target = target[parents.pop(0)]
            if place or not parents:  # if a parent is not a section, remove the parent's whole value
                target.pop(parents[0] if parents else name, None)
    return rest if rest != content else None
