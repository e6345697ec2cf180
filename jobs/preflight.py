"""Find everything that is wrong before work starts, and report it at once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any

import fsspec.core

from actors.backends.identity import identify
from actors.backends.openai import read_key
from actors.inference import embedder
from actors.ledger.store import LedgerStore
from jobs.run.data import load
from jobs.run.job import Job
from jobs.run.job import prepare as read_task
from jobs.runtime import cluster, paths
from jobs.runtime.terminal import Terminal
from jobs.stages import train as training
from jobs.tracking import server as mlflow_server
from potstill.config import Config
from potstill.config.teacher import EmbeddedTeacher, OpenAITeacher
from potstill.endpoint.cost import teacher_price
from potstill.errors import InputError, LedgerError, PotstillError, Problem, TeacherError
from potstill.search.points import problems as space_problems
from potstill.strategies import STRATEGIES
from potstill.student import encoders

NODE_ANSWERS_S = 60.0


def prepare(config: Config, stages: Sequence[str], terminal: Terminal, verbose: bool = False) -> Job:
    """The job, checked as far as possible without a cluster. Raises ``InputError`` with all problems."""
    prepared: Job | None = None
    found: list[Problem] = []
    storage = _storage(config.storage)
    try:
        if storage:
            load(config)
        else:
            prepared = read_task(config, terminal, verbose)
    except InputError as error:
        found += error.problems
    except TeacherError:
        pass  # reported below, with the other problems
    if prepared and config.student.early_stopping and "finetune" in stages and not prepared.data.validation:
        message = "the task has no validation texts; set it to false, or give the task a validation split"
        found.append(Problem("student.early_stopping = True", message))
    found += [
        *space_problems(config),
        *storage,
        *_surroundings(config, stages, prepared.task.name if prepared else None),
    ]
    if found or prepared is None:
        raise InputError(found)
    return prepared


def check(job: Job, stages: Sequence[str] = ("generate", "relabel", "finetune")) -> None:
    """Check a job whose task has been read. Raises ``InputError`` with all problems."""
    found = [*_storage(job.config.storage), *_surroundings(job.config, stages, job.task.name)]
    if found:
        raise InputError(found)


def problems(config: Config, stages: Sequence[str]) -> list[Problem]:
    """The problems that ``prepare`` would raise."""
    try:
        prepare(config, stages, Terminal())
    except InputError as error:
        return list(error.problems)
    return []


def check_cluster(job: Job, stages: Sequence[str]) -> None:
    """Raises ``InputError`` if the cluster lacks resources (a request for them would wait for ever) or shared storage."""
    found = [*_resources(job.config, stages, cluster.resources(), cluster.node_cpus()), *_unshared(job.config.storage)]
    if found:
        raise InputError(found)


def _surroundings(config: Config, stages: Sequence[str], task: str | None) -> list[Problem]:
    """Problems of places, MLflow, ledger and models: everything except task and storage."""
    found = [*paths.problems(config), *mlflow_server.problems(config.tracking, config.tracking.experiment or task)]
    try:
        store = LedgerStore(config.ledger.uri)
        try:
            store.database.check_writable()  # before paying for answers that could not be stored
        finally:
            store.close()
    except LedgerError as error:
        found.append(_problem("ledger", error))
    if "generate" in stages:
        found += STRATEGIES[config.augment.strategy].problems()
    return found + _models(config, stages)


def _models(config: Config, stages: Sequence[str]) -> list[Problem]:
    """Problems of teacher and student, and resources that a local cluster can't have."""
    found: list[Problem] = []
    try:
        identify(config.teacher)  # for all stages, since its weights are part of the run's name
        if isinstance(config.teacher, OpenAITeacher) and {"generate", "relabel"} & set(stages):
            read_key(config.teacher)
            if config.teacher.budget_usd is not None and teacher_price(config.teacher) is None:
                message = (
                    f"the price of {config.teacher.model!r} is unknown, so the budget can't be enforced; set teacher.price: "
                    "{prompt, completion} in dollars per million tokens"
                )
                found.append(Problem(f"teacher.budget_usd = {config.teacher.budget_usd:g}", message))
    except TeacherError as error:
        found.append(_problem("teacher", error))
    if {"relabel", "evaluate"} & set(stages):
        try:
            embedder.locate()
        except TeacherError as error:
            found.append(_problem("embedder", error))
    bound = cluster.upper_bound()
    if bound is not None:
        return found + _resources(config, stages, bound)
    return found + (encoders.problems(config.student.model) if "finetune" in stages else [])


def _resources(
    config: Config, stages: Sequence[str], resources: dict[str, float], node_cpus: Sequence[float] = ()
) -> list[Problem]:
    found: list[Problem] = []
    if {"generate", "relabel"} & set(stages) and isinstance(config.teacher, EmbeddedTeacher):
        actors = config.teacher.actors
        have = int(resources.get("GPU", 0)) or int(resources.get("CPU", 0))
        if actors > have:
            kind = "GPU" if resources.get("GPU") else "CPU"
            message = f"the cluster has {have} {kind}s; set it to 0 (one each) or at most {have}"
            found.append(Problem(f"teacher.actors = {actors}", message))
    if "finetune" in stages:
        found += training.problems(config.student, resources, node_cpus)
    return found


def _storage(storage: str) -> list[Problem]:
    try:
        filesystem, root = fsspec.core.url_to_fs(storage)
        filesystem.makedirs(root, exist_ok=True)
        probe = f"{root}/.potstill-write-test-{uuid.uuid4().hex[:8]}"
        filesystem.touch(probe)
        filesystem.rm(probe)
    except Exception as error:  # object stores raise their own types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [Problem(f"storage = {storage!r}", f"can't be written: {reason}; choose a writable folder")]
    return []


def _unshared(storage: str) -> list[Problem]:
    """The problem of a storage folder that some node can't see. Looks for a file in it on each node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 or not paths.is_local(storage):
        return []
    filesystem, root = fsspec.core.url_to_fs(storage)
    probe = f"{root}/.potstill-node-test-{uuid.uuid4().hex[:8]}"
    filesystem.touch(probe)
    try:
        sees = ray.remote(num_cpus=0)(_sees)
        strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        asked = [sees.options(scheduling_strategy=strategy).remote(probe) for strategy in strategies]
        answers: list[Any] = ray.get(asked, timeout=NODE_ANSWERS_S)
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0]
        return [Problem(f"storage = {storage!r}", f"could not be checked on all nodes: {reason}")]
    finally:
        filesystem.rm(probe)
    blind = [str(node["NodeManagerAddress"]) for node, answer in zip(nodes, answers, strict=True) if not answer]
    if not blind:
        return []
    message = f"is not visible to the nodes {', '.join(blind)}; choose a network folder or a URL such as s3://"
    return [Problem(f"storage = {storage!r}", message)]


def _sees(path: str) -> bool:
    return os.path.exists(path)


def _problem(where: str, error: PotstillError) -> Problem:
    """An error as a problem. Its text may already begin with the field."""
    field, colon, message = str(error).partition(": ")
    return Problem(field, message) if colon and field.startswith(where) else Problem(where, str(error))
