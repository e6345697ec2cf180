"""A search on a test cluster of several nodes with logical GPUs: it places every trial, even after losing a node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_trials_continue_after_losing_a_node(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "support/search_nodes.py"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"POTSTILL_HOME": str(tmp_path / "home"), "PYTHONPATH": str(script.parents[2])}
    command = [sys.executable, str(script), str(tmp_path / "work")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "work" / "found.json").read_text())
    assert (found["benches"], found["started"], found["concurrency"]) == (2, 2, 4)
    assert found["finished"] == 6, found
    assert found["alive"] == 2
    assert found["kept"]
