"""Training on the cluster: one Ray Train fit for all arms that have no export yet.

    with cluster.connect():
        result = training.train([training.Arm("distilled", rows)], config.student, task.labels, storage)
        result.students["distilled"].export  # a plain transformers folder

A fit takes 15-27 s to start on two cores, so a job hands over all its students at once. The driver imports
no torch: process group and training live on the workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors import student_folder
from actors.training import hub
from actors.training import worker as student
from jobs.runtime import cluster
from jobs.stages import fits
from potstill.config.student import StudentConfig
from potstill.draws import digest
from potstill.errors import InputError, Problem, StageError
from potstill.student import arms as arms_
from potstill.student import encoders
from potstill.student.arms import Arm, TrainingRow, from_examples, from_texts, repeat

if TYPE_CHECKING:
    from ray.train.backend import Backend, BackendConfig

__all__ = [
    "Arm",
    "StepRecord",
    "TrainedStudent",
    "TrainingResult",
    "TrainingRow",
    "choose_workers",
    "from_examples",
    "from_texts",
    "problems",
    "repeat",
    "train",
    "train_with",
]

CPU_WORKERS = 2

REGROW_SECONDS = 1800.0
"""Between two looks whether more workers would fit by now: growing costs what was computed since a checkpoint."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The loss of one optimiser step (from 1): weighted mean over its global batch."""

    arm: str
    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class TrainedStudent:
    """One arm's student. ``export`` is a transformers folder; ``seconds`` of training alone, without start,
    loading and export; ``say``: what its anchor had to say (``potstill.student.second_opinion.AnchorWeight``), empty without
    one; ``workers`` at the end; ``warnings``: checkpoints that could not be made; ``resumed``: the steps after which
    training went on from a checkpoint; ``reused`` where an export of the same digest was there already."""

    name: str
    digest: str
    export: str
    records: tuple[StepRecord, ...]
    examples: int
    tokens: int
    padded_tokens: int
    truncated: int
    seconds: float
    best_step: int
    workers: int
    warnings: tuple[str, ...]
    resumed: tuple[int, ...]
    say: Mapping[str, float | None]
    validation: tuple[Mapping[str, float], ...]
    reused: bool

    @property
    def examples_per_s(self) -> float:
        """Examples a second of training, over all workers."""
        return self.examples / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training job gave. ``seconds`` of the whole call; ``log_dir`` is None where nothing was trained."""

    students: dict[str, TrainedStudent]
    seconds: float
    workers: int
    log_dir: str | None

    @property
    def records(self) -> list[StepRecord]:
        """All steps of all arms."""
        return [record for one in self.students.values() for record in one.records]

    @property
    def trained(self) -> int:
        """Arms that were trained now, not reused."""
        return sum(not one.reused for one in self.students.values())


def choose_workers(config: StudentConfig, cluster_resources: Mapping[str, float]) -> tuple[int, bool]:
    """How many training processes, and whether on GPUs: as configured, else one a GPU, else two on CPU
    where the cluster has the threads for two."""
    gpus, cpus = int(cluster_resources.get("GPU", 0)), int(cluster_resources.get("CPU", 0))
    if config.workers == 0:
        return (gpus, True) if gpus else (max(1, min(CPU_WORKERS, cpus // config.threads)), False)
    return config.workers, gpus > 0


def problems(
    config: StudentConfig, cluster_resources: Mapping[str, float], node_cpus: Sequence[float] = ()
) -> list[Problem]:
    """What would make a fit fail or wait for ever, before it starts: too few CPUs or GPUs, an unusable model.

    ``node_cpus``: of each node; a worker's threads must have room on one.
    """
    found = encoders.problems(config.model)
    workers, on_gpu = choose_workers(config, cluster_resources)
    kind = "GPU" if on_gpu else "CPU"
    have = int(cluster_resources.get(kind, 0))
    if workers > have:
        message = f"needs {workers} {kind}s and the cluster has {have}; lower it, or 0 takes what is there"
        found.append(Problem(f"student.workers = {config.workers}", message))
    elif not on_gpu and workers * config.threads > have:
        message = f"times {workers} workers needs {workers * config.threads} CPUs and the cluster has {have}; lower it or student.workers"
        found.append(Problem(f"student.threads = {config.threads}", message))
    elif not on_gpu and node_cpus and (room := sum(int(cpus // config.threads) for cpus in node_cpus)) < workers:
        message = f"{workers} workers with so many each don't fit: the nodes' CPUs have room for {room}; lower it or student.workers"
        found.append(Problem(f"student.threads = {config.threads}", message))
    if config.precision == "bfloat16" and config.zero_stage == 3 and not on_gpu:
        found.append(Problem("student.precision = 'bfloat16'", "with zero_stage 3 needs GPUs; use float32 on CPU"))
    return found


def train(
    arms: Sequence[Arm],
    config: StudentConfig,
    labels: Sequence[str],
    storage: str,
    *,
    reuse: bool = True,
    verbose: bool = False,
    record: bool = False,
) -> TrainingResult:
    """Train all ``arms`` in one fit and export each to ``<storage>/students/<digest>/model``.

    ``storage`` is any fsspec path that all nodes share. Arms with an export of the same digest are reused
    (``reuse=False`` trains them afresh). Needs a connected ``ray``. Raises ``InputError`` before anything
    starts, ``StageError`` where training broke off. A lost worker is replaced ``config.max_failures`` times, or
    done without where its node is gone (down to ``config.min_workers``), and training goes on from the last
    checkpoint; so does the next call for the same arms after one that broke off or was killed. ``record``: keep a record of which row was computed when (``actors/coverage.py``).
    """
    import ray

    started = time.monotonic()
    storage = storage.rstrip("/") if "://" in storage else os.path.abspath(storage)
    resources = ray.cluster_resources()
    found = arms_.problems(arms, labels) + problems(config, resources, cluster.node_cpus())
    if found:
        raise InputError(found)
    jobs = _prepare(arms, config, labels, storage, reuse)
    missing = {job.digest: job for job in jobs if not reuse or student_folder.read_report(job.folder) is None}
    workers, on_gpu = choose_workers(config, resources)
    log_dir = None
    if missing:
        device = "cuda" if on_gpu else "cpu"
        fit = student.TrainingJob(
            tuple(labels), config, tuple(missing.values()), device, threads=config.threads, record=record
        )
        # By all arms, not only those that are missing: some may have been trained before it broke off.
        with fits.claim(f"{storage}/fits", digest(sorted({job.digest for job in jobs}), size=5)) as name:
            if not reuse:
                fits.clean(f"{storage}/fits/{name}")
            log_dir = None if verbose or "://" in storage else f"{storage}/fits/{name}/logs"
            run_fit(fit, workers, f"{storage}/fits", name, log_dir, verbose)
    students = {job.name: _collect(job, reused=job.digest not in missing) for job in jobs}
    return TrainingResult(students, time.monotonic() - started, workers, log_dir)


def train_with(
    run: Callable[[dict[str, Any]], object],
    arms: Sequence[Arm],
    config: StudentConfig,
    labels: Sequence[str],
    storage: str,
    device: str = "cpu",
) -> TrainingResult:
    """``train``, where ``run`` does the training: it is given ``TrainingJob.to_json`` of what has no export yet."""
    started = time.monotonic()
    found = arms_.problems(arms, labels)
    if found:
        raise InputError(found)
    jobs = _prepare(arms, config, labels, storage, reuse=True)
    missing = {job.digest: job for job in jobs if student_folder.read_report(job.folder) is None}
    if missing:
        run(student.TrainingJob(tuple(labels), config, tuple(missing.values()), device, config.threads).to_json())
    students = {job.name: _collect(job, reused=job.digest not in missing) for job in jobs}
    return TrainingResult(students, time.monotonic() - started, 1, None)


def name_students(arms: Sequence[Arm], config: StudentConfig, labels: Sequence[str]) -> dict[str, str]:
    """The digest of every arm's student, by the arm's name: what decides it, and names its folder."""
    is_local = os.path.isabs(encoders.locate(config.model))
    weights = encoders.weights_digest(config.model, None if is_local else hub.find_commit(config.model))
    digests: dict[str, str] = {}
    for arm in arms:
        anchor = digests[arm.anchor] if arm.anchor is not None else None
        digests[arm.name] = arms_.arm_digest(arm, config, labels, weights, anchor)
    return digests


def _prepare(
    arms: Sequence[Arm], config: StudentConfig, labels: Sequence[str], storage: str, reuse: bool
) -> list[student.ArmJob]:
    """Name every arm's folder by its digest and put the rows of new ones there."""
    digests = name_students(arms, config, labels)
    folders = {name: f"{storage}/students/{key}" for name, key in digests.items()}
    jobs: list[student.ArmJob] = []
    for arm in arms:
        job = student.ArmJob(
            name=arm.name,
            digest=digests[arm.name],
            seed=arm.seed,
            folder=folders[arm.name],
            anchor=folders[arm.anchor] if arm.anchor is not None else None,
            lineage=dict(arm.lineage),
        )
        if not reuse:
            student_folder.discard(job.folder)
        if student_folder.read_report(job.folder) is None:
            student_folder.write_rows(job.folder, rows=arm.rows, validation=arm.validation, asked=arm.asked)
        jobs.append(job)
    return jobs


