"""Train on two nodes of one CPU each and take one away in mid-training; writes what came of it to found.json.

    python tests/support/two_nodes.py FOLDER ZERO_STAGE

A program of its own, since a process has one Ray and that of the tests has one node.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def main(folder: Path, stage: int) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from actors.coverage import read_coverage, what_counts
    from jobs.stages import train as training
    from jobs.stages.train import Arm
    from potstill.config.student import StudentConfig
    from potstill.student.batches import plan_steps
    from tests.support.tiny_student import LABELS, make_rows, make_student

    config = StudentConfig(
        model=make_student(folder / "bert"),
        epochs=1,
        min_steps=80,
        batch_size=16,
        learning_rate=2e-3,
        zero_stage=stage,
        checkpoint_steps=10,
        max_failures=1,
    )
    quick: dict[str, Any] = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    with socket.socket() as probe:  # other clusters may have the usual one
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": port, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()

    def take_away() -> None:
        while not any(line["step"] >= 35 for arm in folder.glob("students/*") for line in read_coverage(str(arm))):
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=take_away, daemon=True).start()
    try:
        rows = make_rows(75)
        result = training.train([Arm("one", rows)], config, LABELS, str(folder), record=True)
        one = result.students["one"]
        lines = read_coverage(str(Path(one.export).parent))
        plan = plan_steps(len(rows), 16, 1, 80, 0)
        whole = what_counts(lines) == {number: sorted(step.rows) for number, step in enumerate(plan, start=1)}
        attempts = len({line["attempt"] for line in lines})
        found = {"workers": one.workers, "resumed": one.resumed, "whole": whole, "attempts": attempts}
        (folder / "found.json").write_text(json.dumps({**found, "steps": len(one.records), "first": result.workers}))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
