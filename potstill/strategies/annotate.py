"""The user's own unlabelled texts, for the teacher to label. Not part of either paper.

The texts come from the task (``unlabelled`` next to its splits) or from ``task.unlabelled``. At most
``augment.per_class * augment.over_generate`` per class are taken, at random by the data seed. Their classes are
unknown, so relabelling uses a uniform prior.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill import draws
from potstill.config import AugmentConfig
from potstill.strategies.contract import Written, texts_wanted
from potstill.task import Task, TaskData


def collect(task: Task, data: TaskData, augment: AugmentConfig, seed: int) -> Iterator[Written]:
    """Texts without a class."""
    count = texts_wanted(augment) * len(task.labels)
    for text in draws.sample(data.unlabelled, count, seed, "unlabelled"):
        yield Written(" ".join(text.split()), None)
