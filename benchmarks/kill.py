"""What a crash costs: the teacher pool, its ledger and its driver, each killed at a random moment.

    python benchmarks/kill.py --times 20 --json kill.json

A real Ray, a real endpoint in a process of its own, which keeps a book of what it is asked. Each time a new ledger,
two teacher processes and a few thousand requests; at a random moment ``kill -9`` of

    teacher   one of the two processes that send requests
    ledger    the process that owns the ledger
    driver    the process that runs the pool, with which Ray ends the teachers

The work then goes on (for the driver: by starting again), and afterwards everything is run once more. It must hold:

- no request is asked again whose answer the ledger held at the kill, nor any in the last run;
- requests asked twice are at most those on their way at the kill: asked, and not in the ledger (teachers outlive their
  driver by some tenths of a second, until Ray has ended them, and go on meanwhile; then it is their end that counts);
- the answers are those of a run that nobody disturbed.

Beside it is counted what was *paid* twice: answered whole both times.
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
LEASE_S = 6.0  # a claim of a killed driver blocks the next one for so long: 60 s in real life, shorter here
WAIT_S = 300.0
COMPARED = ["request_id", "text", "finish_reason", "choice_logprobs", "residual_mass", "prompt_tokens"]
COMPARED += ["completion_tokens", "cost_usd", "error"]


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked in every run: ``requests`` of them, every fourth for a class."""

    base_url: str
    requests: int
    concurrency: int
    actors: int = 2

    def teacher(self) -> OpenAITeacher:
        """The endpoint as a teacher; its rate is known, so that no run is spent on looking for it."""
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
        """The requests; each has another prompt, by which the endpoint's book tells them apart."""
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
        """One run of the pool; ``on_start`` learns the pids of its processes before anything is asked."""
        with TeacherPool(self.teacher(), Ledger(uri, lease_s=LEASE_S)) as pool:
            if on_start is not None:
                pool.start()
                on_start([pid_of(actor) for actor in pool.actors])
            return pool.ask(self.wanted())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one kill did. ``moment``: share of the requests that the endpoint had been asked by then.

    ``in_flight``: asked, and not in the ledger, at the kill; ``asked_twice`` and ``paid_twice``: requests;
    ``asked_though_kept``: asked again though the ledger had them; ``strays``: asked twice, but not in flight.
    ``wrong_rows``: other than in the undisturbed run; ``seconds``: from the kill to all answers.
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
        """Whether nothing was lost or asked needlessly."""
        return not (self.asked_though_kept or self.strays or self.wrong_rows or self.asked_twice > self.in_flight)


@dataclass(slots=True)
class Shot:
    """A kill in waiting: once the endpoint has been asked ``after`` requests, one of ``victims`` gets it.

    ``heirs``: processes that end because of it, if any. ``at``: when all that had to end had ended; ``kept``: ids of
    the requests that the ledger held then; ``read_at``: when the endpoint had read all that they had sent;
    ``failure``: why there was no kill.
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
        """Wait for a victim and for the moment, then kill."""
        deadline = time.monotonic() + WAIT_S
        while not self.victims or len(self.endpoint.book(self.since)) < self.after:
            if time.monotonic() > deadline:
                self.failure = "the moment never came"
                return
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.05))
        victim = random.choice(self.victims)
        try:
            self.killed = time.time()
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            self.failure = "it had ended before"
            return
        while any(map(is_alive, [victim, *self.heirs])):
            time.sleep(0.005)
        self.at = time.time()
        self.kept = read_kept(self.ledger)
        for _ in range(3):  # it reads in order of arrival: what the dead had sent comes before these
            self.endpoint.summary()
        self.read_at = time.time()


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that nobody has waited for yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pid_of(actor: Any) -> int:
    """The process of an actor."""
    import ray

    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))


def read_kept(path: Path) -> frozenset[str]:
    """Ids of the requests whose answers are durable."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        return frozenset(row[0] for row in connection.execute("SELECT request_id FROM responses"))


def comparable(table: pa.Table) -> list[dict[str, Any]]:
    """Rows without what differs from run to run: times, and whether the ledger had them."""
    return table.select(COMPARED).sort_by("request_id").to_pylist()


def kill_once(kind: str, work: Work, endpoint: Endpoint, folder: Path, expected: list[dict[str, Any]]) -> Outcome:
    """One kill in one run on a new ledger, and the run after it. Raises ``RuntimeError`` where it came too late."""
    path = folder / f"{time.monotonic_ns()}.db"
    uri = f"sqlite:///{path}"
    first = len(endpoint.book())
    moment = random.random()
    shot = Shot(endpoint, first, 1 + int(moment * work.requests), path)
    if kind == "ledger":
        ledger = Ledger(uri, lease_s=LEASE_S)
        ledger.count_known([])
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
    """The endpoint's book against what the ledger held at the kill. ``needless``: requests of the last run."""
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
    """Run the pool in a driver of its own, the victim, until it ends. Raises ``RuntimeError`` if that was no kill."""
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
    """All kills, and what they did. Needs a connected Ray."""
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
    """By kind: how many passed, and least, median and most of the counts."""
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
    """Run it and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="kills of each kind")
    parser.add_argument("--requests", type=int, default=2000, help="of each run")
    parser.add_argument("--concurrency", type=int, default=128, help="requests in flight")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
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
