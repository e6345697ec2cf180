"""Sentence embeddings for a stage, computed in a process of its own: the driver imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def embed(*groups: Sequence[str]) -> list[np.ndarray]:
    """For each group of texts an array (texts, width), float32, rows of unit length."""
    import ray

    from actors.embedder import Embedder

    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
    # No CPU is asked for: beside a teacher pool that holds them all it would wait for ever.
    embedder = ray.remote(Embedder).options(num_cpus=0, runtime_env=environment).remote()
    try:
        return [ray.get(embedder.embed.remote(list(texts))) for texts in groups]
    finally:
        ray.kill(embedder)
