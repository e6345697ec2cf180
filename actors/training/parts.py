"""What a loop trains on: rows with a loss each, so that a batch can be split between workers in any way.

``ClassRows``: texts and their distributions over the classes. ``GroupRows``: groups of texts to be told apart
(``potstill.student.groups``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from actors.training import head
from actors.training.encoder import Encoder
from potstill.config.student import StudentConfig
from potstill.student import batches, objective
from potstill.student.arms import TrainingRow
from potstill.student.groups import PER_STEP, draw_groups

_TEMPERATURE = 0.1  # of the contrastive loss, as in the paper


@dataclass(frozen=True)
class Part(ABC):
    """``lengths``: tokens of each row; ``weights``: of its loss, ``[rows]``; ``peak_share``: of the configured learning
    rate."""

    lengths: NDArray[np.int64]
    weights: NDArray[np.float32]
    peak_share: ClassVar[float] = 1.0

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def plan(self, student: StudentConfig, seed: int) -> list[batches.Step]:
        """All optimiser steps."""

    @abstractmethod
    def losses(self, model: Any, encoder: Encoder, chosen: NDArray[np.int64], device: Any) -> Any:
        """The loss of each chosen row, without its weight, ``[rows]``."""


@dataclass(frozen=True)
class ClassRows(Part):
    """``ids``: token ids of each text; ``targets``: ``[rows, classes]``. The loss is the cross-entropy."""

    ids: list[list[int]]
    targets: NDArray[np.float32]

    @classmethod
    def of(cls, rows: Sequence[TrainingRow], texts: Mapping[str, list[int]], student: StudentConfig) -> ClassRows:
        """The rows with their token ids from ``texts``."""
        ids = [texts[row.text] for row in rows]
        targets, weights = objective.targets(rows, student)
        return cls(np.array([len(row) for row in ids], dtype=np.int64), weights, ids, targets)

    def plan(self, student: StudentConfig, seed: int) -> list[batches.Step]:
        return batches.plan_steps(len(self), student.batch_size, student.epochs, student.min_steps, seed)

    def losses(self, model: Any, encoder: Encoder, chosen: NDArray[np.int64], device: Any) -> Any:
        import torch

        logits = model(**encoder.collate([self.ids[row] for row in chosen], device)).logits.float()
        targets = torch.from_numpy(self.targets[chosen]).to(device)
        return -(targets * torch.log_softmax(logits, dim=-1)).sum(dim=-1)


@dataclass(frozen=True)
class GroupRows(Part):
    """``ids``: token ids of each group's texts; ``classes``: their classes. The loss is the supervised contrastive one
    within the group (Khosla et al., NeurIPS 2020, equation 2)."""

    ids: list[list[list[int]]]
    classes: list[NDArray[np.int64]]
    # A few texts: at the full rate the encoder forgets what it knew of others.
    peak_share: ClassVar[float] = 0.3

    @classmethod
    def of(cls, texts: ClassRows, student: StudentConfig, seed: int) -> GroupRows:
        """The groups of all optimiser steps."""
        classes = texts.targets.argmax(axis=1)
        groups = draw_groups(classes, student.contrastive_steps * PER_STEP, seed)
        return cls(
            np.array([texts.lengths[group].sum() for group in groups]),
            np.ones(len(groups), dtype=np.float32),
            [[texts.ids[text] for text in group] for group in groups],
            [classes[group] for group in groups],
        )

    def plan(self, student: StudentConfig, seed: int) -> list[batches.Step]:
        return batches.plan_steps(len(self), PER_STEP, 1, 1, seed)

    def losses(self, model: Any, encoder: Encoder, chosen: NDArray[np.int64], device: Any) -> Any:
        import torch

        with head.watch(encoder.model) as seen:
            logits = model(**encoder.collate([ids for group in chosen for ids in self.ids[group]], device)).logits
        features = torch.nn.functional.normalize(seen[0].float(), dim=-1)
        classes = [torch.from_numpy(self.classes[group]).to(device) for group in chosen]
        losses = [_contrast(*pair) for pair in zip(features.split([len(one) for one in classes]), classes, strict=True)]
        # The head's gradient must exist, though it is zero: ZeRO exchanges that of every parameter.
        return torch.stack(losses) + 0.0 * logits.float().sum()


def _contrast(features: Any, classes: Any) -> Any:
    """The mean over the texts of -log P(another text of the same class | all other texts)."""
    import torch

    itself = torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    log_probs = torch.log_softmax((features @ features.T / _TEMPERATURE).masked_fill(itself, -1e9), dim=-1)
    same = (classes[:, None] == classes[None, :]) & ~itself
    return -((log_probs * same).sum(dim=-1) / same.sum(dim=-1)).mean()
