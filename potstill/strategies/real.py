"""Real training texts with their labels, in place of generated ones: what synthetic data is measured against.

Li et al. call it real data, PromptMix its human upper bound. Which of them: a random order by the data seed, the first
``augment.per_class`` of every class (all, where there are fewer).
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
