"""`ray job submit` against a real `ray start --head`: the job runs, and an edit to the code loses no paid answer."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from command_line import MAILROOM, ROOT, environment, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RAY = Path(sys.executable).with_name("ray")
START_S = 90


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def head(potstill_home, tmp_path):
    """A head node with its own ports, folder and token: (address for `ray job submit`, environment)."""
    (tmp_path / "token").write_text("0123456789abcdef" * 4)
    variables = environment(potstill_home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    port, dashboard, agent, agent_grpc, client, metrics = free_ports(6)
    # Ray's sockets lie in its folder, and a socket's path may not exceed 107 characters: pytest's folders are too deep.
    folder = tempfile.mkdtemp(prefix="potstill-ray-")
    arguments = [
        *("--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}", f"--port={port}"),
        *("--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
        f"--metrics-export-port={metrics}",
    ]
    log = (tmp_path / "head.log").open("w")
    process = subprocess.Popen(
        [RAY, "start", *arguments], env=variables, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
    )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for(address, process, tmp_path / "head.log")
        yield address, variables
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        os.kill(process.pid, signal.SIGTERM)
        _, left = psutil.wait_procs(map(as_psutil, family), timeout=10)
        for one in left:
            one.kill()
        psutil.wait_procs(left, timeout=5)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def as_psutil(process):
    try:
        return psutil.Process(process.pid)
    except psutil.NoSuchProcess:
        return process


def wait_for(address, process, log):
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2)
            return
        except urllib.error.HTTPError:  # it wants the token, so it is there
            return
        except OSError:
            time.sleep(0.3)


@pytest.fixture
def tree(tmp_path):
    """A copy of the repository that may be edited, with a task and a config of its own."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("jobs", "actors", "potstill", "tasks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(MAILROOM, copy / "mailroom")
    write_config(
        copy / "tiny.yaml",
        {
            "task": "mailroom",
            "augment": {"per_class": 3, "over_generate": 1.5},
            "student": {"epochs": 1, "min_steps": 2, "workers": 1},
            "teacher": {"actors": 1},
        },
    )
    return copy


def submit(head, tree, *arguments):
    """``ray job submit``; tried again while the fresh cluster says that it has no agent yet to take jobs."""
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
            timeout=300,
            check=False,
        )
        if "No available agent to submit job" not in done.stderr + done.stdout or time.monotonic() > deadline:
            return done
        time.sleep(2)


def generated(potstill_home):
    (report,) = (potstill_home / "runs").glob("*/generate.json")
    return json.loads(report.read_text())["usage"]


def count_generated(potstill_home):
    with sqlite3.connect(f"file:{potstill_home}/ledger.db?mode=ro", uri=True) as connection:
        return connection.execute("select count(*) from responses where stage = 'generate'").fetchone()[0]


def test_a_job_finds_the_same_ledger_after_an_edit(head, tree, potstill_home):
    first = submit(head, tree, "distill", "tiny.yaml")
    assert first.returncode == 0, first.stdout + first.stderr
    usage, answers = generated(potstill_home), count_generated(potstill_home)
    assert usage["new_requests"] == usage["requests"] == answers > 0

    # Another content is another package, in another folder on the node.
    with (tree / "jobs/__init__.py").open("a") as file:
        file.write("\n# edited\n")
    second = submit(head, tree, "generate", "tiny.yaml")
    assert second.returncode == 0, second.stdout + second.stderr
    usage = generated(potstill_home)
    assert usage["requests"] == answers
    assert usage["new_requests"] == 0
    assert count_generated(potstill_home) == answers

    refused = submit(head, tree, "generate", "tiny.yaml", "--set", "storage=runs")
    assert refused.returncode != 0
    assert "is inside this submitted job's copy of the repository and lost after the next edit" in refused.stdout
