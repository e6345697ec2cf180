"""How diverse a run's texts are; sets too large for one process are compared on the whole cluster.

distances = nearest_on_cluster(embeddings)      # each row's distance to the nearest other
diversity.by_class(embeddings, labels, order, nearest=nearest)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from actors.nearest import BLOCK, COLUMN, OF_COLUMNS, OF_ROWS, ROW, BlockNearest, pair_table
from potstill import draws
from potstill.errors import StageError
from potstill.texts import diversity

LARGE = 100_000  # rows from which on a cluster is worth starting a pipeline for: 20 s on two cores
MEASURED = 20_000  # texts of a run that are measured, at most: under a second, and stages don't wait for it


def as_rows(embeddings: np.ndarray, labels: Sequence[str], order: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Diversity overall (label ``None``) and of each class, as a run's ``diversity.json`` holds it; of a drawn sample
    where there are more than 20,000 texts. In this process: a teacher pool may hold every CPU of the cluster."""
    drawn = draws.sample(range(len(labels)), MEASURED, seed, "diversity")
    measured = diversity.by_class(embeddings[drawn], [labels[i] for i in drawn], order)
    return [asdict(one) for one in measured]


def nearest(embeddings: np.ndarray) -> np.ndarray:
    """``nearest_distances``, here or on the connected cluster with its CPUs or GPUs free, whichever is the quicker."""
    if len(embeddings) < LARGE:
        return diversity.nearest_distances(embeddings)
    return nearest_on_cluster(embeddings)


def nearest_on_cluster(embeddings: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """Each row's cosine distance to the nearest other row, (n,), by all GPUs of the connected cluster, else all CPUs.

    The rows must fit a node's object store. Raises ``InputError`` for NaN or infinity, ``StageError`` where the
    cluster gives up.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    diversity.check(embeddings)
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    options: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    if not gpus:
        options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    workers = max(1, gpus or int(resources.get("CPU", 1)))
    pairs = pair_table(len(embeddings), block)
    best = np.full(len(embeddings), -np.inf, dtype=np.float32)
    context = DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        compared = ray.data.from_arrow([pairs.slice(i, 1) for i in range(pairs.num_rows)]).map_batches(
            BlockNearest,
            fn_constructor_args=(ray.put(embeddings), block, "cuda" if gpus else "cpu"),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(workers, pairs.num_rows)),
            max_restarts=0,
            **options,
        )
        for batch in compared.iter_batches(batch_size=None, batch_format="pyarrow"):
            for one in batch.to_pylist():
                for start, maxima in ((one[ROW], one[OF_ROWS]), (one[COLUMN], one[OF_COLUMNS])):
                    part = best[start : start + len(maxima)]
                    np.maximum(part, np.asarray(maxima, np.float32), out=part)
    except ray.exceptions.RayError as error:
        raise StageError(f"the texts' distances could not be computed: {str(error).splitlines()[-1]}") from error
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before
    return np.clip(1.0 - best, 0.0, 2.0)
