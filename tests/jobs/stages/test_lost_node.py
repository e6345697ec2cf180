"""A node is lost in mid-training: it goes on with the workers that are left, from the last checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1])
def test_training_goes_on_with_the_workers_that_are_left(tmp_path: Path, stage: int) -> None:
    script = Path(__file__).parents[2] / "support/two_nodes.py"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"POTSTILL_HOME": str(tmp_path / "home"), "PYTHONPATH": str(script.parents[2])}
    # Until the loss of the node is noticed Ray starts workers there in vain, a minute long unless told otherwise.
    environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "25"
    command = [sys.executable, str(script), str(tmp_path / "work"), str(stage)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "work" / "found.json").read_text())
    assert (found["first"], found["workers"]) == (2, 1)
    assert found["whole"], "every step's rows, each once"
    assert found["steps"] == 80
    (resumed,) = found["resumed"]
    assert resumed in range(10, 80, 10)
    assert found["attempts"] == 2
