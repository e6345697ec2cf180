"""The user's own unlabelled texts, which the teacher is to label. Neither paper has it; users do.

The texts come from the task (``unlabelled`` beside its splits) or from ``task.unlabelled``. Of more texts than are wanted
a random part by the data seed is taken: ``augment.per_class`` times ``augment.over_generate`` for each class.
Their classes are unknown, so that no prior on a class helps: relabelling takes every class for as likely as another.
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
