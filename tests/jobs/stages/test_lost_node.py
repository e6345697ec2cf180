"""A node is lost during training, which resumes from the last checkpoint with the workers that are left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1])
def test_training_resumes_with_the_workers_that_are_left(tmp_path: Path, stage: int) -> None:
    script = Path(__file__).parents[2] / "support/two_nodes.py"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"POTSTILL_HOME": str(tmp_path / "home"), "PYTHONPATH": str(script.parents[2])}
    # Until Ray notices the loss of the node it tries to start workers there, for a minute by default.
    environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "25"
    command = [sys.executable, str(script), str(tmp_path / "work"), str(stage)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "work" / "found.json").read_text())
    report, undisturbed = found["report"], found["undisturbed"]
    assert (found["first"], report["workers"]) == (2, 1)
    (resumed,) = report["resumed"]
    assert resumed in range(10, 80, 10)
    # No text was skipped or doubled.
    assert (report["steps"], report["examples"]) == (80, undisturbed["examples"])
    np.testing.assert_allclose(report["losses"], undisturbed["losses"], rtol=1e-3)
