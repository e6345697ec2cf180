"""What a fit is told and what it reports: plain data that travels between driver and workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from potstill.config.student import StudentConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmJob:
    """One arm as a worker gets it. ``folder`` holds ``rows.parquet`` (and ``validation.parquet``) and will
    hold ``model/`` and, written last, ``complete.json``. ``anchor``: the folder of the arm that has a say in
    this one (``potstill.student.second_opinion``); it is complete when this one's turn comes."""

    name: str
    digest: str
    seed: int
    folder: str
    anchor: str | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What every worker of a fit is told. ``threads``: CPU threads a worker; ``device``: cpu or cuda;
    ``record``: keep a record of which row was computed when (``actors/coverage.py``; arms in local folders)."""

    labels: tuple[str, ...]
    student: StudentConfig
    arms: tuple[ArmJob, ...]
    device: str = "cpu"
    threads: int = 1
    record: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data: what travels names no class of this package."""
        return {
            **asdict(self),
            "student": self.student.model_dump(mode="json"),
            "arms": [asdict(arm) for arm in self.arms],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingJob:
        """The job that ``to_json`` wrote."""
        return cls(
            labels=tuple(data["labels"]),
            student=StudentConfig(**data["student"]),
            arms=tuple(ArmJob(**arm) for arm in data["arms"]),
            device=data["device"],
            threads=data["threads"],
            record=data["record"],
        )


@dataclass(frozen=True, slots=True)
class ArmReport:
    """How the training of one arm went, as ``complete.json`` keeps it.

    ``losses`` and ``learning_rates`` a step; ``seconds`` without loading and export; ``tokens`` are real ones,
    ``padded_tokens`` all that were computed; ``best_step`` is the step whose weights were exported; ``say``:
    what the anchor had to say (``second_opinion.Say``); ``warnings``: checkpoints that could not be made;
    ``resumed``: the steps after which training went on from a checkpoint.
    """

    digest: str
    steps: int
    losses: list[float]
    learning_rates: list[float]
    examples: int
    tokens: int
    padded_tokens: int
    truncated: int
    seconds: float
    workers: int
    best_step: int
    say: dict[str, float | None] = field(default_factory=dict)
    validation: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
