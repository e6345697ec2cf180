"""Ctrl-C and SIGTERM on a real job: it ends in time, leaves no process and loses no answer."""

import os
import signal
import sqlite3
import subprocess
import time

import psutil
import pytest

from jobs.runtime import interrupt
from tests.support.command_line import MAILROOM, ROOT, command, environment, write_config

CONFIG = {
    "task": str(MAILROOM),
    "augment": {"per_class": 200, "max_tokens": 48},
    "teacher": {"batch_size": 4, "actors": 1},
}
START_S = 400  # prevents an endless wait; a loaded machine takes over a minute


def count(ledger, table):
    try:
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
            return connection.execute(f"select count(*) from {table}").fetchone()[0]
    except sqlite3.OperationalError:  # no ledger yet
        return 0


def stop_while_asking(potstill_home, config, known, send):
    """Start ``generate``, wait for an answer, call ``send`` on the process: (exit code, seconds, processes left, output)."""
    process = subprocess.Popen(
        command("generate", config),
        cwd=ROOT,
        env=environment(potstill_home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        started = time.monotonic()
        while count(potstill_home / "ledger.db", "responses") <= known:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() - started < START_S, "no answer came"
            time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in child.name() for child in family)
        started = time.monotonic()
        send(process.pid)
        output, _ = process.communicate(timeout=30)
        seconds = time.monotonic() - started
        _, left = psutil.wait_procs(family, timeout=2)
        return process.returncode, seconds, [child.name() for child in left], output
    finally:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()


@pytest.mark.slow
def test_a_stopped_job_ends_in_time_and_resumes(potstill_home, tmp_path):
    config, ledger = write_config(tmp_path / "tiny.yaml", CONFIG), potstill_home / "ledger.db"

    # Ctrl-C signals the whole foreground group.
    code, seconds, left, output = stop_while_asking(potstill_home, config, 0, lambda pid: os.killpg(pid, signal.SIGINT))
    assert (code, left) == (130, [])
    assert seconds < 5
    assert interrupt.LINE in output
    assert "Traceback" not in output
    answered = count(ledger, "responses")
    assert answered > 0
    assert count(ledger, "claims") == 0

    # `ray job stop` signals only the job's process. The job resumes from the ledger.
    code, seconds, left, output = stop_while_asking(
        potstill_home, config, answered, lambda pid: os.kill(pid, signal.SIGTERM)
    )
    assert (code, left) == (143, [])
    assert seconds < 5
    assert interrupt.LINE in output
    assert count(ledger, "responses") > answered
