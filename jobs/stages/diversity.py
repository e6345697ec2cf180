"""The diversity of a run's texts, as its ``diversity.json`` holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from potstill import draws
from potstill.texts import diversity

MEASURED = 20_000  # texts of a run that are measured at most, in under a second


def as_rows(embeddings: np.ndarray, labels: Sequence[str], order: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Diversity of all texts (label ``None``) and of each class; of a drawn sample above 20,000 texts.

    Computed in this process, since a teacher pool may hold every CPU of the cluster.
    """
    drawn = draws.sample(range(len(labels)), MEASURED, seed, "diversity")
    measured = diversity.by_class(embeddings[drawn], [labels[i] for i in drawn], order)
    return [asdict(one) for one in measured]
