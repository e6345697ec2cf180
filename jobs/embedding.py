"""Sentence embeddings for a stage, computed in a process of its own: the driver imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.pool import cause
from potstill.errors import StageError

SHARE = 0.01


def embed(*groups: Sequence[str]) -> list[np.ndarray]:
    """For each group of texts an array (texts, width), float32, rows of unit length."""
    import ray

    from actors.embedder import Embedder

    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
    # A trace of a CPU: it keeps off a head node that has none to give, and fits beside a teacher pool.
    embedder = ray.remote(Embedder).options(num_cpus=SHARE, runtime_env=environment).remote()
    try:
        return [ray.get(embedder.embed.remote(list(texts))) for texts in groups]
    except ray.exceptions.RayError as error:
        raise StageError(f"the texts could not be embedded: {cause(error)}") from error
    finally:
        ray.kill(embedder)
