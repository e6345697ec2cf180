"""Trials on two nodes of one logical GPU each, one of which is taken away in mid-search; writes found.json.

    python tests/support/search_nodes.py FOLDER

A program of its own, since a process has one Ray and that of the tests has one node. The GPUs are logical: students
are trained on CPUs, but placed as on GPUs.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def main(folder: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from actors.ledger.handle import Ledger
    from actors.search_workers import start_search_workers
    from jobs.run.folder import Run
    from jobs.run.job import prepare
    from jobs.runtime import cluster as clusters
    from jobs.runtime.terminal import Terminal
    from jobs.search import run as search
    from jobs.search.table import TrialTable
    from jobs.search.trial import Scene
    from jobs.search.tuning import Listener, run_trials
    from jobs.search.validation import make_validation
    from potstill.config import parse
    from potstill.search.ending import Ending
    from potstill.search.placement import place
    from tests.endpoint.client import Endpoint
    from tests.support.tiny_student import make_student

    folder.mkdir(parents=True, exist_ok=True)
    quick: dict[str, Any] = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    with socket.socket() as probe:  # other clusters may have the usual one
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head: dict[str, Any] = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": port, "_system_config": quick}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    keeps = nodes.add_node(num_cpus=1, num_gpus=1)
    goes = nodes.add_node(num_cpus=1, num_gpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    nodes.wait_for_nodes()
    with Endpoint() as endpoint:
        config = parse(
            {
                "task": {"preset": "demo", "max_test": 10},
                "storage": str(folder / "runs"),
                "ledger": {"uri": f"sqlite:///{folder}/ledger.db"},
                "tracking": {"uri": "none"},
                "augment": {"per_class": 2, "max_rounds": 1, "max_tokens": 30},
                "student": {
                    "model": make_student(folder / "bert"),
                    "min_steps": 1,
                    "epochs": 1,
                    "second_opinion": 0,
                    "blend": 0,
                },
                "teacher": {
                    "kind": "openai",
                    "model": "scripted-1",
                    "base_url": endpoint.base_url,
                    "api_key_env": "",
                    "requests_per_minute": 60_000,
                },
                "search": {
                    "space": {"student.weight_decay": [0.01 * number for number in range(6)]},
                    "searcher": "grid",
                    "max_validation": 20,
                },
            }
        )
        placement, problems = place(config, clusters.resources(), 6)
        assert placement is not None, problems
        job = prepare(config, Terminal())
        job = replace(job, run=Run(config.storage, search.name_search(job)))
        ledger = Ledger(config.ledger.uri)
        workshop = start_search_workers(replace(placement, device="cpu"), config.teacher, ledger, str(folder / "logs"))
        started = ray.get(workshop.start.remote())
        scene = Scene(
            config,
            job.task,
            job.data,
            make_validation(job, workshop, ledger),
            job.run,
            workshop,
            ledger,
            replace(placement, device="cpu"),
        )
        table = TrialTable(job.run)

        def take_away() -> None:
            while not table.of("finished"):
                time.sleep(0.1)
            nodes.remove_node(goes, allow_graceful=False)

        thread = threading.Thread(target=take_away)
        thread.start()
        quiet = Listener(lambda trial: None, lambda trial: None, lambda trial: None)
        run_trials(scene, table, Ending(), quiet)
        thread.join()
        deadline = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) > 2 and time.monotonic() < deadline:
            time.sleep(0.2)  # the trials may have ended before the node is known to be gone
        found = {
            "benches": placement.torch_workers,
            "concurrency": placement.concurrency,
            "started": started,
            "finished": len(table.of("finished")),
            "errors": [trial.error for trial in table.trials if trial.error],
            "alive": sum(node["Alive"] for node in ray.nodes()),
            "kept": keeps.node_id in {node["NodeID"] for node in ray.nodes() if node["Alive"]},
        }
        (folder / "found.json").write_text(json.dumps(found))
        ray.kill(workshop)
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
