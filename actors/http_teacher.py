"""One process of the pool for a teacher behind HTTP: an asyncio actor with hundreds of requests on their way.

Batches overlap: what bounds the requests in flight is ``places``, not where a batch ends, so the next batch
begins while the slowest request of this one still runs. Answers are committed in groups, and nobody sees one
before it is committed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.backends.openai import OpenAIBackend, Sent
from actors.ledger import Ledger
from actors.teacher import Answer, keep_leases
from potstill.chat import Abilities
from potstill.cost import cost, find_price, own_price
from potstill.errors import TeacherError
from potstill.failures import backoff_s
from potstill.rows import Request, Response
from potstill.teachers import OpenAITeacher

GROUP_S = 0.02  # answers that come within this time are committed together
GROUP = 512  # and no more than these


class HttpTeacherActor:
    """Asks the ledger first, the endpoint then; tries again what may yet work."""

    def __init__(
        self, config: OpenAITeacher, ledger: Ledger, owner: str, places: int, abilities: Abilities | None = None
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._owner = owner
        self._places = asyncio.Semaphore(places)
        self._backend = OpenAIBackend(config, abilities)
        self._committer = Committer(ledger)
        self._price = find_price(config.model, config.base_url, own_price(config))
        self._fatal: str | None = None
        keep_leases(ledger, owner)

    async def ready(self) -> Abilities:
        """What the endpoint takes. Raises ``TeacherError`` where key, model or address is wrong."""
        return await self._backend.probe()

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the order of ``requests``; committed before they are returned.

        Raises ``TeacherError`` where no request can succeed any more; what was answered by then is committed.
        """
        answers: dict[str, Answer] = {}
        pending = {request.request_id: request for request in requests}
        while pending:
            taken = await asyncio.to_thread(self._ledger.take, list(pending), self._owner)
            for response in taken.known:
                answers[response.request_id] = Answer(response, reused=True)
                pending.pop(response.request_id)
            mine = [pending.pop(name) for name in taken.mine]
            for response in await asyncio.gather(*map(self._answer_one, mine)):
                answers[response.request_id] = Answer(response, reused=False)
            if self._fatal is not None:
                raise TeacherError(self._fatal)
            if pending and not mine:
                await asyncio.sleep(1.0)  # somebody else asks these; their answers, or their leases' end, will come
        return [answers[request.request_id] for request in requests]

    async def _answer_one(self, request: Request) -> Response:
        response = await self._ask(request)
        await self._committer.commit(request, response)
        return response

    async def _ask(self, request: Request) -> Response:
        """The response to a request after as many tries as it takes and is allowed."""
        attempt = 0
        while True:
            attempt += 1
            async with self._places:
                if self._fatal is not None:
                    return Response(request.request_id, error=self._fatal)
                sent = await self._backend.send(request)
            if sent.response is not None:
                return replace(sent.response, cost_usd=self._cost(sent))
            assert sent.failure is not None
            if sent.failure.kind == "fatal":
                self._fatal = self._backend.explain(sent.failure)
            if sent.failure.kind in ("final", "fatal") or attempt >= self._config.max_attempts:
                return _failed(request, sent, attempt)
            await asyncio.sleep(backoff_s(attempt, random.random(), sent.failure.retry_after_s))

    def _cost(self, sent: Sent) -> float:
        return cost(self._price, sent.prompt_tokens, sent.completion_tokens) if self._price is not None else 0.0


class Committer:
    """Puts answers into the ledger in groups: a commit costs a disk's flush, whatever it holds."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[tuple[Request, Response, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def commit(self, request: Request, response: Response) -> None:
        """Return when ``response`` is durable. Raises what the ledger raised."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((request, response, done))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        await done

    async def _work(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(GROUP_S)
                group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
                try:
                    await asyncio.to_thread(
                        self._ledger.commit, [item[0] for item in group], [item[1] for item in group]
                    )
                except Exception as error:
                    for *_, done in group:
                        if not done.done():
                            done.set_exception(error)
                    continue
                for *_, done in group:
                    if not done.done():
                        done.set_result(None)
        finally:
            self._task = None


def _failed(request: Request, sent: Sent, attempts: int) -> Response:
    assert sent.failure is not None
    tries = f" (after {attempts} tries)" if attempts > 1 else ""
    return replace(
        Response(request.request_id, error=sent.failure.message + tries),
        prompt_tokens=sent.prompt_tokens,
        completion_tokens=sent.completion_tokens,
    )


def places_each(config: OpenAITeacher) -> tuple[int, int]:
    """Processes, and requests in flight for each of them."""
    count = config.actors or max(1, -(-config.concurrency // PLACES))
    return count, max(1, config.concurrency // count)


PLACES = 512  # one process keeps a core busy with about so many


def resources(config: OpenAITeacher) -> dict[str, Any]:
    """What a process asks Ray for: it mostly waits."""
    return {"num_cpus": 0.1, "max_concurrency": 1000}
