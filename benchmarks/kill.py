"""Measure the cost of a crash: kill the teacher pool, its ledger or its driver at a random moment.

    python benchmarks/kill.py --times 20 --json kill.json

Ray and the endpoint are real; the endpoint runs in a separate process and logs its requests. Each run has a new ledger,
two teacher processes and a few thousand requests; at a random moment, ``kill -9`` hits

    teacher   one of the two processes that send requests
    ledger    the process that owns the ledger
    driver    the process that runs the pool; Ray then ends the teachers

The work then continues (a killed driver is restarted), and a last run repeats everything. Three conditions must hold:

- no request whose answer was in the ledger at the kill is sent again, and the last run sends none;
- only requests in flight at the kill (sent, but not in the ledger) are sent twice. Teachers outlive their driver by a
  few tenths of a second and keep sending until Ray ends them; for them, the moment of their end counts;
- the answers equal those of an undisturbed run.

Requests *paid* twice (answered completely both times) are also counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import pyarrow as pa

from actors.backends.identity import identify
from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool
from jobs.runtime import cluster
from potstill.config.teacher import OpenAITeacher
from potstill.rows import Message, Request, Sampling
from tests.endpoint.book import Entry
from tests.endpoint.client import Endpoint

KINDS = ("teacher", "ledger", "driver")
CLASSES = ("app error", "billing", "refund")
LEASE_S = 6.0  # how long a killed driver's claim blocks the next one: 60 s in production, shorter here
WAIT_S = 300.0
COMPARED = ["request_id", "text", "finish_reason", "choice_logprobs", "residual_mass", "prompt_tokens"]
COMPARED += ["completion_tokens", "cost_usd", "error"]


@dataclass(frozen=True, slots=True)
class Work:
    """The work of every run: ``requests`` requests, every fourth for a class."""

    base_url: str
    requests: int
    concurrency: int
    actors: int = 2

    def teacher(self) -> OpenAITeacher:
        """Return the endpoint as a teacher with a configured rate, so no run spends time discovering it."""
        return OpenAITeacher(
            kind="openai",
            model="scripted-1",
            base_url=self.base_url,
            provider="kill",
            api_key_env="",
            concurrency=self.concurrency,
            requests_per_minute=600_000,
            price={"prompt": 1.0, "completion": 2.0},
            actors=self.actors,
        )

    def wanted(self) -> list[Request]:
        """Return the requests; their unique prompts identify them in the endpoint's log."""
        identity = identify(self.teacher())
        return [
            Request(
                stage="relabel" if number % 4 == 0 else "generate",
                task="kill",
                strategy="few_shot",
                renderer="codes",
                provider=identity.provider,
                model=identity.model,
                weights_digest=None,
                messages=(Message("user", f"Write 2 examples of a complaint. Number {number}."),),
                sampling=Sampling(max_tokens=40),
                choices=CLASSES if number % 4 == 0 else (),
            )
            for number in range(self.requests)
        ]

    def ask(self, uri: str, on_start: Callable[[list[int]], None] | None = None) -> pa.Table:
        """Run the pool once; ``on_start`` gets the pids of its processes before the first request."""
        with TeacherPool(self.teacher(), Ledger(uri, lease_s=LEASE_S)) as pool:
            if on_start is not None:
                pool.start()
                on_start([pid_of(actor) for actor in pool.actors])
            return pool.ask(self.wanted())


