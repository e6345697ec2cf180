"""Gradients are summed over three real processes: in memory that they share, and where they have none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WORKERS, STEPS = 3, 5
WORKER = """
import json, sys
import torch, torch.distributed as dist
rank, folder, shared, precision = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
from actors.process_group import ProcessGroup
from actors.training.kernels import exchange
exchange.SHARED = shared
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
model[1].bias.requires_grad_(False)
add = exchange.Exchange(model.parameters(), ProcessGroup(rank, 3, torch.device("cpu")), precision)
found = []
for step in range(5):
    for number, parameter in enumerate(model.parameters()):
        # Of the last parameter only one worker has a gradient.
        has = parameter.requires_grad and (number != 2 or rank == 1)
        parameter.grad = torch.full_like(parameter, 2.0 ** (rank + step)) if has else None
    add()
    found.append([p.grad.unique().tolist() for p in model.parameters() if p.requires_grad])
print(json.dumps({"shared": isinstance(add._add, exchange._Shared), "found": found}))
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("place", ["/dev/shm", "nowhere"])
def test_every_worker_gets_the_sum(place: str, precision: str, tmp_path: Path) -> None:
    shared = place if Path(place).is_dir() else str(tmp_path / place)
    before = {path.name for path in Path("/dev/shm").glob("potstill-*")}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", WORKER, str(rank), str(tmp_path), shared, precision] for rank in range(WORKERS)]
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for worker in workers:
        printed, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        result = json.loads(printed)
        assert result["shared"] == (place == "/dev/shm" == shared)
        assert result["found"] == [[[7.0 * 2**step], [7.0 * 2**step], [2.0 ** (1 + step)]] for step in range(STEPS)]
    assert {path.name for path in Path("/dev/shm").glob("potstill-*")} <= before
