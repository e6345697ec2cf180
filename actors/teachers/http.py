"""One process of the pool for a teacher behind HTTP: an asyncio actor with hundreds of requests on their way.

Batches overlap: what bounds the requests in flight is the limiter, not where a batch ends, so the next batch
begins while the slowest request of this one still runs. Answers are committed in groups, and nobody sees one
before it is committed.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa

from actors.backends.openai import OpenAIBackend, Sent
from actors.ledger.handle import Ledger
from actors.teachers.answers import Answer, keep_leases, to_answer_table
from actors.teachers.bill import Bill, answered
from actors.teachers.limiter import LimiterHandle
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.chat import Abilities, most_completion_tokens
from potstill.endpoint.cost import about_tokens, find_price, own_price
from potstill.endpoint.failures import Refusals, backoff_s
from potstill.errors import TeacherError, TeacherStopped
from potstill.limits.headers import read_rate_headers
from potstill.limits.pacer import Limits
from potstill.limits.rate import LONG_PAUSE_S
from potstill.limits.wallet import Outcome
from potstill.rows import Request, Response, from_table

KEPT_S = 5.0  # longer than a look into the ledger takes


class HttpTeacherActor:
    """Asks the ledger first, the endpoint then, as fast as the limiter lets it; tries again what may yet work."""

    def __init__(
        self,
        config: OpenAITeacher,
        ledger: Ledger,
        owner: str,
        limiter: LimiterHandle,
        abilities: Abilities | None = None,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._owner = owner
        self._bill = Bill(find_price(config.model, config.base_url, own_price(config)))
        self._refusals = Refusals()
        self._backend = OpenAIBackend(config, abilities)
        # A process that was restarted is another holder: what its forerunner had reserved may have been spent.
        self._allowance = limiter.allowance(f"{owner}-{uuid.uuid4().hex[:8]}")
        self._end: str | None = None
        self._unkept: set[str] = set()  # requests on their way, and answers that are not committed yet
        # Trials of a search may want the same at the same time, and to the ledger this process is one asker.
        self._asked: dict[str, asyncio.Task[Answer]] = {}
        keep_leases(ledger, owner)

    async def ready(self, found: Abilities | None = None, choices: bool = True) -> Abilities:
        """What the endpoint takes: as another process of the pool has ``found``, or by a trial request, for a class if
        ``choices`` will be asked for.

        Raises ``TeacherError`` where key, model or address is wrong.
        """
        if found is None:
            return await self._backend.probe(choices)
        self._backend.abilities = found
        return found

    async def answer_table(self, requests: pa.Table) -> pa.Table:
        """``answer`` for tables: ``REQUEST`` in, ``ANSWER`` out."""
        return to_answer_table(await self.answer(from_table(requests, Request)))

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the order of ``requests``; committed before they are returned.

        Raises ``TeacherError`` where nothing may be sent any more (budget, breaker) or no request can succeed (key,
        quota); what was answered by then is committed.
        """
        answers: dict[str, Answer] = {}
        pending = {request.request_id: request for request in requests}
        while pending:
            taken = await self._ledger.atake(list(pending), self._owner)
            for response in taken.known:
                answers[response.request_id] = Answer(response, reused=True)
                pending.pop(response.request_id)
            mine = [pending.pop(name) for name in taken.mine]
            for answer in await asyncio.gather(*map(self._answer_once, mine)):
                answers[answer.response.request_id] = answer
            if self._end is not None:
                raise TeacherError(self._end)
            if pending and not mine:
                await asyncio.sleep(1.0)  # somebody else asks these; their answers, or their leases' end, will come
        return [answers[request.request_id] for request in requests]

    async def stop(self, reason: str) -> None:
        """Send nothing any more, and come back when what was on its way is committed."""
        self._end = self._end or reason
        while self._unkept:
            await asyncio.sleep(0.02)

    async def _answer_once(self, request: Request) -> Answer:
        """``_answer_one``, or what another call of this process is just being answered."""
        name = request.request_id
        if (under_way := self._asked.get(name)) is not None:
            return replace(await asyncio.shield(under_way), reused=True, retries=0)
        task = self._asked[name] = asyncio.create_task(self._answer_one(request))
        # Kept for a moment: another call may have looked into the ledger before this answer got there.
        task.add_done_callback(lambda _: asyncio.get_running_loop().call_later(KEPT_S, self._asked.pop, name, None))
        return await task

    async def _answer_one(self, request: Request) -> Answer:
        try:
            answer = await self._ask(request)
            await self._ledger.acommit([request], [answer.response])
        finally:
            self._unkept.discard(request.request_id)
        return answer

    async def _ask(self, request: Request) -> Answer:
        """The answer to a request after as many tries as it takes and is allowed."""
        attempt = refused = 0
        while self._end is None:
            try:
                sent = await self._send(request)
            except TeacherStopped as stopped:
                self._end = str(stopped)
                break
            if sent.response is not None:
                return Answer(answered(sent, self._bill), reused=False, retries=attempt + refused)
            assert sent.failure is not None
            if sent.failure.kind == "throttled":
                # The limiter holds everybody back as the endpoint asks, and gives up when nothing gets through.
                refused += 1
                # It may let others go on, where such refusals are no matter of the rate; this request waits.
                await asyncio.sleep(min(LONG_PAUSE_S, sent.failure.retry_after_s or 0.0))
                continue
            attempt += 1
            if sent.failure.kind == "fatal":
                self._end = self._backend.explain(sent.failure)
            if sent.failure.kind in ("final", "fatal") or attempt >= self._config.max_attempts:
                tries = f"{attempt} tries" if attempt > 1 else ""
                return Answer(self._bill.failed(request, sent, tries), reused=False, retries=attempt + refused - 1)
            await asyncio.sleep(backoff_s(attempt, random.random(), sent.failure.retry_after_s))
        return Answer(Response(request.request_id, error=self._end), reused=False)

    async def _send(self, request: Request) -> Sent:
        """One attempt within the limits; its worst case is reserved before it is sent."""
        longest = most_completion_tokens(request, self._backend.abilities)
        usd = self._bill.at_worst(request, self._backend.abilities)
        async with self._allowance.slot(about_tokens(request.messages) + longest, usd) as slot:
            if self._end is not None:  # since it began to wait
                slot.finish(Outcome("abandoned", usd=0.0))
                raise TeacherStopped(self._end)
            self._unkept.add(request.request_id)
            sent = await self._backend.send(request)
            sent = replace(sent, failure=self._refusals.judge(sent.failure))
            if sent.response is None:
                self._unkept.discard(request.request_id)
            kind = sent.failure.kind if sent.failure is not None else "ok"
            slot.finish(
                Outcome(
                    _OUTCOMES[kind],
                    tokens=sent.prompt_tokens + sent.completion_tokens,
                    usd=self._bill.known_cost(sent),
                    error=sent.failure.message[:60] if sent.failure is not None else "",
                    retry_after_s=sent.failure.retry_after_s if sent.failure is not None else None,
                    rates=read_rate_headers(sent.headers, time.time()),
                )
            )
        return sent


_OUTCOMES: dict[str, Literal["ok", "refused", "failed", "rejected"]] = {
    "ok": "ok",
    "throttled": "refused",
    "transient": "failed",
    "final": "rejected",
    "fatal": "failed",
}


def limits(config: OpenAITeacher) -> Limits:
    """What the config allows, for the whole cluster."""
    return Limits(config.concurrency, config.requests_per_minute, config.tokens_per_minute, config.budget_usd)


def count_processes(config: OpenAITeacher) -> int:
    """Processes that send requests."""
    return config.actors or max(1, -(-config.concurrency // PLACES))


PLACES = 512  # requests in flight that keep about one core busy


def resources() -> dict[str, Any]:
    """What a process asks Ray for: it mostly waits, in many calls at a time."""
    return {"num_cpus": 0.1, "max_concurrency": 1000}