@dataclass(frozen=True, slots=True)
class Outcome:
    """The effect of one kill. ``moment``: share of the requests that had reached the endpoint by then.

    ``in_flight``: sent but not in the ledger at the kill; ``asked_twice`` and ``paid_twice``: numbers of requests;
    ``asked_though_kept``: sent again although in the ledger; ``strays``: sent twice but not in flight;
    ``wrong_rows``: rows that differ from the undisturbed run; ``seconds``: from the kill to all answers.
    """

    kind: str
    moment: float
    in_flight: int
    asked_twice: int
    paid_twice: int
    asked_though_kept: int
    strays: int
    wrong_rows: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Return whether nothing was lost or sent needlessly."""
        return not (self.asked_though_kept or self.strays or self.wrong_rows or self.asked_twice > self.in_flight)


@dataclass(slots=True)
class Shot:
    """A scheduled kill of one of ``victims``, once the endpoint has received ``after`` requests.

    ``heirs``: processes that end as a consequence; ``at``: time when victim and heirs had ended; ``kept``: ids of the
    requests in the ledger at that time; ``read_at``: time when the endpoint had read everything they had sent;
    ``failure``: why the kill did not happen.
    """

    endpoint: Endpoint
    since: int
    after: int
    ledger: Path
    victims: list[int] = field(default_factory=list)
    heirs: list[int] = field(default_factory=list)
    killed: float = 0.0
    at: float = 0.0
    read_at: float = 0.0
    kept: frozenset[str] = frozenset()
    failure: str = ""

    def fire(self) -> None:
        """Wait for a victim and the moment, then kill."""
        deadline = time.monotonic() + WAIT_S
        while not self.victims or len(self.endpoint.book(self.since)) < self.after:
            if time.monotonic() > deadline:
                self.failure = "the kill was never due"
                return
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.05))
        victim = random.choice(self.victims)
        try:
            self.killed = time.time()
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            self.failure = "the victim had already ended"
            return
        while any(map(is_alive, [victim, *self.heirs])):
            time.sleep(0.005)
        self.at = time.time()
        self.kept = read_kept(self.ledger)
        for _ in range(3):  # requests are read in order of arrival, so those of the killed come before these
            self.endpoint.summary()
        self.read_at = time.time()


def is_alive(pid: int) -> bool:
    """Return whether a process is running; a zombie is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pid_of(actor: Any) -> int:
    """Return the pid of an actor's process."""
    import ray

    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))


def read_kept(path: Path) -> frozenset[str]:
    """Return the ids of requests whose answers are durable."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        return frozenset(row[0] for row in connection.execute("SELECT request_id FROM responses"))


def comparable(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows without fields that vary between runs: times and whether the ledger had them."""
    return table.select(COMPARED).sort_by("request_id").to_pylist()


def kill_once(kind: str, work: Work, endpoint: Endpoint, folder: Path, expected: list[dict[str, Any]]) -> Outcome:
    """Kill once during a run on a new ledger, then run again. Raises ``RuntimeError`` if the kill came too late."""
    path = folder / f"{time.monotonic_ns()}.db"
    uri = f"sqlite:///{path}"
    first = len(endpoint.book())
    moment = random.random()
    shot = Shot(endpoint, first, 1 + int(moment * work.requests), path)
    if kind == "ledger":
        ledger = Ledger(uri, lease_s=LEASE_S)
        ledger.read("count_known", [])
        shot.victims.append(pid_of(ledger._actor))
    marksman = threading.Thread(target=shot.fire, daemon=True)
    marksman.start()
    if kind == "driver":
        drive(work, uri, shot)
    else:
        table = work.ask(uri, shot.victims.extend if kind == "teacher" else None)
    marksman.join(WAIT_S)
    if shot.failure or not shot.read_at:
        raise RuntimeError(shot.failure or "nothing ended")
    if kind == "driver":
        table = work.ask(uri)
    seconds = time.time() - shot.killed
    asked = len(endpoint.book())
    again = comparable(work.ask(uri))
    book = endpoint.book(first)
    rows = comparable(table)
    wrong = sum(a != b for a, b in zip(rows, expected, strict=False)) + abs(len(rows) - len(expected))
    wrong += again != rows
    return judge(kind, work, shot, book, needless=len(endpoint.book()) - asked, wrong=wrong, seconds=seconds)


