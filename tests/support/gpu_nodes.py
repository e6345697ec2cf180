"""Start a fit on two nodes with three logical GPUs; writes where its workers landed to FOLDER/found.json.

    python tests/support/gpu_nodes.py FOLDER

A program of its own, since a process has one Ray and that of the tests has one node. No GPU is needed: the workers say
where they are and train nothing.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def main(folder: Path) -> None:
    """Ask for one worker a GPU, and then for one more than there are."""
    import ray
    from ray.cluster_utils import Cluster

    from actors.training.job import TrainingJob
    from jobs.stages import train as training
    from potstill.config.student import StudentConfig
    from potstill.errors import InputError
    from potstill.student.arms import Arm
    from tests.support.tiny_student import LABELS, make_rows, make_student

    def loop(config: Mapping[str, Any]) -> dict[str, Any]:
        context = ray.get_runtime_context()
        place = [context.get_node_id(), *context.get_accelerator_ids()["GPU"], os.environ["CUDA_VISIBLE_DEVICES"]]
        (folder / f"{os.getpid()}.place").write_text(json.dumps(place))
        return {}

    with socket.socket() as probe:  # other clusters may have the usual one
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": True, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, num_gpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    try:
        config = StudentConfig(model=make_student(folder / "bert"))
        workers, on_gpu = training.choose_workers(config, ray.cluster_resources())
        training.run_fit(TrainingJob(LABELS, config, (), "cuda"), workers, str(folder / "fits/placed"), loop=loop)
        started, refused = time.monotonic(), ""
        try:
            more = config.model_copy(update={"workers": workers + 1})
            training.train([Arm("one", make_rows(12))], more, LABELS, str(folder))
        except InputError as error:
            refused = str(error)
        found = {
            "workers": workers,
            "on_gpu": on_gpu,
            "places": [json.loads(file.read_text()) for file in folder.glob("*.place")],
            "refused": refused,
            "refused_after_s": time.monotonic() - started,
        }
        (folder / "found.json").write_text(json.dumps(found))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
