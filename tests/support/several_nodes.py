"""Training, a search and a GPU fit on a cluster that gains and loses nodes; writes found.json.

    python -m tests.support.several_nodes FOLDER

A separate program, since a process has one Ray and the tests' Ray has one node. All three share it because imports
and clusters are slow to start. The GPUs are logical; no real one is needed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from tests.support.tiny_student import LABELS, make_rows, make_student

STEPS, EVERY = 240, 20
"""Steps of the training that loses a node: far more than it makes between the checkpoint of step 60 and the loss."""


def start_cluster(cpus: int = 1, gpus: int = 0) -> Cluster:
    """Start a head node that notices a lost node within seconds."""
    quick: dict[str, Any] = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    with socket.socket() as probe:  # another cluster may use the default port
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head: dict[str, Any] = {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "include_dashboard": True,
        "dashboard_port": port,
        "_system_config": quick,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)
    return cluster


def wait_until_alive(count: int) -> int:
    """Wait up to two minutes for ``count`` live nodes; return the number that Ray considers alive."""
    deadline = time.monotonic() + 120
    while (alive := sum(node["Alive"] for node in ray.nodes())) != count and time.monotonic() < deadline:
        time.sleep(0.2)
    return alive


def lose_a_node_in_training(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Train two students on two nodes of one CPU each and remove one node during the second. Leaves the head node."""
    from jobs.stages import train as training
    from potstill.config.student import StudentConfig
    from potstill.student.arms import Arm
    from tests.support.tiny_jobs import prepare, two_workers

    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    config = StudentConfig(
        model=make_student(folder / "bert"),
        epochs=1,
        min_steps=STEPS,
        batch_size=16,
        learning_rate=2e-3,
        zero_stage=1,
        checkpoint_steps=EVERY,
        max_failures=1,
        precision="float32",
    )

    def take_away() -> None:
        # In the second student. A checkpoint's folder is there before Ray's record names it, and only a recorded one
        # is resumed from.
        while not (
            any(folder.glob("students/*/complete.json"))
            and any("checkpoint_0000060_" in record.read_text() for record in folder.glob("fits/*/*_snapshot.json"))
        ):
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=take_away, daemon=True).start()
    # Until Ray notices the lost node, it tries to start workers there, for a minute by default.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "25"
    rows = make_rows(75)
    arms = [Arm("short", rows[:30], seed=1), Arm("long", rows, seed=2)]
    result = training.train(arms, config, LABELS, str(folder))
    del os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]
    undisturbed = [(prepare(folder / "undisturbed", config, arm), None, None) for arm in arms]
    return {
        "first": result.workers,
        "reports": [asdict(result.students[arm.name].report) for arm in arms],
        "undisturbed": two_workers(folder / "work", undisturbed),
        "checkpoints": [path.name for path in folder.glob("fits/*/checkpoint_*")],
        "alive": wait_until_alive(1),
    }


def lose_a_node_in_a_search(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Run trials on two nodes of one GPU each and remove one during the search. Leaves the head and the other.

    Students are trained on CPUs, but placed as on GPUs.
    """
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

    keeps = cluster.add_node(num_cpus=1, num_gpus=1)
    goes = cluster.add_node(num_cpus=1, num_gpus=1)
    cluster.wait_for_nodes()
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
        workers = start_search_workers(replace(placement, device="cpu"), config.teacher, ledger, str(folder / "logs"))
        started = ray.get(workers.start.remote())
        scene = Scene(
            config,
            job.task,
            job.data,
            make_validation(job, workers, ledger),
            job.run,
            workers,
            ledger,
            replace(placement, device="cpu"),
        )
        table = TrialTable(job.run)

        def take_away() -> None:
            while not table.of("finished"):
                time.sleep(0.1)
            cluster.remove_node(goes, allow_graceful=False)

        thread = threading.Thread(target=take_away)
        thread.start()
        quiet = Listener(lambda trial: None, lambda trial: None, lambda trial: None)
        run_trials(scene, table, Ending(), quiet)
        thread.join()
        ray.kill(workers)
    return {
        "benches": placement.torch_workers,
        "concurrency": placement.concurrency,
        "started": started,
        "finished": len(table.of("finished")),
        "errors": [trial.error for trial in table.trials if trial.error],
        "alive": wait_until_alive(2),  # the trials may end before Ray notices the lost node
        "kept": keeps.node_id in {node["NodeID"] for node in ray.nodes() if node["Alive"]},
    }


def place_workers_on_gpus(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Request one worker per GPU on nodes with one and two, then one worker too many. Trains nothing."""
    from actors.training.job import TrainingJob
    from jobs.stages import train as training
    from potstill.config.student import StudentConfig
    from potstill.errors import InputError
    from potstill.student.arms import Arm

    def loop(config: Mapping[str, Any]) -> dict[str, Any]:
        context = ray.get_runtime_context()
        place = [context.get_node_id(), *context.get_accelerator_ids()["GPU"], os.environ["CUDA_VISIBLE_DEVICES"]]
        (folder / f"{os.getpid()}.place").write_text(json.dumps(place))
        return {}

    cluster.add_node(num_cpus=2, num_gpus=2)
    cluster.wait_for_nodes()
    config = StudentConfig(model=make_student(folder / "bert"))
    workers, on_gpu = training.choose_workers(config, ray.cluster_resources())
    training.run_fit(TrainingJob(LABELS, config, (), "cuda"), workers, str(folder / "fits/placed"), loop=loop)
    fits, refused = sorted(path.name for path in folder.rglob("*")), ""
    try:
        more = config.model_copy(update={"workers": workers + 1})
        training.train([Arm("one", make_rows(12))], more, LABELS, str(folder))
    except InputError as error:
        refused = str(error)
    return {
        "workers": workers,
        "on_gpu": on_gpu,
        "places": [json.loads(file.read_text()) for file in folder.glob("*.place")],
        "refused": refused,
        "begun": sorted(path.name for path in folder.rglob("*")) != fits,
    }


PARTS: tuple[Callable[[Cluster, Path], dict[str, Any]], ...] = (
    lose_a_node_in_training,
    lose_a_node_in_a_search,
    place_workers_on_gpus,
)


def main(folder: Path) -> None:
    cluster, found = start_cluster(), {}
    try:
        for part in PARTS:
            if part is place_workers_on_gpus:
                # Ray Train starts fewer workers if an earlier part still holds a GPU.
                ray.shutdown()
                cluster.shutdown()
                cluster = start_cluster(cpus=2, gpus=1)
            (folder / part.__name__).mkdir(parents=True)
            try:
                found[part.__name__] = part(cluster, folder / part.__name__)
            except Exception:  # each part has its own test
                found[part.__name__] = {"failed": traceback.format_exc()}
            (folder / "found.json").write_text(json.dumps(found))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
