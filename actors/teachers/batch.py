"""The process of the pool for a teacher asked in batches: half the price, answers within a day.

It answers the same calls as ``actors/teachers/http.py``; what it waits for is a batch, not a request. What a request
may cost at worst is reserved before its batch is submitted, so a budget that bears a part lets that part go, and the
next when its real price is known.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from actors.backends.openai import OpenAIBackend, Sent, identify
from actors.ledger.batch_book import BatchBook
from actors.ledger.handle import Ledger
from actors.teachers.answers import Answer, keep_leases, to_answer_table
from actors.teachers.batch_job import UNSURE_S
from actors.teachers.batch_queue import GATHER_S, BatchProgress, BatchRunner
from actors.teachers.bill import Bill
from actors.teachers.limiter import LimiterHandle
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.chat import Abilities
from potstill.endpoint.cost import find_price, own_price
from potstill.endpoint.failures import Refusals
from potstill.errors import TeacherError
from potstill.limits.pacer import Limits
from potstill.limits.wallet import Outcome
from potstill.rows import Request, Response, from_table

BLOCK = 1000  # requests handed over together
BLOCKS = 250  # on their way at a time
_UNPACED = 1e9  # requests a minute: a batch has no pace of ours


class BatchTeacherActor:
    """Asks the ledger first, then in batches. ``submit=False``: only collects what an earlier run has submitted.

    ``choices``: whether classes will be asked for, so that the trial request is for one.
    """

    def __init__(
        self,
        config: OpenAITeacher,
        ledger: Ledger,
        owner: str,
        limiter: LimiterHandle,
        submit: bool = True,
        gather_s: float = GATHER_S,
        unsure_s: float = UNSURE_S,
        choices: bool = True,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._owner = owner
        self._submit, self._choices = submit, choices
        # Of a batch that an earlier run submitted too, whatever this one's mode is.
        self._bill = Bill(find_price(config.model, config.base_url, own_price(config), batch=True))
        self._refusals = Refusals()
        self._backend = OpenAIBackend(config)
        identity = identify(config)
        book = BatchBook(ledger, identity.provider, identity.model, config.base_url, owner)
        self._runner = BatchRunner(config, self._backend, book, ledger.acommit, self._bill.cost, gather_s, unsure_s)
        self._allowance = limiter.allowance(f"{owner}-{uuid.uuid4().hex[:8]}")
        self._end: str | None = None
        self._started: asyncio.Task[None] | None = None
        keep_leases(ledger, owner)

    async def ready(self) -> Abilities:
        """What the endpoint takes, asked in real time, since prompts and settings go by it.

        Raises ``TeacherError`` where key, model or address is wrong, or the endpoint has no batches.
        """
        if self._started is None:
            self._started = asyncio.create_task(self._start())
        await asyncio.shield(self._started)
        return self._backend.abilities

    async def _start(self) -> None:
        if self._submit:
            await self._backend.probe(self._choices)
        await self._runner.start(self._submit)

    async def progress(self) -> BatchProgress:
        """How far the batches are."""
        return self._runner.progress()

    async def close(self) -> None:
        """Look after nothing any more; batches go on at the endpoint."""
        await self._runner.close()
        await self._allowance.close()
        await self._backend.close()

    async def answer_table(self, requests: pa.Table) -> pa.Table:
        """``answer`` for tables: ``REQUEST`` in, ``ANSWER`` out."""
        return to_answer_table(await self.answer(from_table(requests, Request)))

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the order of ``requests``; committed before they are returned.

        Raises ``TeacherError`` where nothing may be sent any more (budget), no request can succeed, or a batch was
        refused or cancelled; what was answered by then is committed, what is under way is for the next run.
        """
        await self.ready()  # a process that was restarted has not been
        answers: dict[str, Answer] = {}
        pending = {request.request_id: request for request in requests}
        while pending:
            taken = await self._ledger.atake(list(pending), self._owner)
            for response in taken.known:
                answers[response.request_id] = Answer(response, reused=True)
                pending.pop(response.request_id)
            for new in await asyncio.gather(*(self._answer_one(pending[name]) for name in taken.mine)):
                if new is not None:
                    answers[new.request_id] = Answer(new, reused=False)
                    pending.pop(new.request_id)
            end = self._end or self._runner.end
            if end is not None:
                raise TeacherError(end)
            if pending:
                # In a batch that was there already, or asked by somebody else.
                await asyncio.sleep(min(30.0, max(0.5, self._config.batch_poll_s)))
        return [answers[request.request_id] for request in requests]

    async def _answer_one(self, request: Request) -> Response | None:
        """The response to a request; ``None`` if somebody else has taken it over."""
        response = await self._ask(request)
        if response is not None and response.error is not None:
            await self._ledger.acommit([request], [response])  # which gives up the claim; good ones are committed
        return response

    async def _ask(self, request: Request) -> Response | None:
        """The response after as many batches as it takes and is allowed."""
        left = self._runner.left.pop(request.request_id, None)
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
        """A place in a batch, paid for at worst before it is submitted."""
        usd = self._bill.at_worst(request, self._backend.abilities)
        async with self._allowance.slot(0.0, usd) as slot:
            sent = await self._runner.put(request, attempt)
            # A request that failed in its batch says nothing of the endpoint's state: no breaker has to know.
            succeeded = sent is not None and sent.response is not None
            spent = 0.0 if sent is None else self._bill.known_cost(sent)
            slot.finish(Outcome("ok" if succeeded else "rejected", usd=spent))
        return sent


def limits(config: OpenAITeacher) -> Limits:
    """The budget; the endpoint sets the pace."""
    return Limits(BLOCK * BLOCKS, _UNPACED, None, config.budget_usd)


def resources() -> dict[str, Any]:
    """What the process asks Ray for: it waits."""
    return {"num_cpus": 0.1, "max_concurrency": 1000}
