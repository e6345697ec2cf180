"""Training jobs of a tiny BERT without Ray, in this process or in two connected by gloo."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors import student_folder
from actors.student_folder import ArmReport
from actors.training import worker as student
from actors.training.job import ArmJob, TrainingJob
from actors.training.recovery.checkpoints import RayCheckpoints
from potstill.config.student import StudentConfig
from potstill.student.arms import Arm, arm_digest
from potstill.student.encoders import weights_digest
from tests.support.tiny_student import LABELS, make_rows

STEPS = 50
RATE = 3e-3
"""At 5e-3 the loss is unstable, and machine-dependent rounding grows to 1e-4 within 50 steps."""
ROWS = make_rows(75)
_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(_ROOT)}
_WORKER = "import sys; from tests.support import tiny_jobs; tiny_jobs.work(int(sys.argv[1]), sys.argv[2])"


class Stopped(Exception):
    """The training was interrupted on purpose."""


class FolderCheckpoints(RayCheckpoints):
    """Checkpoints in a folder shared by all ranks, without Ray; keeps only the last accepted one."""

    def __init__(self, folder: str, rank: int = 0) -> None:
        self.folder, self._rank = folder, rank
        os.makedirs(folder, exist_ok=True)

    @contextlib.contextmanager
    def fetch(self) -> Iterator[str | None]:
        last = Path(self.folder, "last")
        yield f"{self.folder}/{last.read_text()}" if last.exists() else None

    def preempted(self) -> bool:
        return False

    def upload(self, scratch: str, name: str) -> None:
        shutil.copytree(scratch, f"{self.folder}/{name}", dirs_exist_ok=True)

    def accept(self, name: str, step: int) -> None:
        if self._rank == 0:
            Path(self.folder, "last").write_text(name)
            for other in Path(self.folder).glob("checkpoint_*"):
                if other.name != name:
                    self.reject(other.name)

    def reject(self, name: str) -> None:
        shutil.rmtree(f"{self.folder}/{name}", ignore_errors=True)


class StoppingCheckpoints(FolderCheckpoints):
    """Interrupts training once a checkpoint of step ``stop_at`` is stored."""

    stop_at: int | None = None

    def accept(self, name: str, step: int) -> None:
        super().accept(name, step)
        if self.stop_at is not None and step >= self.stop_at:
            raise Stopped


def settings(tiny: str, **changes: Any) -> StudentConfig:
    base = {
        "model": tiny,
        "epochs": 1,
        "min_steps": STEPS,
        "batch_size": 16,
        "learning_rate": RATE,
        "precision": "float32",
    }
    return StudentConfig(**{**base, **changes})


def prepare(folder: Path, config: StudentConfig, *arms: Arm) -> TrainingJob:
    jobs: list[ArmJob] = []
    keys: dict[str, str] = {}
    for arm in arms or (Arm("one", ROWS),):
        keys[arm.name] = key = arm_digest(arm, config, LABELS, weights_digest(config.model), keys)
        jobs.append(
            ArmJob(
                name=arm.name,
                digest=key,
                seed=arm.seed,
                folder=str(folder / key),
                contrastive=arm.contrastive,
                start=str(folder / keys[arm.start]) if arm.start else None,
                lineage=dict(arm.lineage),
            )
        )
        student_folder.write_rows(jobs[-1].folder, rows=arm.rows, validation=arm.validation, asked=arm.asked)
    return TrainingJob(LABELS, config, tuple(jobs))


def train(folder: Path, config: StudentConfig, *arms: Arm) -> list[ArmReport]:
    return student.train_arms(prepare(folder, config, *arms))


def weights(job: TrainingJob, number: int = 0) -> Mapping[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(str(Path(job.arms[number].folder) / "model" / "model.safetensors"))


def attempt(job: TrainingJob, folder: str | None = None, stop_at: int | None = None, rank: int = 0) -> Any:
    """Run a job with checkpoints in ``folder``; return its reports, or None if interrupted at ``stop_at``."""
    if folder is None:
        return student.train_arms(job)
    place = StoppingCheckpoints(folder, rank)
    place.stop_at = stop_at
    try:
        return student.train_arms(job, place)
    except Stopped:
        return None


def two_workers(scratch: Path, tasks: Sequence[tuple[TrainingJob, str | None, int | None]]) -> list[Any]:
    """``attempt`` each task (job, folder, stop_at) in two processes; return the first arm's reports as plain data."""
    scratch.mkdir(exist_ok=True)
    plain = [{"job": job.to_json(), "folder": folder, "stop_at": stop_at} for job, folder, stop_at in tasks]
    (scratch / "tasks.json").write_text(json.dumps(plain))
    workers = []
    for rank in range(2):
        environment = {**os.environ, **_ENVIRONMENT, "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-c", _WORKER, str(rank), str(scratch)]
        workers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=1500)
            assert worker.returncode == 0, errors.decode()[-3000:]
    finally:
        for worker in workers:
            worker.kill()
    first, second = (json.loads((scratch / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second, "every rank returns the same reports"
    return first


def work(rank: int, folder: str) -> None:
    """Run every task as one of the two processes."""
    from dataclasses import asdict
    from datetime import timedelta

    import torch.distributed as dist

    limit = timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    found = []
    for task in json.loads(Path(folder, "tasks.json").read_text()):
        reports = attempt(TrainingJob.from_json(task["job"]), task["folder"], task["stop_at"], rank)
        found.append(asdict(reports[0]) if reports else None)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
