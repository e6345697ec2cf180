"""Real training texts with their labels instead of generated ones, as a reference for synthetic data.

Li et al. call this real data; it is PromptMix's human upper bound. The data seed decides a random order; the first
``augment.per_class`` texts of every class are taken, or all if there are fewer.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill import draws
from potstill.config import AugmentConfig
from potstill.strategies.contract import Written
from potstill.task import Task, TaskData


def collect(task: Task, data: TaskData, augment: AugmentConfig, seed: int) -> Iterator[Written]:
    """Real texts, class by class."""
    for label in task.labels:
        own = [row for row in data.train if row.label == label]
        for row in draws.sample(own, augment.per_class, seed, "real", label):
            yield Written(row.text, label)
