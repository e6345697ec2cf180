"""Gradients are summed over three real processes, with and without shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

WORKERS, STEPS = 3, 5
PRECISIONS = ("float32", "bfloat16")
WORKER = """
import json, sys
import torch, torch.distributed as dist
from actors.process_group import ProcessGroup
from actors.training.kernels import exchange
rank, folder, *places = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
for exchange.SHARED in places:
    for precision in ("float32", "bfloat16"):
        model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
        model[1].bias.requires_grad_(False)
        add = exchange.Exchange(model.parameters(), ProcessGroup(rank, 3, torch.device("cpu")), precision)
        found = []
        for step in range(5):
            for number, parameter in enumerate(model.parameters()):
                # Only one worker has a gradient for the last parameter.
                has = parameter.requires_grad and (number != 2 or rank == 1)
                parameter.grad = torch.full_like(parameter, 2.0 ** (rank + step)) if has else None
            add()
            found.append([p.grad.unique().tolist() for p in model.parameters() if p.requires_grad])
        print(json.dumps({"place": exchange.SHARED, "precision": precision, "shared": type(add._add) is exchange._Shared, "found": found}))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Each worker's results for every memory kind and precision; each worker loads torch only once."""
    folder = tmp_path_factory.mktemp("exchange")
    before = {path.name for path in Path("/dev/shm").glob("potstill-*")}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "OMP_NUM_THREADS": "1"}
    places = ["/dev/shm", str(folder / "nowhere")]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(folder), *places],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORKERS)
    ]
    found = []
    for worker in workers:
        printed, errors = worker.communicate(timeout=600)
        assert worker.returncode == 0, errors
        found += map(json.loads, printed.splitlines())
    assert {path.name for path in Path("/dev/shm").glob("potstill-*")} <= before
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "sent"])
def test_every_worker_gets_the_sum(results: list[dict[str, Any]], shared: bool, precision: str) -> None:
    mine = [one for one in results if (one["place"] == "/dev/shm") == shared and one["precision"] == precision]
    assert len(mine) == WORKERS
    for one in mine:
        assert one["shared"] == (shared and Path("/dev/shm").is_dir())
        assert one["found"] == [[[7.0 * 2**step], [7.0 * 2**step], [2.0 ** (1 + step)]] for step in range(STEPS)]
