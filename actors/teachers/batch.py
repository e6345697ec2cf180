"""The teacher process that asks in batches: half the price, answers within a day.

The worst-case cost of a request is reserved before its batch is submitted. A budget that covers only some requests
lets those go, and the next ones when the real cost is known.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from actors.backends.openai import OpenAIBackend, Sent, identify
from actors.ledger.batch_book import BatchBook
from actors.ledger.handle import Ledger
from actors.teachers.answers import RESTARTED, Answer, PoolContext, TeacherActor, TeacherKind
from actors.teachers.batch_job import BatchOptions, poll_s
from actors.teachers.batch_queue import BatchProgress, BatchQueue
from actors.teachers.bill import Bill
from actors.teachers.limiter import LimiterHandle
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.chat import Abilities
from potstill.endpoint.cost import find_price, own_price
from potstill.endpoint.failures import Refusals
from potstill.errors import TeacherError
from potstill.limits.pacer import Limits
from potstill.limits.wallet import Outcome
from potstill.rows import Request, Response

BLOCK = 1000  # requests handed over together
BLOCKS = 250  # under way at a time
_NO_PACE = 1e9  # requests a minute: batches need no pacing


class BatchTeacherActor(TeacherActor):
    """Puts requests into batches. Also recovers the batches of processes that died."""

    def __init__(
        self,
        config: OpenAITeacher,
        ledger: Ledger,
        owner: str,
        limiter: LimiterHandle,
        options: BatchOptions | None = None,
    ) -> None:
        super().__init__(ledger, owner)
        self._config, self._options = config, options or BatchOptions()
        self.poll_s = poll_s(config)
        # The price of batches also in realtime mode, where this process only collects those of an earlier run.
        self._bill = Bill(find_price(config.model, config.base_url, own_price(config), batch=True))
        self._refusals = Refusals()
        self._backend = OpenAIBackend(config)
        identity = identify(config)
        book = BatchBook(ledger, identity.provider, identity.model, config.base_url, owner)
        self._queue = BatchQueue(config, self._backend, book, self._bill, self._options)
        self._allowance = limiter.allowance(f"{owner}-{uuid.uuid4().hex[:8]}")
        self._end: str | None = None
        self._started: asyncio.Task[None] | None = None

    async def ready(self) -> Abilities:
        """What the endpoint supports, by a trial request in real time: prompts and settings depend on it.

        Raises ``TeacherError`` if key, model or address is wrong, or the endpoint has no batches.
        """
        if self._started is None:
            self._started = asyncio.create_task(self._start())
        await asyncio.shield(self._started)
        return self._backend.abilities

    async def _start(self) -> None:
        if self._options.submit:
            await self._backend.probe(self._options.choices)
        await self._queue.start()

    async def progress(self) -> BatchProgress:
        """How far the batches are."""
        return self._queue.progress()

    async def close(self) -> None:
        """Stop polling. Submitted batches continue at the endpoint."""
        await self._queue.close()
        await self._allowance.close()
        await self._backend.close()

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See ``TeacherActor.answer``. Also raises ``TeacherError`` if a batch was refused or cancelled.

        Batches under way are left to the next run.
        """
        await self.ready()  # needed after a restart
        return await super().answer(requests)

    async def _ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        responses = await asyncio.gather(*map(self._answer_one, requests))
        end = self._end or self._queue.end
        if end is not None:
            raise TeacherError(end)
        return [Answer(response, reused=False) for response in responses if response is not None]

    async def _answer_one(self, request: Request) -> Response | None:
        """The response to a request; ``None`` if another process has taken it over."""
        response = await self._ask(request)
        if response is not None and response.error is not None:
            await self._ledger.acommit([request], [response])  # gives up the claim; good answers are committed already
        return response

    async def _ask(self, request: Request) -> Response | None:
        """The response after as many batches as the request needs and may have."""
        left = self._queue.left.pop(request.request_id, None)
        sent, attempt = left if left is not None else (None, 0)
        while self._end is None:
            if sent is not None:
                failure = self._refusals.judge(sent.failure)
                assert failure is not None
                attempt += 1
                if failure.kind == "fatal":
                    self._end = self._backend.explain(failure)
                if failure.kind in ("final", "fatal") or attempt >= self._config.max_attempts:
                    return self._bill.failed(request, sent, f"{attempt} batches" if attempt > 1 else "")
            try:
                sent = await self._send(request, attempt)
            except TeacherError as stopped:
                self._end = self._end or str(stopped)
                break
            if sent is None:
                return None
            if sent.response is not None:
                self._refusals.judge(None)
                return sent.response
        return Response(request.request_id, error=self._end)

    async def _send(self, request: Request, attempt: int) -> Sent | None:
        """One attempt in a batch. Its worst-case cost is reserved before the batch is submitted."""
        usd = self._bill.at_worst(request, self._backend.abilities)
        async with self._allowance.slot(0.0, usd) as slot:
            sent = await self._queue.put(request, attempt)
            # "rejected", not "failed": a request that failed in a batch says nothing of the endpoint's state.
            succeeded = sent is not None and sent.response is not None
            spent = 0.0 if sent is None else self._bill.known_cost(sent)
            slot.finish(Outcome("ok" if succeeded else "rejected", usd=spent))
        return sent


def limits(config: OpenAITeacher) -> Limits:
    """The budget only; the endpoint sets the pace."""
    return Limits(BLOCK * BLOCKS, _NO_PACE, None, config.budget_usd)


def start_batcher(config: OpenAITeacher, pool: PoolContext, limiter: LimiterHandle, submit: bool) -> Any:
    """Start the process; with ``submit=False`` one that only collects what earlier runs have submitted."""
    actor = ray.remote(BatchTeacherActor).options(num_cpus=0.1, max_concurrency=1000, **RESTARTED)
    options = BatchOptions(submit=submit, choices=pool.choices)
    return actor.remote(config, pool.ledger, f"{pool.owner}-batches", limiter, options)


class BatchKind(TeacherKind):
    """One process for all batches."""

    def __init__(self, config: OpenAITeacher, pool: PoolContext) -> None:
        self._config, self._pool = config, pool

    def start(self) -> list[Any]:
        """Start the limiter and the process."""
        self.limiter = LimiterHandle.start(limits(self._config), self._pool.owner)
        self.batcher = start_batcher(self._config, self._pool, self.limiter, submit=True)
        return [self.batcher]

    def batches(self, requests: pa.Table, processes: int) -> tuple[int, int]:
        """Many, so that all requests that may wait do so in batch files."""
        return BLOCK, BLOCKS
