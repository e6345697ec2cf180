"""Training on the cluster: one Ray Train fit for all arms that have no export yet.

    with cluster.connect():
        result = train.train([Arm("distilled", rows)], config.student, task.labels, storage)
        result.students["distilled"].export  # a plain transformers folder

A fit takes 15-27 s to start on two cores, so a job trains all its students in one. The driver imports no torch: the
process group and the training run on the workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors import student_folder
from actors.student_folder import ArmReport
from actors.torch_worker import ON_CPU, VARIABLES
from actors.training import hub
from actors.training.job import ArmJob, TrainingJob
from actors.training.worker import run_worker
from jobs.runtime import cluster
from jobs.stages import fits
from potstill.config.student import StudentConfig
from potstill.draws import digest
from potstill.errors import InputError, Problem, StageError
from potstill.student import encoders
from potstill.student.arms import Arm, arm_digest
from potstill.student.arms import problems as arm_problems

if TYPE_CHECKING:
    from ray.train.backend import Backend, BackendConfig

CPU_WORKERS = 2

REGROW_SECONDS = 1800.0
"""Time between checks for room for more workers: growing repeats the steps since the last checkpoint."""


@dataclass(frozen=True, slots=True)
class TrainedStudent:
    """The student of one arm. ``export``: its transformers folder; ``reused``: its export existed before."""

    name: str
    export: str
    report: ArmReport
    reused: bool

    @property
    def digest(self) -> str:
        """The hash of what decides the student; it names its folder."""
        return self.report.digest

    @property
    def examples_per_s(self) -> float:
        """Training examples per second, over all workers."""
        return self.report.examples / self.report.seconds if self.report.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of ``train``. ``seconds``: of the whole call; ``log_dir``: None if nothing was trained."""

    students: dict[str, TrainedStudent]
    seconds: float
    workers: int
    log_dir: str | None

    @property
    def trained(self) -> int:
        """Number of arms that were trained now, not reused."""
        return sum(not one.reused for one in self.students.values())


