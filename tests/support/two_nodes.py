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
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def main(folder: Path, stage: int) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from jobs.stages import train as training
    from potstill.config.student import StudentConfig
    from potstill.student.arms import Arm
    from tests.support.tiny_jobs import prepare, two_workers
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
        precision="float32",
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
        while not any(folder.glob("fits/*/checkpoint_0000030_*")):
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=take_away, daemon=True).start()
    try:
        arm = Arm("one", make_rows(75))
        result = training.train([arm], config, LABELS, str(folder))
        undisturbed = two_workers(folder / "work", [(prepare(folder / "undisturbed", config, arm), None, None)])
        found = {
            "report": asdict(result.students["one"].report),
            "first": result.workers,
            "undisturbed": undisturbed[0],
        }
        (folder / "found.json").write_text(json.dumps(found))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
