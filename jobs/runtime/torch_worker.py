"""Torch work other than training: embed, predict small splits, register.

One process per job does it all and lives until the job leaves Ray. Importing torch and transformers takes a process 5
to 10 CPU seconds; the driver imports neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.teachers.pool import cause
from potstill.errors import StageError

SHARE = 0.01
"""Of a CPU, requested while no node has any: enough to keep the process off a head node without CPUs."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The torch worker of a job. ``node``: the one it is bound to; None if no node was up, and then it can't stay."""

    process: Any
    node: str | None


_kept: dict[str, _Kept] = {}
"""Torch workers by Ray job."""


def embed(*groups: Sequence[str]) -> list[np.ndarray]:
    """For each group of texts an array (texts, width), float32, rows of unit length. Raises ``StageError``."""
    import ray

    try:
        vectors: list[np.ndarray] = ask("embed", [list(texts) for texts in groups])
    except ray.exceptions.RayError as error:
        raise StageError(f"the texts could not be embedded: {cause(error)}") from error
    return vectors


def ask(what: str, *arguments: Any) -> Any:
    """The result of the method ``what`` of the job's ``actors.torch_worker.TorchWorker``. Raises Ray's errors.

    A process that was lost with its node is restarted once.
    """
    import ray

    job = ray.get_runtime_context().get_job_id()
    known = _kept.pop(job, None)
    try:
        now = known or _start()
        found = ray.get(getattr(now.process, what).remote(*arguments))
    except ray.exceptions.RayActorError:
        if known is not None:
            return ask(what, *arguments)
        raise
    except ray.exceptions.RayTaskError:
        _keep(job, now)  # the call failed, not the process
        raise
    _keep(job, now)
    return found


def call_here(function: Callable[..., Any], **arguments: Any) -> Any:
    """``function(**arguments)`` on the driver's node, where local paths are valid: in the torch worker if it is there,
    else in a Ray task. Raises Ray's errors."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.get_runtime_context()
    kept = _kept.get(context.get_job_id())
    if kept is not None and kept.node == context.get_node_id() and _lives(kept):
        return ray.get(kept.process.call.remote(function, arguments))
    here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
    task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    return ray.get(task.remote(**arguments))


def _lives(one: _Kept) -> bool:
    import ray

    try:
        return bool(ray.get(one.process.ready.remote()))
    except ray.exceptions.RayActorError:
        return False


def _keep(job: str, one: _Kept) -> None:
    import ray

    if one.node is None:
        ray.kill(one.process)
    else:
        _kept[job] = one


def _start() -> _Kept:
    """A new torch worker, bound to a node but without a share of its CPUs, since training may need them all. While no
    node is up it requests a share, so that one is started."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from actors.torch_worker import ON_CPU, VARIABLES, TorchWorker

    here = ray.get_runtime_context().get_node_id()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    node = min(nodes, key=lambda each: each != here, default=None)
    placed: dict[str, Any] = {"num_cpus": SHARE}
    if node is not None:
        placed = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
    options = {"runtime_env": {"env_vars": {**VARIABLES, **ON_CPU}}, **placed}
    return _Kept(ray.remote(TorchWorker).options(**options).remote(), node)
