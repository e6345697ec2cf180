"""Run one worker of potstill's training as Ray Train would, bound to one core (or a GPU).

    python benchmarks/competitors/train_potstill.py JOB.json RANK CORES

``JOB.json`` is ``TrainingJob.to_json()`` with ``workers`` and ``meet`` (the rendezvous file of the processes).
``CORES``: comma-separated core numbers, or ``-``. Rank 0 prints a JSON line: the report of the last arm.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(job_file: str, rank: int, cores: str) -> None:
    """Train all arms of the job as worker ``rank``."""
    if cores != "-":
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    job = json.loads(Path(job_file).read_text())
    workers, meet = job.pop("workers"), job.pop("meet")
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(workers),
    }
    import torch.distributed as dist

    from actors.training.job import TrainingJob
    from actors.training.worker import train_arms

    backend = "nccl" if job["device"] == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meet}", rank=rank, world_size=workers)
    reports = train_arms(TrainingJob.from_json(job))
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(asdict(reports[-1])))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
