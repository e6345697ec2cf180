"""The description of a fit: plain data that the driver sends to its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from potstill.config.student import StudentConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmJob:
    """One arm as a worker gets it. ``folder`` holds ``rows.parquet`` (and ``validation.parquet``); training adds
    ``model/`` and, last, ``complete.json``. ``start``, ``anchor``: the folders of the earlier arms that this one starts
    from and whose opinion it takes (``potstill.student.arms.Arm``)."""

    name: str
    digest: str
    seed: int
    folder: str
    contrastive: bool = False
    start: str | None = None
    self_trained: bool = False
    anchor: str | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What every worker of a fit gets. ``device``: cpu or cuda; ``threads``: CPU threads per worker."""

    labels: tuple[str, ...]
    student: StudentConfig
    arms: tuple[ArmJob, ...]
    device: str = "cpu"
    threads: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain data, so that no pickled class of this package crosses process borders."""
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
        )
