"""Start a real head node with `ray start --head` and submit jobs to it with `ray job submit`."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.support.command_line import MAILROOM, ROOT, environment, family, kill

RAY = Path(sys.executable).with_name("ray")
START_S = 300


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def head_node(home, scratch):
    """Start a head node with its own ports, folder and token; yield (address for `ray job submit`, environment)."""
    (scratch / "token").write_text("0123456789abcdef" * 4)
    variables = environment(home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(scratch / "token"))
    port, dashboard, agent, agent_grpc, client, metrics = free_ports(6)
    # Ray's sockets are in its folder. A socket's path may have at most 107 characters; pytest's folders are too deep.
    folder = tempfile.mkdtemp(prefix="potstill-ray-")
    arguments = [
        *("--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}", f"--port={port}"),
        *("--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
        f"--metrics-export-port={metrics}",
    ]
    log = (scratch / "head.log").open("w")
    process = subprocess.Popen(
        [RAY, "start", *arguments], env=variables, stdout=log, stderr=log, cwd=scratch, start_new_session=True
    )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for(address, process, scratch / "head.log")
        yield address, variables
    finally:
        processes = family(process.pid)
        process.terminate()
        _, left = psutil.wait_procs(processes, timeout=10)
        kill(left)
        psutil.wait_procs(left, timeout=5)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(address, process, log):
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=10)
            return
        except urllib.error.HTTPError:  # it is up: it asks for the token
            return
        except OSError:
            time.sleep(0.3)


def copy_of_repository(folder):
    """Copy what a job is submitted with, so that a test can edit it, and add the invented task."""
    folder.mkdir()
    for name in ("jobs", "actors", "potstill", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(MAILROOM, folder / "mailroom")
    return folder


def submit(head, tree, *arguments):
    """``ray job submit``, retried while the new cluster has no agent to accept jobs."""
    address, variables = head
    command = [RAY, "job", "submit", "--address", address, "--working-dir", "."]
    deadline = time.monotonic() + START_S
    while True:
        done = subprocess.run(
            [*command, "--", sys.executable, "-m", "jobs", *arguments],
            cwd=tree,
            env=variables,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        if "No available agent to submit job" not in done.stderr + done.stdout or time.monotonic() > deadline:
            return done
        time.sleep(2)
