"""Connect to the Ray cluster, or start a local one, quietly.

Inside ``ray job submit`` or with ``RAY_ADDRESS`` set, the existing cluster is used. Otherwise a local one starts for this
job and ends with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.runtime import interrupt

# Ray reads these at its import or at process start, so they are set before `import ray`.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a report costs one interval, 2 s by default
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keep CUDA_VISIBLE_DEVICES in CPU tasks; otherwise Ray warns
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@contextlib.contextmanager
def connect(verbose: bool = False, num_cpus: int | None = None) -> Iterator[Any]:
    """A connected ``ray`` module. A local cluster shuts down at the end of the block, also on Ctrl-C.

    A cluster that ``ray start`` runs on this machine is only joined if ``RAY_ADDRESS`` names it. ``num_cpus``: of a local
    cluster; default: all.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if not verbose:
        warnings.filterwarnings("ignore", module="ray")
        warnings.filterwarnings("ignore", message=".*ray_remote_args")  # deprecated without a replacement
    on_terminate = signal.getsignal(signal.SIGTERM)
    ray.init(
        address=address or "local",
        num_cpus=None if address else num_cpus,
        # The dashboard's process cleans up after Ray Train and Tune. Its pages are local to this machine.
        include_dashboard=None if address else True,
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
        configure_logging=True,
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray has installed its own, which just exits
    if not verbose:
        quiet_data()
    try:
        yield ray
    finally:
        # An orderly shutdown takes seconds. After Ctrl-C, the processes of a local cluster are killed instead.
        if address or not interrupt.received():
            ray.shutdown()


def quiet_data() -> None:
    """Hide Ray Data's plans and progress bars (its log files keep them)."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def resources() -> dict[str, float]:
    """Total resources of the cluster by name."""
    import ray

    return {name: float(amount) for name, amount in ray.cluster_resources().items()}


def node_cpus() -> list[float]:
    """CPUs of each live node."""
    import ray

    return [float(node["Resources"].get("CPU", 0.0)) for node in ray.nodes() if node["Alive"]]


def upper_bound() -> dict[str, float] | None:
    """The resources of a cluster started by ``connect``, at most; None if unknown before the start."""
    if os.environ.get("RAY_ADDRESS") or any(Path("/dev").glob("nvidia[0-9]*")):
        return None
    return {"CPU": float(os.cpu_count() or 1)}
