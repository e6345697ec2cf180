"""Placement of a fit's workers on a cluster of several nodes with logical GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_each_worker_has_its_own_gpu_and_too_many_are_refused(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "support/gpu_nodes.py"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"POTSTILL_HOME": str(tmp_path / "home"), "PYTHONPATH": str(script.parents[2])}
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(work)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((work / "found.json").read_text())
    assert (found["workers"], found["on_gpu"]) == (3, True)
    assert len(found["places"]) == 3
    assert len({(node, gpu) for node, gpu, _ in found["places"]}) == 3, "each worker has its own GPU"
    assert sorted([node for node, *_ in found["places"]].count(node) for node in {n for n, *_ in found["places"]}) == [
        1,
        2,
    ]
    assert "student.workers = 4: needs 4 GPUs and the cluster has 3" in found["refused"]
    assert found["refused_after_s"] < 20
