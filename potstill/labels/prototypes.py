"""What stands for a class among the embeddings of texts."""

from __future__ import annotations

import numpy as np

from potstill.task import Task


def class_texts(task: Task) -> list[str]:
    """The sentence that stands for each class: its name and description, in label order."""
    return [f"{task.prompt_name(label)}: {task.classes[label].description}" for label in task.labels]


def class_prototypes(seed_embeddings: np.ndarray, seed_columns: np.ndarray, class_embeddings: np.ndarray) -> np.ndarray:
    """Unit vectors (n_classes, width): the mean of a class's own embedding and those of its seeds, all of equal weight.

    A description counts as one seed: with two seeds a class it is a third of the prototype, and it fades as seeds are
    added. ``seed_columns``: class index of each seed; ``class_embeddings``: unit rows for ``class_texts``.
    """
    prototypes = np.array(class_embeddings, dtype=np.float32)
    for column in range(len(class_embeddings)):
        own = seed_embeddings[seed_columns == column]
        if len(own):
            prototypes[column] = (class_embeddings[column] + own.sum(0)) / (1 + len(own))
    return prototypes / np.maximum(np.linalg.norm(prototypes, axis=1, keepdims=True), 1e-9)
