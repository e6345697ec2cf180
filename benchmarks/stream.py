"""Measure a stage of a million requests: the driver's memory and the pool's requests per second.

    python benchmarks/stream.py --requests 1000000 --json stream.json

The stage runs as in a job: PromptMix requests are planned, looked up in an empty ledger, answered by processes without
latency, written as Parquet with their answers, and read back as the next step does. Then requests already in a ledger
are replayed through the pool. The rates exclude start-up and the first table of requests. Drawing a PromptMix request
takes four times as long as everything after it; ``--made-up`` uses cheap requests instead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.ledger.handle import Ledger
from actors.ledger.store import LedgerStore
from actors.teachers.pool import CHUNK, TeacherPool, chunks
from benchmarks.ledger import TEXT, answer, make_requests
from jobs.run.job import Job, prepare
from jobs.runtime import cluster
from jobs.runtime.progress import Meter
from jobs.runtime.terminal import Terminal
from jobs.stages import generate
from jobs.stages.ask import ask
from potstill.config import parse
from potstill.rows import Request, Response, to_table

CLASSES = ("abbreviation", "description", "entity", "human", "location", "number")
# Receives no requests: its processes are replaced.
TEACHER = {"kind": "openai", "model": "gpt-4o-mini", "base_url": "http://localhost:9/v1", "api_key_env": ""}
SAMPLE_S = 0.25
GIB = 2**30


class InstantTeacher:
    """A pool process without a model or a ledger."""

    def answer_table(self, requests: pa.Table) -> pa.Table:
        """Answer each request with three texts."""
        from actors.teachers.answers import Answer, to_answer_table

        reply = "\n".join(f"{i}. {TEXT[:100]}" for i in (1, 2, 3))
        names = requests["request_id"].to_pylist()
        return to_answer_table([Answer(Response(name, reply, "stop", (), None, 600, 90), False) for name in names])


class PeakMemory:
    """The highest proportional set size of this process within a ``with`` block, in GiB."""

    def __enter__(self) -> PeakMemory:
        self._process, self._over = psutil.Process(), threading.Event()
        self.start_gib = self.peak_gib = self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _now(self) -> float:
        return self._process.memory_full_info().pss / GIB

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.peak_gib = max(self.peak_gib, self._now())


def make_job(folder: Path) -> Job:
    """A job on a made-up task of six classes, two seeds each, with an HTTP teacher that receives no requests."""
    task = folder / "questions"
    task.mkdir()
    for split in ("train", "test"):
        rows = [f"Which {label} has the {split} number {i}?,{label}" for label in CLASSES for i in range(4)]
        (task / f"{split}.csv").write_text("\n".join(["text,label", *rows]))
    content = {
        "name": "questions",
        "description": "What kind of answer a question asks for.",
        "classes": {label: f"The question asks for something of the kind {label}." for label in CLASSES},
        "data": {"files": {"train": "train.csv", "test": "test.csv"}},
    }
    (task / "questions.yaml").write_text(json.dumps(content))  # JSON is YAML
    config = {
        "task": str(task / "questions.yaml"),
        "teacher": TEACHER,
        "storage": str(folder / "runs"),
        "ledger": {"uri": f"sqlite:///{folder}/empty.db"},
    }
    return prepare(parse(config), Terminal())


class Clock:
    """Measures the rate after the first table of requests."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []
        self._rows = 0

    def count(self, rows: int) -> None:
        """Add ``rows`` finished rows."""
        self._rows += rows
        if self._rows >= CHUNK or self._marks:
            self._marks.append((time.perf_counter(), self._rows))

    @property
    def per_s(self) -> float:
        """Rows per second."""
        (begun, before), (over, done) = self._marks[0], self._marks[-1]
        return (done - before) / (over - begun)


def stream(ray: Any, folder: Path, count: int, actors: int, made_up: bool) -> dict[str, float]:
    """Run a whole stage of ``count`` requests."""
    job = make_job(folder)
    pool = TeacherPool(job.config.teacher, Ledger(job.config.ledger.uri))
    pool.actors = [ray.remote(InstantTeacher).options(num_cpus=0).remote() for _ in range(actors)]
    each = -(-count // len(CLASSES))
    count = each * len(CLASSES)
    planned = _requests(count) if made_up else generate.plan_requests(job, dict.fromkeys(job.labels, (0, each)))
    clock, begun = Clock(), time.perf_counter()

    class Counted(Meter):
        def count(self, **counts: Any) -> None:
            clock.count(counts["new"] + counts["reused"])

    with PeakMemory() as memory:
        answered, usage = ask(job, pool, "generate-1", planned, count, Counted())
        # Same as the next step, without its results.
        assert sum(text is not None for text, _ in answered.rows("text", "finish_reason")) == count
    pool.close()
    sizes = {
        f"{table}_gib": os.path.getsize(f"{job.run.path}/{table}/generate-1.parquet") / GIB
        for table in ("request", "response")
    }
    return {
        "requests": usage.requests,
        "requests_per_s": clock.per_s,
        "seconds": time.perf_counter() - begun,
        "driver_peak_gib": memory.peak_gib,
        "driver_start_gib": memory.start_gib,
        **sizes,
    }


def replay(folder: Path, count: int) -> dict[str, float]:
    """Replay ``count`` prepared requests that the ledger already holds."""
    uri = f"sqlite:///{folder}/full.db"
    store = LedgerStore(uri)
    tables = []
    for some in chunks(_requests(count), CHUNK):
        store.commit(some, answer(some))
        tables.append(to_table(some, Request))
    store.close()
    teacher = parse({"task": "t", "teacher": TEACHER}).teacher
    pool, clock = TeacherPool(teacher, Ledger(uri)), Clock()
    cpu = time.process_time()
    for known in pool.stream(iter(tables)):
        assert known["reused"].to_pylist() == [True] * known.num_rows
        clock.count(known.num_rows)
    return {
        "replayed": count,
        "replayed_per_s": clock.per_s,
        "replay_driver_cpu_us": (time.process_time() - cpu) / count * 1e6,
    }


def _requests(count: int) -> Iterator[Request]:
    for client, start in enumerate(range(0, count, CHUNK)):
        yield from make_requests(client, min(CHUNK, count - start))


def main() -> None:
    """Run the benchmark and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000, help="number of requests to plan and answer")
    parser.add_argument("--replay", type=int, default=100_000, help="number of requests to replay from the ledger")
    parser.add_argument("--actors", type=int, default=2, help="teacher processes")
    parser.add_argument("--made-up", action="store_true", help="use requests that are cheap to plan")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, cluster.connect() as ray:
        figures = stream(ray, Path(folder), options.requests, options.actors, options.made_up)
        figures |= replay(Path(folder), options.replay)
    figures |= {"cpus": os.cpu_count() or 1, "load_before": round(load, 2)}
    text = json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
