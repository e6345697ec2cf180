"""Measure the ledger's throughput in requests per second on real Ray and a real SQLite file.

    python benchmarks/ledger.py --json ledger.json

Teacher processes (``--clients``) claim and commit batches of 64, then single requests from many concurrent coroutines, as an
HTTP teacher does; then one process replays everything. Start-up is excluded: each figure covers all processes from a
common start until the last one ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.ledger.handle import Ledger
from jobs.runtime import cluster
from potstill.rows import Message, Request, Response, Sampling

BATCH = 64  # requests claimed and committed together
LOOK_UP = 5000  # requests looked up together in a replay, as the teacher pool does
IN_FLIGHT = 256  # coroutines per process, each committing one request
PROMPT = "Write a question that asks for a number. " * 30  # 1,230 characters
TEXT = "How many people live in the capital of France? " * 6


def make_requests(client: int, count: int) -> list[Request]:
    """Build few-shot requests; every third one asks for one of six classes."""
    return [
        Request(
            stage="relabel" if i % 3 == 0 else "generate",
            task="trec6",
            strategy="few_shot",
            renderer="chat",
            provider="openai",
            model="gpt-4o-mini",
            weights_digest=None,
            messages=(Message("system", "You write questions."), Message("user", f"{client} {i} {PROMPT}")),
            sampling=Sampling(),
            choices=("abbr", "desc", "enty", "hum", "loc", "num") if i % 3 == 0 else (),
        )
        for i in range(count)
    ]


def answer(requests: Sequence[Request]) -> list[Response]:
    """Return the responses of a teacher without latency."""
    now = time.time()
    return [
        Response(
            request.request_id,
            "num" if request.choices else TEXT,
            "stop",
            tuple(-0.5 - i for i in range(len(request.choices))),
            0.01 if request.choices else None,
            300,
            60,
            0.0001,
            0.2,
            now,
        )
        for request in requests
    ]


class Client:
    """A teacher process without a model."""

    def __init__(self, ledger: Ledger, number: int, count: int) -> None:
        self._ledger, self._owner = ledger, f"bench-{number}"
        self._requests = make_requests(number, count)
        self._answers = answer(self._requests)
        ledger.read("count_known", [])

    def request_ids(self) -> list[str]:
        """Return the ids of this process's requests."""
        return [request.request_id for request in self._requests]

    def push(self) -> float:
        """Claim and commit everything in consecutive batches; return CPU seconds."""
        begun = time.process_time()
        for start in range(0, len(self._requests), BATCH):
            part = slice(start, start + BATCH)
            taken = self._ledger.take([request.request_id for request in self._requests[part]], self._owner)
            assert len(taken.mine) == len(self._requests[part])
            self._ledger.commit(self._requests[part], self._answers[part])
        return time.process_time() - begun

    def push_singles(self) -> float:
        """Claim in batches, commit each request as soon as it is answered; return CPU seconds."""
        begun = time.process_time()
        asyncio.run(push_singles(self._ledger, self._owner, self._requests, self._answers))
        return time.process_time() - begun

    def replay(self, request_ids: Sequence[str]) -> list[float]:
        """Look up everything; return the seconds of each look-up."""
        seconds = []
        for start in range(0, len(request_ids), LOOK_UP):
            begun = time.perf_counter()
            part = request_ids[start : start + LOOK_UP]
            assert len(self._ledger.fetch(part)) == len(part)
            seconds.append(time.perf_counter() - begun)
        return seconds


async def push_singles(ledger: Ledger, owner: str, requests: Sequence[Request], answers: Sequence[Response]) -> None:
    """Claim batches while others are in flight and commit each answer at once, as an HTTP teacher does."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(request: Request, response: Response) -> None:
        async with gate:
            await ledger.acommit([request], [response])

    async def lot(part: slice) -> None:
        taken = await ledger.atake([request.request_id for request in requests[part]], owner)
        assert len(taken.mine) == len(requests[part])
        await asyncio.gather(*map(one, requests[part], answers[part]))

    await asyncio.gather(*(lot(slice(start, start + BATCH)) for start in range(0, len(requests), BATCH)))


def owner_cpu_s(ray: Any, ledger: Ledger) -> float:
    """Return the CPU seconds used so far by the process that owns the ledger."""
    ledger.read("count_known", [])
    return ray.get(ledger._actor.__ray_call__.remote(lambda actor: time.process_time()))


def measure(ray: Any, uri: str, clients: int, count: int, singles: bool) -> dict[str, float]:
    """Return requests per second in each of the three modes."""
    ledger = Ledger(uri)
    kind = ray.remote(num_cpus=0)(Client)
    figures: dict[str, float] = {}
    ids: list[str] = []
    ways = ["push", "push_singles"] if singles else ["push"]
    for way in ways:
        # Each mode has its own requests, since committing a known request costs nothing.
        handles = [kind.remote(ledger, number + 100 * len(figures), count) for number in range(clients)]
        ids += [name for some in ray.get([handle.request_ids.remote() for handle in handles]) for name in some]
        owner_cpu, begun = owner_cpu_s(ray, ledger), time.perf_counter()
        client_cpu = sum(ray.get([getattr(handle, way).remote() for handle in handles]))
        figures[f"{way}_per_s"] = clients * count / (time.perf_counter() - begun)
        figures[f"{way}_client_cpu_us"] = client_cpu / clients / count * 1e6
        figures[f"{way}_owner_cpu_us"] = (owner_cpu_s(ray, ledger) - owner_cpu) / clients / count * 1e6
        for handle in handles:
            ray.kill(handle)
    reader = kind.remote(ledger, -1, 0)
    ray.get(reader.replay.remote(ids[:LOOK_UP]))
    seconds = ray.get(reader.replay.remote(ids))
    figures["replayed"] = len(ids)
    figures["replayed_per_s"] = len(ids) / sum(seconds)
    return figures


def main() -> None:
    """Run the benchmark and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4, help="teacher processes")
    parser.add_argument("--requests", type=int, default=12_800, help="requests per process and mode")
    parser.add_argument(
        "--uri", help="empty ledger to use, such as postgresql+psycopg://...; default: a new SQLite file"
    )
    parser.add_argument("--no-singles", dest="singles", action="store_false", help="skip the single commits")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster.connect() as ray:
        load = os.getloadavg()[0]
        uri = options.uri or f"sqlite:///{folder}/ledger.db"
        figures = measure(ray, uri, options.clients, options.requests, options.singles)
    figures |= {"clients": options.clients, "cpus": os.cpu_count() or 1, "load_before": round(load, 2)}
    text = json.dumps({name: round(value, 2) for name, value in figures.items()}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
