"""Existing texts: real ones with their labels, or the user's own for the teacher to label.

Li et al. call the former real data; they are PromptMix's human upper bound and the reference for synthetic data. Labelling
unlabelled texts is not part of either paper. The data seed draws which texts are taken if there are more than wanted.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill import draws
from potstill.config import AugmentConfig
from potstill.strategies.contract import Written, texts_wanted
from potstill.task import Task, TaskData


def collect_real(task: Task, data: TaskData, augment: AugmentConfig, seed: int) -> Iterator[Written]:
    """At most ``augment.per_class`` real training texts of each class, class by class."""
    for label in task.labels:
        own = [row for row in data.train if row.label == label]
        for row in draws.sample(own, augment.per_class, seed, "real", label):
            yield Written(row.text, label)


def collect_unlabelled(task: Task, data: TaskData, augment: AugmentConfig, seed: int) -> Iterator[Written]:
    """At most ``augment.unlabelled`` of the unlabelled texts, for the strategy annotate ``texts_wanted`` per class. Their
    class is unknown, so relabelling uses a uniform prior."""
    count = augment.unlabelled
    if augment.strategy == "annotate":  # there are no others
        count = texts_wanted(augment) * len(task.labels)
    for text in draws.sample(data.unlabelled, count, seed, "unlabelled"):
        yield Written(" ".join(text.split()), None)
