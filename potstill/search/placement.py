"""Divides the cluster between a search's teachers, torch workers and trials, so that they cannot deadlock.

A trial only plans and waits, so it requests 0.01 CPU. Torch workers live for the whole search, and each trains one
student at a time, for any trial. If a student needs several workers, each trial starts its own Ray Train fit instead,
and at most as many trials run as fits have room.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from potstill.config import Config
from potstill.config.teacher import EmbeddedTeacher
from potstill.errors import Problem

TRIAL_CPUS = 0.01
TEACHER_CPUS = 0.49  # per embedded teacher without GPUs (``actors/teachers/pool.py``)
HTTP_CPUS = 0.1  # per process that sends requests (``actors/teachers/http.py``)
SMALL_CPUS = 0.1  # for coordination
WORKER_CPUS = 0.8  # per thread of a torch worker
WORKER_CPUS_BESIDE_TEACHER = 0.4  # the same with embedded teachers, which work in bursts: each core runs both
TRIALS_PER_WORKER = 2  # while one trains, the other generates


@dataclass(frozen=True, slots=True)
class Placement:
    """``torch_workers``: processes that live for the whole search, each with ``cpus`` and ``gpus``. If ``workers`` is
    more than 1, trials start fits with that many workers, and the only torch worker just embeds and predicts.
    ``teachers``: embedded teacher processes with ``teacher_gpus`` each; 0 leaves the number to the pool.
    ``concurrency``: concurrent trials. ``device`` of the torch workers: cpu or cuda."""

    concurrency: int
    torch_workers: int
    workers: int
    cpus: float
    gpus: float
    teachers: int = 0
    teacher_gpus: float = 0.0
    device: str = "cpu"


def place(config: Config, resources: Mapping[str, float], trials: int) -> tuple[Placement | None, list[Problem]]:
    """The placement on a cluster with ``resources`` (CPU, GPU), or the problem if not even one trial fits."""
    gpus, cpus = int(resources.get("GPU", 0)), float(resources.get("CPU", 0))
    workers, threads = max(1, config.student.workers), 1 if gpus else config.student.threads
    embedded = isinstance(config.teacher, EmbeddedTeacher)
    wanted = config.teacher.actors if isinstance(config.teacher, EmbeddedTeacher) else 0
    teachers, teacher_gpus, unit_gpus = 0, 0.0, 1.0 if gpus else 0.0
    unit_cpus = 0.0 if gpus else 1.0
    if gpus and embedded:
        if gpus == 1 and workers == 1 and wanted <= 1:
            # The teacher and a student of some tens of millions of parameters share the only GPU.
            teachers, teacher_gpus, unit_gpus = 1, 0.5, 0.5
            room = 1
        else:
            teachers, teacher_gpus = wanted or max(1, min(gpus // 2, gpus - workers)), 1.0
            room = gpus - teachers
    elif gpus:
        room = gpus
    else:
        teachers = (wanted or int(cpus)) if embedded else 0
        beside_teacher = TEACHER_CPUS * teachers if cpus > 1 else 0.0
        left = cpus - SMALL_CPUS - (beside_teacher if embedded else HTTP_CPUS * http_processes(config))
        if workers > 1:
            room = math.floor(left / threads + 1e-9)
        else:
            # On a single core, teacher and student take turns regardless of what they request.
            each = WORKER_CPUS_BESIDE_TEACHER if embedded else WORKER_CPUS
            unit_cpus = (each if cpus > 1 else 0.5) * threads
            room = math.floor(left / (unit_cpus + TRIALS_PER_WORKER * TRIAL_CPUS) + 1e-9)
            room = min(room, max(1, int(cpus) // threads))
    fits = room // workers
    if fits < 1:
        kind = "GPU" if gpus else "CPU"
        have = gpus if gpus else int(cpus)
        beside = f" in addition to {teachers} teacher process(es)" if teachers else " in addition to the coordinator's"
        asking = [f"student.{name} = {n}" for name, n in (("workers", workers), ("threads", threads)) if n > 1]
        remedy = "lower it" if asking else "add nodes"
        remedy += ", or set teacher.actors lower" if embedded and teachers > 1 else ""
        needs = f"one trial needs {workers * threads} {kind}(s){beside}, and the cluster has {have} {kind}(s)"
        return None, [Problem(", ".join(asking) or "search", f"{needs}; {remedy}")]
    asked = config.search.concurrency if config.search is not None else 0
    if workers > 1:
        concurrency = min(asked or fits, fits, trials)
        return Placement(concurrency, 1, workers, SMALL_CPUS / 2, 0.0, teachers, teacher_gpus), []
    most = math.floor((cpus - SMALL_CPUS) / TRIAL_CPUS) if cpus else 0
    concurrency = max(1, min(asked or TRIALS_PER_WORKER * fits, trials, max(1, most)))
    torch_workers, device = min(fits, concurrency), "cuda" if gpus else "cpu"
    return Placement(concurrency, torch_workers, 1, unit_cpus, unit_gpus, teachers, teacher_gpus, device), []


def http_processes(config: Config) -> int:
    """The number of processes to reserve room for with an HTTP teacher; few of them are ever busy."""
    return 1 if isinstance(config.teacher, EmbeddedTeacher) else min(max(config.teacher.actors, 1), 8)
