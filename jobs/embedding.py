"""Sentence embeddings for a stage, computed in a process of its own: the driver imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.pool import cause
from potstill.errors import StageError

SHARE = 0.01
"""Of a CPU, where no node has one yet: a trace, which keeps the process off a head node that does no work."""

_kept: dict[str, Any] = {}
"""The process that embeds, by Ray job: three stages of a job use it, and starting it takes seconds."""


def embed(*groups: Sequence[str]) -> list[np.ndarray]:
    """For each group of texts an array (texts, width), float32, rows of unit length.

    The process stays until the job leaves Ray; one that was lost with its node is started again, once.
    """
    import ray

    job = ray.get_runtime_context().get_job_id()
    known = _kept.pop(job, None)
    try:
        embedder, stays = (known, True) if known is not None else _start()
        found = [ray.get(embedder.embed.remote(list(texts))) for texts in groups]
    except ray.exceptions.RayError as error:
        if known is not None and isinstance(error, ray.exceptions.RayActorError):
            return embed(*groups)
        raise StageError(f"the texts could not be embedded: {cause(error)}") from error
    if stays:
        _kept[job] = embedder
    else:
        ray.kill(embedder)
    return found


def _start() -> tuple[Any, bool]:
    """The process, bound to a node and without a share of its CPUs, since training may need them all; and whether it
    can stay: where no node is up yet, it takes a share, so that one is started."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from actors.embedder import Embedder

    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
    here = ray.get_runtime_context().get_node_id()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    node = min(nodes, key=lambda each: each != here, default=None)
    placed: dict[str, Any] = {"num_cpus": SHARE}
    if node is not None:
        placed = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
    return ray.remote(Embedder).options(runtime_env=environment, **placed).remote(), node is not None
