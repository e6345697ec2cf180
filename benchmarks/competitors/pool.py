"""potstill's teacher pool as a job uses it, with Ray, limiter and ledger. ``part`` selects the measurement.

``pool``: against the endpoint. ``instant``: four processes whose backend answers at once. ``cached``: all answers are in
the ledger. ``rates``: three pools for two minutes, each against its own endpoint of 3,000 requests per minute.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workload import MAX_TOKENS, MODEL, messages, options, serve

from actors.backends.openai import Sent
from actors.ledger.handle import Ledger
from actors.teachers import http as http_teacher
from actors.teachers.pool import TeacherPool
from jobs.runtime import cluster
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.chat import Abilities
from potstill.rows import Message, Request, Response, Sampling
from potstill.teacher import TeacherIdentity

WARM_UP = 64
AT_ONCE = 5000  # answers per write when filling the ledger


def main() -> None:
    """Start Ray, the pool and the ledger, then wait for the start signal."""
    told = options()
    # Ray's workers would otherwise run at niceness 15, unlike the other competitors.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    with tempfile.TemporaryDirectory() as folder, cluster.connect():
        ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        {"pool": ask, "instant": ask_instant, "cached": replay, "rates": ask_for_minutes}[told["part"]](told, ledger)


def teacher(base_url: str, in_flight: int, **settings: Any) -> OpenAITeacher:
    """Return a teacher with a price, so costs are counted; its rate is configured unless ``settings`` override it."""
    known = {"requests_per_minute": 6e6, "price": {"prompt": 0.15, "completion": 0.6}, **settings}
    return OpenAITeacher(
        kind="openai", model=MODEL, base_url=base_url, api_key_env="", provider="bench", concurrency=in_flight, **known
    )


def requests(tag: str, count: int) -> list[Request]:
    """Return distinct requests for text."""
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=MAX_TOKENS)
    return [
        Request(
            "generate",
            "bench",
            "few_shot",
            "chat",
            "bench",
            MODEL,
            None,
            tuple(Message(one["role"], one["content"]) for one in messages(tag, number)),  # type: ignore[arg-type]
            sampling,
        )
        for number in range(count)
    ]


def ask(told: dict[str, Any], ledger: Ledger) -> None:
    """Send all requests to the endpoint."""
    wanted = requests("pool", told["requests"])
    with TeacherPool(teacher(told["base_url"], told["in_flight"]), ledger) as pool:
        pool.ask(requests("warm-up", WARM_UP))

        def work() -> dict[str, Any]:
            return {"answered": pool.ask(wanted)["error"].null_count}

        serve(work)


class InstantBackend:
    """A teacher that answers at once."""

    def __init__(self, config: OpenAITeacher, abilities: Abilities | None = None) -> None:
        self.identity = TeacherIdentity(config.provider, config.model)
        self.abilities = abilities or Abilities()

    async def probe(self, choices: bool = True) -> Abilities:
        """Return the configured abilities."""
        return self.abilities

    async def send(self, request: Request) -> Sent:
        """Answer with a text of 300 characters."""
        text = "How many people live in the capital of France? " * 6
        return Sent(
            Response(request.request_id, text, "stop", (), None, 160, 64, 0.0, 0.0, time.time()), None, {}, 160, 64
        )


class InstantActor(http_teacher.HttpTeacherActor):
    """The pool's actor with only its backend replaced."""

    def __init__(self, config: OpenAITeacher, *others: Any) -> None:
        super().__init__(config, *others)
        self._backend = InstantBackend(config)  # type: ignore[assignment]


def ask_instant(told: dict[str, Any], ledger: Ledger) -> None:
    """Use four processes, limiter and ledger, without network."""
    http_teacher.HttpTeacherActor = InstantActor  # type: ignore[misc]
    wanted = requests("instant", told["requests"])
    with TeacherPool(teacher("http://127.0.0.1:9/v1", told["in_flight"], actors=4), ledger) as pool:
        pool.ask(requests("warm-up", 4 * WARM_UP))

        def work() -> dict[str, Any]:
            begun = time.time()
            return {"answered": pool.ask(wanted)["error"].null_count, "began_at": begun}

        serve(work)


def replay(told: dict[str, Any], ledger: Ledger) -> None:
    """Replay answers from the ledger; the pool starts no process."""
    wanted = requests("cached", told["requests"])
    for start in range(0, len(wanted), AT_ONCE):
        part = wanted[start : start + AT_ONCE]
        ledger.commit(part, [_answer(one) for one in part])
    pool = TeacherPool(teacher("http://127.0.0.1:9/v1", told["in_flight"]), ledger)
    pool.ask(wanted[:AT_ONCE])

    def work() -> dict[str, Any]:
        begun = time.time()
        return {"answered": pool.ask(wanted)["error"].null_count, "began_at": begun, "actors": len(pool.actors)}

    serve(work)


def _answer(request: Request) -> Response:
    return Response(
        request.request_id, "How many people live in Paris? " * 10, "stop", (), None, 160, 64, 1e-4, 0.2, 1e9
    )


def ask_for_minutes(told: dict[str, Any], ledger: Ledger) -> None:
    """Run a pool per endpoint in ``cases`` (name -> base_url and settings) concurrently for ``seconds``."""
    cases = told["cases"]
    pools = {
        name: TeacherPool(teacher(one["base_url"], told["in_flight"], **one["settings"]), ledger)
        for name, one in cases.items()
    }
    wanted = {name: requests(name, told["requests"]) for name in cases}
    for pool in pools.values():
        pool.start()

    def work() -> dict[str, Any]:
        for name, pool in pools.items():
            threading.Thread(target=_ask_until_the_end, args=(pool, wanted[name]), daemon=True).start()
        time.sleep(told["seconds"])
        return {}

    serve(work)
    for pool in pools.values():
        pool.close()


def _ask_until_the_end(pool: TeacherPool, wanted: Sequence[Request]) -> None:
    try:
        pool.ask(list(wanted))
    except Exception as error:  # closing the pool at the time limit raises here
        print(f"ended: {str(error)[:200]}", file=sys.stderr)


if __name__ == "__main__":
    main()
