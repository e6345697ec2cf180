"""Ctrl-C and SIGTERM: a job ends in time, leaves nothing running, loses nothing."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest

from jobs.runtime import interrupt
from tests.endpoint.client import Endpoint
from tests.support.command_line import MAILROOM, ROOT, command, environment, family, kill, write_config

START_S = 400  # only prevents a hang: a loaded machine takes over a minute
# Time enough to unwind, however busy the machine is.
PATIENT = """
from actors.teachers import pool
from jobs.__main__ import main
from jobs.runtime import interrupt
interrupt.DEADLINE_S, pool.INTERRUPTED_S = 300.0, 60.0
main()
"""
STUBBORN = """
import subprocess, sys, threading
from jobs.runtime import interrupt
interrupt.DEADLINE_S = 0.2
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
with interrupt.handled():
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
    process.stdout.readline()
    print(process.pid, flush=True)
    try:
        threading.Event().wait()
    finally:
        threading.Event().wait()  # as Ray's own clean-up may
"""


def count(ledger, table):
    try:
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
            return connection.execute(f"select count(*) from {table}").fetchone()[0]
    except sqlite3.OperationalError:  # does not exist yet
        return 0


def stop_while_asking(potstill, home, known, send):
    """Start ``generate``, wait for an answer, call ``send`` on the process: (exit code, processes left, output)."""
    process = subprocess.Popen(
        potstill,
        cwd=ROOT,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        started = time.monotonic()
        while count(home / "ledger.db", "responses") <= known:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() - started < START_S, "no answer came"
            time.sleep(0.2)
        children = family(process.pid)[:-1]
        assert any("raylet" in child.name() for child in children)
        send(process.pid)
        output, _ = process.communicate(timeout=300)
        _, left = psutil.wait_procs(children, timeout=60)
        return process.returncode, [child.name() for child in left], output
    finally:
        if process.poll() is None:
            kill(family(process.pid))


@pytest.mark.slow
def test_a_stopped_job_loses_nothing_and_continues_later(tmp_path):
    ledger = tmp_path / "ledger.db"
    with Endpoint(latency_s=0.5) as endpoint:
        teacher = {
            "kind": "openai",
            "model": "scripted-1",
            "base_url": endpoint.base_url,
            "api_key_env": "",
            "requests_per_minute": 60_000,
            "concurrency": 4,
        }
        content = {"task": str(MAILROOM), "augment": {"per_class": 500, "max_tokens": 40}, "teacher": teacher}
        config = write_config(tmp_path / "tiny.yaml", content)

        # Like Ctrl-C: to the whole foreground process group.
        patient = [sys.executable, "-c", PATIENT, "generate", config]
        code, left, output = stop_while_asking(patient, tmp_path, 0, lambda pid: os.killpg(pid, signal.SIGINT))
        assert (code, left) == (130, [])
        assert interrupt.LINE in output
        assert "Traceback" not in output
        answered = count(ledger, "responses")
        asked = [entry for entry in endpoint.book() if entry.route == "chat" and "Is water wet?" not in entry.prompt]
        assert answered == sum(entry.answered for entry in asked) > 0
        assert count(ledger, "claims") == 0

        # Like `ray job stop`: to the job's process only. The next run continues from the ledger.
        potstill = command("generate", config)
        code, left, output = stop_while_asking(potstill, tmp_path, answered, lambda pid: os.kill(pid, signal.SIGTERM))
        assert (code, left) == (143, [])
        assert interrupt.LINE in output
        assert count(ledger, "responses") > answered


def test_a_job_that_does_not_unwind_is_ended_with_its_processes():
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors.strip()) == (143, interrupt.LINE)
        psutil.wait_procs([child], timeout=60)
        assert not child.is_running()
    finally:
        process.kill()
