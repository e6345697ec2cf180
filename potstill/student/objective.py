"""The student's objective: target distributions and example weights for a weighted cross-entropy.

Cross-entropy is linear in its target, so hard labels, the teacher's distribution, any mix of the two and label
smoothing are all *one* target distribution per text, computed once before training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.config.student import StudentConfig
from potstill.student.arms import TrainingRow


def targets(rows: Sequence[TrainingRow], student: StudentConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Target distributions ``[rows, classes]`` and weights ``[rows]`` of the loss.

    ``soft_weight * p ** (1 / soft_temperature) + (1 - soft_weight) * onehot(argmax p)``, then smoothed.
    With ``class_weights: balanced`` each row's weight is divided by its (soft) class's share of all weight.
    """
    probs = np.array([row.label_probs for row in rows], dtype=np.float64)
    weights = np.array([row.weight for row in rows], dtype=np.float64)
    probs = np.maximum(probs, 0.0)
    probs /= probs.sum(axis=1, keepdims=True)
    softened = probs ** (1.0 / student.soft_temperature)
    softened /= softened.sum(axis=1, keepdims=True)
    hard = np.eye(probs.shape[1])[probs.argmax(axis=1)]
    target = student.soft_weight * softened + (1.0 - student.soft_weight) * hard
    if student.class_weights == "balanced":
        mass = (target * weights[:, None]).sum(axis=0)
        per_class = np.divide(weights.sum(), (mass > 0).sum() * mass, out=np.zeros_like(mass), where=mass > 0)
        weights = weights * (target @ per_class)
    smoothing = student.label_smoothing
    target = (1.0 - smoothing) * target + smoothing / target.shape[1]
    return target.astype(np.float32), weights.astype(np.float32)


def learning_rate(step: int, total_steps: int, peak: float, warmup_ratio: float, schedule: str) -> float:
    """Learning rate of step ``step`` (from 0): linear warm-up to ``peak``, then down to 0 at ``total_steps``."""
    warmup = round(warmup_ratio * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (1.0 - progress)


def peak_learning_rate(student: StudentConfig, parameters: int) -> float:
    """The configured learning rate; auto: one that suits the number of parameters."""
    if student.learning_rate == "auto":
        return 1e-4 if parameters < 50_000_000 else 4e-5
    return student.learning_rate
