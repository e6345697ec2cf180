"""What all teacher processes share: their answers, how they use the ledger, and what the pool needs to know of a kind.

A process returns an answer only after the ledger has committed it. The kinds are in ``embedded.py``, ``http.py`` and
``batch.py`` beside this file; the pool is in ``pool.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from actors.ledger.handle import Ledger
from actors.teachers.limiter import LimiterHandle
from potstill.errors import LedgerError
from potstill.rows import RESPONSE, Request, Response, from_table, to_table

RENEWALS = 3  # per lease, so that two may fail
ANSWER = RESPONSE.append(pa.field("reused", pa.bool_())).append(pa.field("retries", pa.int32()))

# Ray options. A process that dies (out of memory, lost node) restarts with the same owner: the ledger has its commits,
# its claims are still its own, and Ray repeats its calls.
RESTARTED = {"max_restarts": 3, "max_task_retries": 3}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. ``reused``: the ledger had it. ``retries``: further attempts that it took."""

    response: Response
    reused: bool
    retries: int = 0


class TeacherActor(ABC):
    """One process of the pool: answers from the ledger first, then from its teacher.

    It renews the leases of ``owner`` as long as it lives. Subclasses add ``ready``, which returns what the endpoint
    supports (``None`` without an endpoint).
    """

    poll_s = 1.0  # between looks at requests that other processes have claimed

    def __init__(self, ledger: Ledger, owner: str) -> None:
        self._ledger, self._owner = ledger, owner
        threading.Thread(target=self._renew_leases, daemon=True).start()

    async def answer_table(self, requests: pa.Table) -> pa.Table:
        """``answer`` for tables: ``REQUEST`` in, ``ANSWER`` out."""
        return to_answer_table(await self.answer(from_table(requests, Request)))

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the order of ``requests``, committed before they are returned.

        Raises ``TeacherError`` if nothing more may be sent (budget, breaker) or no request can succeed (key, quota);
        the answers until then are committed.
        """
        answers: dict[str, Answer] = {}
        pending = {request.request_id: request for request in requests}
        while pending:
            taken = await self._ledger.atake(list(pending), self._owner)
            new = await self._ask_all([pending[name] for name in taken.mine])
            for answer in [*(Answer(known, reused=True) for known in taken.known), *new]:
                answers[answer.response.request_id] = answer
                del pending[answer.response.request_id]
            if pending and not new:
                await asyncio.sleep(self.poll_s)  # others have claimed these: they answer, or their leases expire
        return [answers[request.request_id] for request in requests]

    @abstractmethod
    async def _ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Ask the teacher and commit. Requests that another process has taken over since are left out."""

    def _renew_leases(self) -> None:
        while True:
            time.sleep(self._ledger.lease_s / RENEWALS)
            # After a failed renewal a request may be asked twice; if this thread died, every later lease would lapse.
            with contextlib.suppress(LedgerError, ray.exceptions.RayError):
                self._ledger.renew(self._owner)


@dataclass(frozen=True, slots=True)
class PoolContext:
    """What a pool passes to its kind of teacher. ``choices``: whether classes will be asked for."""

    ledger: Ledger
    owner: str
    warn: Callable[[str], None]
    choices: bool = True
    gpus_each: float = 1.0


class TeacherKind(ABC):
    """How a pool starts, fills and stops the processes of one kind of teacher."""

    limiter: LimiterHandle | None = None
    batcher: Any = None  # the process that looks after batches, this run's or an earlier one's

    @abstractmethod
    def start(self) -> list[Any]:
        """Start the processes. They are usable once ``ready`` has returned."""

    def ready(self, actors: Sequence[Any]) -> dict[Any, Any]:
        """For each process (in order) the call that returns when it is ready, as call -> process."""
        return {actor.ready.remote(): actor for actor in actors}

    @abstractmethod
    def batches(self, requests: pa.Table, processes: int) -> tuple[int, int]:
        """Requests per batch, and batches under way at a time."""

    def stop(self, actors: Sequence[Any], reason: str, within_s: float | None) -> None:  # noqa: B027
        """Send nothing more and wait at most ``within_s`` for what is under way. Nothing to do by default."""


def to_answer_table(answers: Sequence[Answer]) -> pa.Table:
    """Answers as a table of the ``ANSWER`` schema."""
    table = to_table([answer.response for answer in answers], Response)
    table = table.append_column("reused", pa.array([answer.reused for answer in answers], pa.bool_()))
    return table.append_column("retries", pa.array([answer.retries for answer in answers], pa.int32())).cast(ANSWER)


def to_known_table(responses: pa.Table) -> pa.Table:
    """Responses from the ledger as a table of the ``ANSWER`` schema."""
    table = responses.append_column("reused", pa.repeat(True, responses.num_rows))
    return table.append_column("retries", pa.repeat(0, responses.num_rows)).cast(ANSWER)