def judge(
    kind: str, work: Work, shot: Shot, book: Sequence[Entry], needless: int, wrong: int, seconds: float
) -> Outcome:
    """Compare the endpoint's log with the ledger at the kill. ``needless``: requests of the last run."""
    names = {request.messages[-1].content: request.request_id for request in work.wanted()}
    ours = [entry for entry in book if entry.prompt in names]
    before = Counter(names[entry.prompt] for entry in ours if entry.arrived < shot.read_at)
    after = Counter(names[entry.prompt] for entry in ours if entry.arrived >= shot.at)
    asked = Counter(names[entry.prompt] for entry in ours)
    paid = Counter(names[entry.prompt] for entry in ours if entry.answered)
    twice = {name for name, count in asked.items() if count > 1}
    in_flight = set(before) - shot.kept
    return Outcome(
        kind=kind,
        moment=round(sum(before.values()) / work.requests, 3),
        in_flight=len(in_flight),
        asked_twice=len(twice),
        paid_twice=sum(count > 1 for count in paid.values()),
        asked_though_kept=len(set(after) & shot.kept) + needless,
        strays=len(twice - in_flight),
        wrong_rows=wrong,
        seconds=round(seconds, 2),
    )


def drive(work: Work, uri: str, shot: Shot) -> None:
    """Run the pool in a separate driver (the victim) until it ends. Raises ``RuntimeError`` if it was not killed."""
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, __file__, "--drive", json.dumps(asdict(work)), "--ledger", uri]
    driver = subprocess.Popen(
        command, env={**os.environ, "RAY_ADDRESS": address}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = ""
    for line in driver.stdout or ():
        said += line
        if line.startswith("pids "):
            shot.heirs += json.loads(line.removeprefix("pids "))
            shot.victims.append(driver.pid)
    if driver.wait() != -signal.SIGKILL:
        raise RuntimeError(f"the driver ended by itself ({driver.returncode}): {said[-2000:]}")


def run(work: Work, endpoint: Endpoint, folder: Path, kinds: Sequence[str], times: int) -> list[Outcome]:
    """Carry out all kills and return their outcomes. Requires an initialised Ray."""
    expected = comparable(work.ask(f"sqlite:///{folder}/undisturbed.db"))
    outcomes: list[Outcome] = []
    for kind in kinds:
        late = 0
        while sum(outcome.kind == kind for outcome in outcomes) < times:
            try:
                outcomes.append(kill_once(kind, work, endpoint, folder, expected))
            except RuntimeError as error:
                late += 1
                print(f"{kind}: again, {error}", file=sys.stderr, flush=True)
                if late > times:
                    raise
                continue
            print(json.dumps(asdict(outcomes[-1])), flush=True)
    return outcomes


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return, by kind, how many passed and the minimum, median and maximum of the counts."""
    summary: dict[str, Any] = {}
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        figures: dict[str, Any] = {"kills": len(mine), "passed": sum(outcome.passed for outcome in mine)}
        for name in ("asked_though_kept", "strays", "wrong_rows"):
            figures[name] = sum(getattr(outcome, name) for outcome in mine)
        for name in ("in_flight", "asked_twice", "paid_twice", "seconds"):
            values = [getattr(outcome, name) for outcome in mine]
            figures[name] = [min(values), statistics.median(values), max(values)]
        summary[kind] = figures
    return summary


def main() -> None:
    """Run the benchmark and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="kills per kind")
    parser.add_argument("--requests", type=int, default=2000, help="requests per run")
    parser.add_argument("--concurrency", type=int, default=128, help="requests in flight")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds to run, comma-separated")
    parser.add_argument("--seed", type=int, default=0, help="seed for moments and victims")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--ledger", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        with cluster.connect():
            Work(**json.loads(options.drive)).ask(options.ledger, lambda pids: print("pids", pids, flush=True))
        return
    random.seed(options.seed)
    script = {"latency_s": 0.1, "latency_sigma": 0.5}
    with Endpoint(**script) as endpoint, tempfile.TemporaryDirectory() as folder, cluster.connect():
        work = Work(endpoint.base_url, options.requests, options.concurrency)
        outcomes = run(work, endpoint, Path(folder), options.kinds.split(","), options.times)
    summary = summarise(outcomes)
    print(json.dumps(summary, indent=2))
    if options.json:
        options.json.write_text(json.dumps({"summary": summary, "kills": list(map(asdict, outcomes))}, indent=2) + "\n")
    sys.exit(0 if all(outcome.passed for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
