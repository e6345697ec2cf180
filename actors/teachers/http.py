"""Teacher processes for an HTTP endpoint: asyncio actors with hundreds of requests in flight.

Batches overlap. The limiter bounds the requests in flight, not the batch, so the next batch begins while the slowest
request of this one still runs. Answers are committed in groups before they are returned.
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
import ray

from actors.backends.openai import OpenAIBackend, Sent
from actors.ledger.batch_book import under_way
from actors.ledger.handle import Ledger
from actors.teachers.answers import RESTARTED, Answer, PoolContext, TeacherActor, TeacherKind
from actors.teachers.batch import start_batcher
from actors.teachers.bill import Bill
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
from potstill.rows import Request, Response

HTTP_BLOCK = 64  # requests per batch: few, so that the last ones are spread over all processes
PLACES = 512  # requests in flight that keep about one core busy
KEPT_S = 5.0  # longer than a look into the ledger takes


class HttpTeacherActor(TeacherActor):
    """Asks the endpoint as fast as the limiter allows, and retries what may still work.

    ``choices``: whether classes will be asked for, so that the trial request asks for one.
    """

    def __init__(
        self, config: OpenAITeacher, ledger: Ledger, owner: str, limiter: LimiterHandle, choices: bool = True
    ) -> None:
        super().__init__(ledger, owner)
        self._config, self._choices = config, choices
        self._bill = Bill(find_price(config.model, config.base_url, own_price(config)))
        self._refusals = Refusals()
        self._backend = OpenAIBackend(config)
        # A restarted process is another holder: what its predecessor had reserved may have been spent.
        self._allowance = limiter.allowance(f"{owner}-{uuid.uuid4().hex[:8]}")
        self._end: str | None = None
        self._uncommitted: set[str] = set()  # requests in flight, and answers that are not committed yet
        # Trials of a search may want the same request at the same time; to the ledger this process is one owner.
        self._asked: dict[str, asyncio.Task[Answer]] = {}

    async def ready(self, found: Abilities | None = None) -> Abilities:
        """What the endpoint supports: as another process has ``found``, or by a trial request.

        Raises ``TeacherError`` if key, model or address is wrong.
        """
        if found is None:
            return await self._backend.probe(self._choices)
        self._backend.abilities = found
        return found

    async def _ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        answers = await asyncio.gather(*map(self._answer_once, requests))
        if self._end is not None:
            raise TeacherError(self._end)
        return answers

    async def stop(self, reason: str) -> None:
        """Send nothing more; return when all requests in flight are committed."""
        self._end = self._end or reason
        while self._uncommitted:
            await asyncio.sleep(0.02)

    async def _answer_once(self, request: Request) -> Answer:
        """``_answer_one``, or the answer that another call of this process is waiting for."""
        name = request.request_id
        if (asked := self._asked.get(name)) is not None:
            return replace(await asyncio.shield(asked), reused=True, retries=0)
        task = self._asked[name] = asyncio.create_task(self._answer_one(request))
        # Kept for a moment: another call may have looked into the ledger before this answer was committed.
        task.add_done_callback(lambda _: asyncio.get_running_loop().call_later(KEPT_S, self._asked.pop, name, None))
        return await task

    async def _answer_one(self, request: Request) -> Answer:
        try:
            answer = await self._ask(request)
            await self._ledger.acommit([request], [answer.response])
        finally:
            self._uncommitted.discard(request.request_id)
        return answer

    async def _ask(self, request: Request) -> Answer:
        """The answer to a request after as many tries as it needs and may have."""
        attempt = refused = 0
        while self._end is None:
            try:
                sent = await self._send(request)
            except TeacherStopped as stopped:
                self._end = str(stopped)
                break
            if sent.response is not None:
                return Answer(self._bill.answered(sent), reused=False, retries=attempt + refused)
            assert sent.failure is not None
            if sent.failure.kind == "throttled":
                # The limiter pauses all requests as the endpoint asks, and gives up if nothing gets through.
                refused += 1
                # It may let others continue if the refusals are not about the rate; this request waits.
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
        """One attempt within the limits. Its worst-case cost is reserved before it is sent."""
        longest = most_completion_tokens(request, self._backend.abilities)
        usd = self._bill.at_worst(request, self._backend.abilities)
        async with self._allowance.slot(about_tokens(request.messages) + longest, usd) as slot:
            if self._end is not None:  # ended while this request waited
                slot.finish(Outcome("abandoned", usd=0.0))
                raise TeacherStopped(self._end)
            self._uncommitted.add(request.request_id)
            sent = await self._backend.send(request)
            sent = replace(sent, failure=self._refusals.judge(sent.failure))
            if sent.response is None:
                self._uncommitted.discard(request.request_id)
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


class HttpKind(TeacherKind):
    """Processes that send single requests, and one for batches that an earlier run has submitted."""

    def __init__(self, config: OpenAITeacher, pool: PoolContext) -> None:
        self._config, self._pool = config, pool

    def start(self) -> list[Any]:
        """Start the limiter and the processes. Raises ``RayError`` if an earlier run's batches can't be found."""
        config, pool = self._config, self._pool
        self.limiter = LimiterHandle.start(limits(config), pool.owner)
        actor = ray.remote(HttpTeacherActor).options(num_cpus=0.1, max_concurrency=1000, **RESTARTED)
        count = config.actors or max(1, -(-config.concurrency // PLACES))
        owners = [f"{pool.owner}-{i}" for i in range(count)]
        actors = [actor.remote(config, pool.ledger, owner, self.limiter, pool.choices) for owner in owners]
        self._collect_batches()
        return actors

    def _collect_batches(self) -> None:
        """Wait for the answers of batches that an earlier run has submitted and paid for, rather than buy them again."""
        config, pool = self._config, self._pool
        batches = under_way(pool.ledger, config.provider, config.model)
        if not batches:
            return
        names = ", ".join(one.batch_id or one.batch_key for one in batches)
        pool.warn(
            f"{sum(one.requests for one in batches):,} requests are in batches of an earlier run ({names}) and are not "
            "asked again before those end; to have them at once, cancel the batches at the endpoint"
        )
        assert self.limiter is not None
        self.batcher = start_batcher(config, pool, self.limiter, submit=False)
        ray.get(self.batcher.ready.remote())

    def ready(self, actors: Sequence[Any]) -> dict[Any, Any]:
        """The first process finds out what the endpoint supports and tells the others."""
        first = actors[0].ready.remote()
        return {first: actors[0], **{actor.ready.remote(first): actor for actor in actors[1:]}}

    def batches(self, requests: pa.Table, processes: int) -> tuple[int, int]:
        """Twice the requests that may be in flight, so that a slow one leaves no slot idle."""
        return HTTP_BLOCK, 2 + -(-2 * self._config.concurrency // HTTP_BLOCK)

    def stop(self, actors: Sequence[Any], reason: str, within_s: float | None) -> None:
        """Wait for requests in flight, by default as long as a request may take."""
        timeout_s = self._config.timeout_s if within_s is None else within_s
        ray.wait([actor.stop.remote(reason) for actor in actors], num_returns=len(actors), timeout=timeout_s)