def choose_workers(config: StudentConfig, cluster_resources: Mapping[str, float]) -> tuple[int, bool]:
    """The number of training processes, and whether they run on GPUs: as configured, else one per GPU, else two on
    CPU if the cluster has the threads for two."""
    gpus, cpus = int(cluster_resources.get("GPU", 0)), int(cluster_resources.get("CPU", 0))
    if config.workers == 0:
        return (gpus, True) if gpus else (max(1, min(CPU_WORKERS, cpus // config.threads)), False)
    return config.workers, gpus > 0


def problems(
    config: StudentConfig, cluster_resources: Mapping[str, float], node_cpus: Sequence[float] = ()
) -> list[Problem]:
    """Everything that would make a fit fail or wait for ever: too few CPUs or GPUs, an unusable model.

    ``node_cpus``: the CPUs of each node; all threads of a worker must fit on one node.
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
        message = f"{workers} workers with that many threads don't fit: the nodes' CPUs have room for {room}; lower it or student.workers"
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
    verbose: bool = False,
) -> TrainingResult:
    """Train all ``arms`` in one fit and export each to ``<storage>/students/<digest>/model``.

    ``storage`` is any fsspec path that all nodes share. Arms with an export of the same digest are reused. Needs a
    connected ``ray``. Raises ``InputError`` before anything starts, ``StageError`` if training fails. A lost worker is
    replaced up to ``config.max_failures`` times; if its node is gone, training continues with fewer workers, down to
    ``config.min_workers``. Either way training resumes from the last checkpoint, and so does the next call for the same
    arms after a call that failed or was killed.
    """
    import ray

    started = time.monotonic()
    storage = storage.rstrip("/") if "://" in storage else os.path.abspath(storage)
    resources = ray.cluster_resources()
    if found := arm_problems(arms, labels) + problems(config, resources, cluster.node_cpus()):
        raise InputError(found)
    jobs, missing = _prepare(arms, config, labels, storage)
    workers, on_gpu = choose_workers(config, resources)
    log_dir = None
    if missing:
        fit = TrainingJob(tuple(labels), config, missing, "cuda" if on_gpu else "cpu", config.threads)
        # Named by all arms, not only the missing ones: some may have been trained before the fit failed.
        with fits.claim(f"{storage}/fits", digest(sorted({job.digest for job in jobs}), size=5)) as name:
            log_dir = None if verbose or "://" in storage else f"{storage}/fits/{name}/logs"
            run_fit(fit, workers, f"{storage}/fits/{name}", log_dir, verbose)
    return TrainingResult(_collect(jobs, missing), time.monotonic() - started, workers, log_dir)


def train_with(
    run: Callable[[dict[str, Any]], object],
    arms: Sequence[Arm],
    config: StudentConfig,
    labels: Sequence[str],
    storage: str,
    device: str = "cpu",
) -> TrainingResult:
    """``train`` with another trainer: ``run`` gets ``TrainingJob.to_json`` of the arms that have no export yet."""
    started = time.monotonic()
    if found := arm_problems(arms, labels):
        raise InputError(found)
    jobs, missing = _prepare(arms, config, labels, storage)
    if missing:
        run(TrainingJob(tuple(labels), config, missing, device, config.threads).to_json())
    return TrainingResult(_collect(jobs, missing), time.monotonic() - started, 1, None)


def name_students(arms: Sequence[Arm], config: StudentConfig, labels: Sequence[str]) -> dict[str, str]:
    """The digest of every arm's student, by the arm's name. It covers all that decides the student and names its
    folder."""
    is_local = os.path.isabs(encoders.locate(config.model))
    weights = encoders.weights_digest(config.model, None if is_local else hub.find_commit(config.model))
    digests: dict[str, str] = {}
    for arm in arms:
        digests[arm.name] = arm_digest(arm, config, labels, weights, digests)
    return digests


def _prepare(
    arms: Sequence[Arm], config: StudentConfig, labels: Sequence[str], storage: str
) -> tuple[list[ArmJob], tuple[ArmJob, ...]]:
    """All arms as jobs, and those that have to be trained (each digest once), with their rows written."""
    digests = name_students(arms, config, labels)
    folders = {name: f"{storage}/students/{key}" for name, key in digests.items()}
    jobs: list[ArmJob] = []
    missing: dict[str, ArmJob] = {}
    for arm in arms:
        job = ArmJob(
            name=arm.name,
            digest=digests[arm.name],
            seed=arm.seed,
            folder=folders[arm.name],
            contrastive=arm.contrastive,
            start=folders[arm.start] if arm.start is not None else None,
            self_trained=arm.self_trained,
            anchor=folders[arm.anchor] if arm.anchor is not None else None,
            lineage=dict(arm.lineage),
        )
        jobs.append(job)
        if student_folder.read_report(job.folder) is None:
            student_folder.write_rows(job.folder, rows=arm.rows, validation=arm.validation, asked=arm.asked)
            missing[job.digest] = job
    return jobs, tuple(missing.values())


def run_fit(
    job: TrainingJob,
    workers: int,
    folder: str,
    log_dir: str | None = None,
    verbose: bool = False,
    loop: Callable[[Mapping[str, Any]], dict[str, Any]] = run_worker,
) -> dict[str, Any]:
    """Run one Ray Train fit: ``loop`` on every worker, one worker per GPU or CPU. Returns the result of rank 0's.

    It resumes from the last checkpoint in ``folder``, if there is one (``jobs/stages/fits.py``). Raises ``StageError``
    or ``InputError``, as ``train`` does.
    """
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    class Trainer(DataParallelTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray's handler would swallow Ctrl-C, even in later stages; ``jobs/runtime/interrupt.py`` handles it."""

    on_gpu, fewest = job.device == "cuda", min(job.student.min_workers, workers)
    variables = dict(VARIABLES) if on_gpu else {**VARIABLES, **ON_CPU, "OMP_NUM_THREADS": str(job.threads)}
    storage, _, name = folder.rpartition("/")
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
                # For starts of workers: until Ray notices that a lost node is gone, it waits for it in vain.
                controller_failure_limit=2 + job.student.max_failures,
                max_preemption_failures=100,
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": variables},
            logging_config=LoggingConfig(log_level="INFO" if verbose else "ERROR"),
        ),
    )
    see = f"; the workers' logs are in {log_dir}" if log_dir else ""
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise StageError(f"training failed: {_explain(error)}{see}") from error
    returned = result.return_value
    if not isinstance(returned, dict):
        raise StageError(f"training ended without a result{see}")
    if returned.get("problems"):
        raise InputError(Problem(where, message) for where, message in returned["problems"])
    if "error" in returned:
        raise StageError(returned["error"])
    return returned


def _collect(jobs: Sequence[ArmJob], trained: Sequence[ArmJob]) -> dict[str, TrainedStudent]:
    """The students of all arms. Raises ``StageError`` if one has no export."""
    new = {job.digest for job in trained}
    students = {}
    for job in jobs:
        report = student_folder.read_report(job.folder)
        if report is None:
            raise StageError(
                f"training of {job.name!r} ended, but {job.folder} is not complete; do all nodes share storage?"
            )
        export = student_folder.model_folder(job.folder)
        students[job.name] = TrainedStudent(job.name, export, report, reused=job.digest not in new)
    return students


def _torch_backend_config() -> BackendConfig:
    """Ray Train's own torch backend, imported on the workers: ``TorchTrainer`` would import torch here."""
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

        # A torch without NCCL sees no GPU either. The worker reports that; Ray would only report that NCCL is missing.
        return TorchConfig(backend=None if dist.is_nccl_available() else "gloo")

    def ours() -> Any:
        return config().backend_cls()

    return LateTorchConfig()


def _explain(error: Exception) -> str:
    """The last non-empty line of the first worker's error."""
    failures = getattr(error, "worker_failures", None) or {}
    cause = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__
