"""Everything that can be found wrong before work starts, told at once."""

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
from jobs.run import data as loading
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
from potstill.search import points as search_points
from potstill.strategies import STRATEGIES
from potstill.student import encoders

NODE_ANSWERS_S = 60.0


def prepare(config: Config, stages: Sequence[str], terminal: Terminal, verbose: bool = False) -> Job:
    """The job's context, where nothing is wrong as far as shows without a cluster. Raises ``InputError`` with all."""
    prepared: Job | None = None
    found: list[Problem] = []
    storage = _storage(config.storage)
    try:
        if storage:
            loading.load(config)
        else:
            prepared = read_task(config, terminal, verbose)
    except InputError as error:
        found += error.problems
    except TeacherError:
        pass  # told below, with whatever else is wrong
    if prepared and config.student.early_stopping and "finetune" in stages and not prepared.data.validation:
        message = "the task has no validation texts to stop by; set it to false, or give the task a validation split"
        found.append(Problem("student.early_stopping = True", message))
    found += [
        *search_points.problems(config),
        *storage,
        *_surroundings(config, stages, prepared.task.name if prepared else None),
    ]
    if found or prepared is None:
        raise InputError(found)
    return prepared


def check(job: Job, stages: Sequence[str] = ("generate", "relabel", "finetune")) -> None:
    """The same for a job whose task has been read. Raises ``InputError`` with all problems."""
    found = [*_storage(job.config.storage), *_surroundings(job.config, stages, job.task.name)]
    if found:
        raise InputError(found)


def problems(config: Config, stages: Sequence[str]) -> list[Problem]:
    """What ``prepare`` would complain about."""
    try:
        prepare(config, stages, Terminal())
    except InputError as error:
        return list(error.problems)
    return []


def check_cluster(job: Job, stages: Sequence[str]) -> None:
    """What the cluster must have. Asking for what is not there would wait for ever. Raises ``InputError``."""
    found = [*_resources(job.config, stages, cluster.resources(), cluster.node_cpus()), *_unshared(job.config.storage)]
    if found:
        raise InputError(found)


def _surroundings(config: Config, stages: Sequence[str], task: str | None) -> list[Problem]:
    """Everything but task and storage: places, MLflow, ledger, models."""
    found = [*paths.problems(config), *mlflow_server.problems(config.tracking, config.tracking.experiment or task)]
    try:
        store = LedgerStore(config.ledger.uri)
        try:
            store.database.check_writable()  # before anything is paid that could not be kept
        finally:
            store.close()
    except LedgerError as error:
        found.append(_problem("ledger", error))
    if "generate" in stages:
        found += STRATEGIES[config.augment.strategy].problems()
    return found + _models(config, stages)


def _models(config: Config, stages: Sequence[str]) -> list[Problem]:
    """Teacher and student, and what a local cluster can't have."""
    found: list[Problem] = []
    try:
        identify(config.teacher)  # whatever the stages: its weights are part of the run's name
        if isinstance(config.teacher, OpenAITeacher) and {"generate", "relabel"} & set(stages):
            read_key(config.teacher)
            if config.teacher.budget_usd is not None and teacher_price(config.teacher) is None:
                message = (
                    f"no price of {config.teacher.model!r} is known, so it can't be kept; set teacher.price: "
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
    except Exception as error:  # object stores raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [Problem(f"storage = {storage!r}", f"can't be written: {reason}; choose a folder that you may write")]
    return []


def _unshared(storage: str) -> list[Problem]:
    """A folder of one machine is no place for runs of several: each node is asked whether it sees a file in it."""
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
        return [Problem(f"storage = {storage!r}", f"could not be looked for on all nodes: {reason}")]
    finally:
        filesystem.rm(probe)
    blind = [str(node["NodeManagerAddress"]) for node, answer in zip(nodes, answers, strict=True) if not answer]
    if not blind:
        return []
    message = f"is not shared by the nodes {', '.join(blind)}; choose a network folder or a URL such as s3://"
    return [Problem(f"storage = {storage!r}", message)]


def _sees(path: str) -> bool:
    return os.path.exists(path)


def _problem(where: str, error: PotstillError) -> Problem:
    """An error that says itself which field it is about, as a problem."""
    field, colon, message = str(error).partition(": ")
    return Problem(field, message) if colon and field.startswith(where) else Problem(where, str(error))
