"""What of a job needs torch and is no training: sentence embeddings, predictions of small splits, registering.

All of it is done by one process that stays until the job leaves Ray. Importing torch and transformers takes a process
5 to 10 CPU seconds; the driver imports neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.teachers.pool import cause
from potstill.errors import StageError

SHARE = 0.01
"""Of a CPU, where no node has one yet: a trace, which keeps the process off a head node that does no work."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The process of a job. ``node``: the one it is bound to; ``None`` where no node was up, and then it can't stay."""

    process: Any
    node: str | None


_kept: dict[str, _Kept] = {}
"""By Ray job."""


def embed(*groups: Sequence[str]) -> list[np.ndarray]:
    """For each group of texts an array (texts, width), float32, rows of unit length. Raises ``StageError``."""
    import ray

    try:
        found: list[np.ndarray] = ask("embed", [list(texts) for texts in groups])
    except ray.exceptions.RayError as error:
        raise StageError(f"the texts could not be embedded: {cause(error)}") from error
    return found


def ask(what: str, *arguments: Any) -> Any:
    """What a method of ``actors.torch_worker.TorchWorker`` returns; raises what Ray raises.

    A process that was lost with its node is started again, once.
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
        _keep(job, now)  # what it was asked for went wrong, not the process
        raise
    _keep(job, now)
    return found


def call_here(function: Callable[..., Any], **arguments: Any) -> Any:
    """``function(**arguments)`` on the driver's node, where places of this machine mean what they say: by the process
    that stays, if that is where it is, else in a Ray task. Raises what Ray raises."""
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
    """The process, bound to a node and without a share of its CPUs, since training may need them all. Where no node is
    up yet it takes a share, so that one is started."""
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
