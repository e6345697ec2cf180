"""A search on a test cluster of several nodes with logical GPUs: every trial finds its place, also when a node goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_trials_go_on_without_the_node_that_went(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/jobs/search_nodes.py"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["benches"], found["started"], found["concurrency"]) == (2, 2, 4)
    assert found["finished"] == 6, found
    assert found["alive"] == 2
    assert found["kept"]
