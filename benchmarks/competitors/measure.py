"""Run a competitor and measure it: rates from the endpoint's log, CPU from the process tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.endpoint.book import Entry
from tests.endpoint.client import Endpoint

FOLDER = Path(__file__).resolve().parent
SAMPLE_S = 0.25  # a process shorter than this can escape sampling
RAY_SERVICES = ("raylet", "gcs_server", "dashboard", "runtime_env", "log_monitor", "monitor.py", "autoscaler")


class CompetitorError(Exception):
    """A competitor failed; the message has the tail of its output."""


@dataclass(frozen=True, slots=True)
class Run:
    """The measurements of one run of a competitor.

    ``seconds``: from the first request's arrival at the endpoint to its last answer; ``in_hand_s``: until the caller has
    all answers. ``cpu_s``: user and system time of all the competitor's processes in that time; ``services_cpu_s``: the
    share of Ray's own processes (raylet, GCS, dashboard). ``in_flight``: mean at the endpoint.
    """

    competitor: str
    answered: int
    seconds: float
    in_hand_s: float
    cpu_s: float
    services_cpu_s: float
    in_flight: float

    @property
    def per_s(self) -> float:
        """Requests per second according to the endpoint's log."""
        return self.answered / self.seconds

    @property
    def in_hand_per_s(self) -> float:
        """Requests per second until the caller has all answers."""
        return self.answered / self.in_hand_s

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per request."""
        return 1000 * self.cpu_s / self.answered

    @property
    def own_cpu_ms(self) -> float:
        """CPU milliseconds per request without Ray's own processes."""
        return 1000 * (self.cpu_s - self.services_cpu_s) / self.answered


class TreeCpu:
    """CPU seconds of a process tree, including processes that have ended. Sampled by a thread."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[tuple[int, float], tuple[float, bool]] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._sample, daemon=True).start()

    def seconds(self) -> tuple[float, float]:
        """Return the CPU seconds so far of all processes and of Ray's services alone."""
        with self._lock:
            self._look()
            values = list(self._seen.values())
        return sum(value for value, _ in values), sum(value for value, service in values if service)

    def stop(self) -> None:
        """Stop sampling."""
        self._stop.set()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            with self._lock:
                self._look()

    def _look(self) -> None:
        try:
            found = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in found:
            try:
                times, key = process.cpu_times(), (process.pid, process.create_time())
                service = self._seen[key][1] if key in self._seen else _is_service(process.cmdline())
            except psutil.Error:
                continue
            self._seen[key] = (times.user + times.system, service)


def _is_service(command: Sequence[str]) -> bool:
    return not command[:1] or (
        not command[0].startswith("ray::") and any(name in " ".join(command[:4]) for name in RAY_SERVICES)
    )


class Competitor:
    """A started process of ``competitors/SCRIPT`` that waits for ``go``. Raises ``CompetitorError``."""

    def __init__(self, script: str, told: Mapping[str, Any], python: str = sys.executable) -> None:
        self._name = script
        self._tail: list[str] = []
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._process = subprocess.Popen(
            [python, str(FOLDER / script), json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.pid = self._process.pid
        self._wait("ready")

    @property
    def is_alive(self) -> bool:
        """Return whether the process is running."""
        return self._process.poll() is None

    def go(self) -> None:
        """Tell the process to start its work."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def done(self) -> dict[str, Any]:
        """Wait for the end of the work and return its report."""
        found: dict[str, Any] = json.loads(self._wait("done "))
        return found

    def _wait(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(f"@@{word}"):
                return line.removeprefix(f"@@{word}")
            self._tail = [*self._tail[-20:], line.rstrip()]
        self._process.wait()
        raise CompetitorError(f"{self._name} ended with {self._process.returncode}: " + " | ".join(self._tail[-6:]))

    def close(self) -> None:
        """End the process, gracefully if possible."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            for process in [*psutil.Process(self.pid).children(recursive=True), self._process]:
                process.kill()
            self._process.wait()


def run(name: str, script: str, told: Mapping[str, Any], latency_s: float, python: str = sys.executable) -> Run:
    """Run a competitor against its own endpoint."""
    with Endpoint(latency_s=latency_s, book_characters=80) as endpoint:
        competitor = Competitor(script, {"base_url": endpoint.base_url, **told}, python)
        cpu = TreeCpu(competitor.pid)
        try:
            endpoint.clear_book()
            competitor.go()
            while competitor.is_alive and not endpoint.summary()["asked"]:
                time.sleep(0.01)
            at_first = cpu.seconds()
            said = competitor.done()
            at_end = cpu.seconds()
            return to_run(name, endpoint.book(), said["finished_at"], at_first, at_end)
        finally:
            cpu.stop()
            competitor.close()


def to_run(
    name: str,
    book: Iterable[Entry],
    finished_at: float,
    cpu_first: tuple[float, float],
    cpu_end: tuple[float, float],
) -> Run:
    """Compute a run from the endpoint's log and the CPU seconds (all, services) before and after."""
    entries = [entry for entry in book if entry.answered]
    if not entries:
        raise CompetitorError(f"{name}: the endpoint answered nothing")
    first, last = min(entry.arrived for entry in entries), max(entry.ended or 0.0 for entry in entries)
    return Run(
        name,
        len(entries),
        last - first,
        max(last, finished_at) - first,
        cpu_end[0] - cpu_first[0],
        cpu_end[1] - cpu_first[1],
        sum((entry.ended or 0.0) - entry.arrived for entry in entries) / (last - first),
    )


def shares_of_rate(book: Iterable[Entry], per_minute: float, seconds: float) -> tuple[float, float]:
    """Return the answered share of the allowed rate and the refused (429) share of all requests.

    Both cover the first ``seconds`` after the first arrival.
    """
    entries = [entry for entry in book if entry.route == "chat"]
    if not entries:
        return 0.0, 0.0
    end = min(entry.arrived for entry in entries) + seconds
    within = [entry for entry in entries if entry.arrived < end]
    refused = sum(entry.status == 429 for entry in within)
    answered = sum(entry.status == 200 for entry in within)
    return answered / (per_minute * seconds / 60), refused / len(within)