def run_fit(
    job: student.TrainingJob,
    workers: int,
    storage: str,
    name: str,
    log_dir: str | None = None,
    verbose: bool = False,
    loop: Callable[[Mapping[str, Any]], dict[str, Any]] = student.run_worker,
) -> dict[str, Any]:
    """One Ray Train fit: ``loop`` on every worker, one worker a GPU or CPU. Returns what rank 0's gave.

    It goes on from the last checkpoint under ``name`` in ``storage``, where there is one (``jobs/stages/fits.py``). Raises ``StageError`` or
    ``InputError``, as ``train`` does.
    """
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    class Trainer(DataParallelTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray's handler would swallow Ctrl-C, in later stages too; the job has one (``jobs/runtime/interrupt.py``)."""

    on_gpu, fewest = job.device == "cuda", min(job.student.min_workers, workers)
    variables = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "DS_LOG_LEVEL": "warning"}
    if not on_gpu:
        variables |= {"OMP_NUM_THREADS": str(job.threads), "DS_ACCELERATOR": "cpu"}
    trainer = Trainer(
        loop,
        train_loop_config={"job": job.to_json(), "log_dir": log_dir},
        backend_config=_torch_backend_config(),
        scaling_config=ScalingConfig(
            num_workers=(fewest, workers) if fewest < workers else workers,
            use_gpu=on_gpu,
            resources_per_worker=None if on_gpu else {"CPU": job.threads},
            elastic_resize_monitor_interval_s=REGROW_SECONDS,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(
                max_failures=job.student.max_failures,
                # Of starting workers: until a lost node is known to be gone, Ray waits for it in vain.
                controller_failure_limit=2 + job.student.max_failures,
                max_preemption_failures=100,
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": variables},
            logging_config=LoggingConfig(log_level="INFO" if verbose else "ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise StageError(f"training broke off: {_explain(error)}{_see(log_dir)}") from error
    returned = result.return_value
    if not isinstance(returned, dict):
        raise StageError(f"training ended without a result{_see(log_dir)}")
    if returned.get("problems"):
        raise InputError(Problem(where, message) for where, message in returned["problems"])
    if "error" in returned:
        raise StageError(returned["error"])
    return returned


def _collect(job: student.ArmJob, reused: bool) -> TrainedStudent:
    report = student_folder.read_report(job.folder)
    if report is None:
        raise StageError(
            f"training of {job.name!r} ended, but {job.folder} is not complete; do all nodes share storage?"
        )
    steps = enumerate(zip(report["losses"], report["learning_rates"], strict=True), start=1)
    return TrainedStudent(
        name=job.name,
        digest=job.digest,
        export=student_folder.model_folder(job.folder),
        records=tuple(StepRecord(job.name, step, loss, rate) for step, (loss, rate) in steps),
        examples=report["examples"],
        tokens=report["tokens"],
        padded_tokens=report["padded_tokens"],
        truncated=report["truncated"],
        seconds=report["seconds"],
        best_step=report["best_step"],
        workers=report["workers"],
        warnings=tuple(report.get("warnings", ())),
        resumed=tuple(report.get("resumed", ())),
        say=report["say"],
        validation=tuple(report["validation"]),
        reused=reused,
    )


def _torch_backend_config() -> BackendConfig:
    """Ray Train's own torch backend, imported where it works: ``TorchTrainer`` would import torch here."""
    from ray.train.backend import Backend, BackendConfig

    class LateTorchBackend(Backend):
        share_cuda_visible_devices = True

        def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
            ours().on_start(worker_group, config())

        def on_training_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
            ours().on_training_start(worker_group, config())

        def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
            ours().on_shutdown(worker_group, config())

    class LateTorchConfig(BackendConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return LateTorchBackend

    def config() -> Any:
        import torch.distributed as dist
        from ray.train.torch import TorchConfig

        # A torch without NCCL sees no GPU either, and the worker says so; Ray would only say that NCCL is missing.
        return TorchConfig(backend=None if dist.is_nccl_available() else "gloo")

    def ours() -> Any:
        return config().backend_cls()

    return LateTorchConfig()


def _explain(error: Exception) -> str:
    """The last line that says something of the first worker's error."""
    failures = getattr(error, "worker_failures", None) or {}
    cause = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__


def _see(log_dir: str | None) -> str:
    return f"; the workers' logs are in {log_dir}" if log_dir else ""
