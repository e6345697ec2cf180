"""Jobs on several nodes: workers find their places, and training and a search continue when a node is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.command_line import ROOT

pytestmark = pytest.mark.slow
Part = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    """What a part of tests/support/several_nodes.py found."""
    folder = tmp_path_factory.mktemp("nodes")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"POTSTILL_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.support.several_nodes", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "found.json").read_text())

    def get(name: str) -> dict[str, Any]:
        assert "failed" not in found[name], found[name]["failed"]
        return found[name]

    return get


def test_training_continues_with_the_remaining_workers(part: Part) -> None:
    found = part("lose_a_node_in_training")
    short, long = found["reports"]
    assert (found["first"], long["workers"], found["alive"]) == (2, 1, 1)
    assert short["resumed"] == []
    (resumed,) = long["resumed"]
    assert resumed in range(40, 240, 20)
    for report, undisturbed in zip((short, long), found["undisturbed"], strict=True):
        # No text was skipped or doubled.
        assert (report["steps"], report["examples"]) == (240, undisturbed["examples"])
        np.testing.assert_allclose(report["losses"], undisturbed["losses"], rtol=1e-3)
    assert found["checkpoints"] == [], "deleted once every arm has its export"


def test_trials_continue_without_the_lost_node(part: Part) -> None:
    found = part("lose_a_node_in_a_search")
    assert (found["benches"], found["started"], found["concurrency"]) == (2, 2, 4)
    assert found["finished"] == 6, found
    assert found["alive"] == 2
    assert found["kept"]


def test_each_worker_has_a_gpu_to_itself_and_too_many_are_refused_before_anything_starts(part: Part) -> None:
    found = part("place_workers_on_gpus")
    assert (found["workers"], found["on_gpu"]) == (3, True)
    assert len({(node, gpu) for node, gpu, _ in found["places"]}) == len(found["places"]) == 3
    assert sorted(Counter(node for node, *_ in found["places"]).values()) == [1, 2]
    assert "student.workers = 4: needs 4 GPUs and the cluster has 3" in found["refused"]
    assert not found["begun"]
