"""Batches from the first request to the last answer: gathered into files, submitted, polled, collected.

What is done at the endpoint is recorded before and after (``actors/ledger/batches.py``), and answers are committed
before a batch is closed, so a process that takes over begins where the last one stopped. Once submitted, a batch goes
on whoever lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from actors.backends.openai import OpenAIBackend, Sent
from actors.backends.openai_batches import ApiFailure
from actors.ledger.batch_book import BatchBook
from actors.teachers.batch_job import UNSURE_S, YIELD, Batch, BatchDesk, Commit, Member, NotHeldError, lost
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.batch_files import BatchStatus, Room, count_fitting, shrink
from potstill.endpoint.chat import most_completion_tokens
from potstill.endpoint.cost import about_tokens
from potstill.errors import LedgerError, TeacherError
from potstill.rows import Request

GATHER_S = 2.0  # without another request, then a file is closed
MOST_REFUSALS = 100  # one after another, for too many enqueued tokens: about a day
LONGEST_PAUSE_S = 900.0  # between tries to enqueue where others have used up the limit


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Batches under way, their requests, and how many of those the endpoint has done (failed ones too)."""

    batches: int
    total: int
    done: int
    states: tuple[str, ...]


class BatchRunner:
    """Runs all batches of one process; make it inside its event loop. ``commit`` makes answers durable.

    ``end`` says why nothing goes on any more; ``left`` holds what failed in adopted batches, with how often it had
    been asked.
    """

    def __init__(
        self,
        config: OpenAITeacher,
        backend: OpenAIBackend,
        book: BatchBook,
        commit: Commit,
        cost_usd: Callable[[Sent], float],
        gather_s: float = GATHER_S,
        unsure_s: float = UNSURE_S,
    ) -> None:
        self.end: str | None = None
        self.left: dict[str, tuple[Sent, int]] = {}
        self._config, self._backend, self._book = config, backend, book
        self._desk = BatchDesk(config, backend, book, commit, cost_usd, unsure_s)
        self._gather_s = gather_s
        self._room = Room()
        self._refusals = 0
        self._queue: deque[Member] = deque()
        self._running: dict[str, Batch] = {}
        self._known: set[str] = set()  # those, and one that is being made
        self._arrived, self._changed = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, submit: bool = True) -> None:
        """Take over what processes that are gone have left, now and later on; and, to ``submit``, what is put.

        Raises ``TeacherError`` where the endpoint has no batches or does not know one that was left.
        """
        if submit:
            await self._desk.api.check()
        for batch in await self._adopt():
            if batch.record.batch_id is not None:
                batch.status = await self._desk.look(batch)
            self._begin(batch)
        self._spawn(self._adopt_for_ever())
        if submit:
            self._spawn(self._gather())

    async def put(self, request: Request, attempt: int) -> Sent | None:
        """What came of a request, once its batch has ended; ``None`` if another process has taken it over.

        Raises ``TeacherError`` once nothing goes on any more.
        """
        if self.end is not None:
            raise TeacherError(self.end)
        member = Member(request, attempt, asyncio.get_running_loop().create_future())
        self._queue.append(member)
        self._arrived.set()
        assert member.reply is not None
        return await member.reply

    def progress(self) -> BatchProgress:
        """How far the batches are, as the last looks at them told."""
        batches = list(self._running.values())
        done = sum(batch.status.completed + batch.status.failed for batch in batches if batch.status)
        states = sorted({batch.status.state if batch.status else "uploading" for batch in batches})
        if self._refusals:
            states.append("waiting, too many tokens are enqueued")
        return BatchProgress(len(batches), sum(len(batch.members) for batch in batches), done, tuple(states))

    async def close(self) -> None:
        """Stop looking; batches go on at the endpoint."""
        self._stop("closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._desk.clean_up()

    # -- gathering

    async def _gather(self) -> None:
        while self.end is None:
            await self._arrived.wait()
            count = -1
            while count != len(self._queue) < self._room.lines:
                count = len(self._queue)
                await asyncio.sleep(self._gather_s)
            await self._wait_for_room()
            members = await self._next_file()
            if not self._queue:
                self._arrived.clear()
            if not members:
                continue
            key = uuid.uuid4().hex
            self._known.add(key)
            self._running[key] = batch = Batch(await self._book.open(key), {}, 0)
            await self._fill(batch, members)
            self._begin(batch)

    async def _wait_for_room(self) -> None:
        """Until what is enqueued leaves room for a request: only once the endpoint has said how much is too much."""
        while self._room.tokens is not None and self._running and self._queue:
            enqueued = sum(batch.tokens for batch in self._running.values())
            if enqueued + self._tokens(self._queue[0].request) <= self._room.tokens:
                return
            self._changed.clear()
            await self._changed.wait()
        if self._refusals:
            pause = self._config.batch_poll_s * 2.0 ** min(self._refusals - 1, 20)
            await asyncio.sleep(min(pause, LONGEST_PAUSE_S))

    async def _next_file(self) -> list[Member]:
        """Take from the queue what fits into a file."""
        room = self._room
        if room.tokens is not None:
            room = replace(room, tokens=room.tokens - sum(batch.tokens for batch in self._running.values()))
        sizes: list[tuple[int, int]] = []
        for number, member in enumerate(list(self._queue)[: room.lines], 1):
            sizes.append((len(self._desk.line(member.request, self._backend.abilities)), self._tokens(member.request)))
            if number % YIELD == 0:
                await asyncio.sleep(0)
        return [self._queue.popleft() for _ in range(count_fitting(sizes, room))]

    async def _fill(self, batch: Batch, members: Sequence[Member]) -> None:
        added = await self._book.add(batch.record.batch_key, [(one.request, one.attempt) for one in members])
        batch.abilities = self._backend.abilities
        for member in members:
            if member.request.request_id in added:
                batch.members[member.request.request_id] = member
            else:
                member.answer(None)  # its lease had ended, and somebody else asks it
        batch.tokens = sum(self._tokens(member.request) for member in batch.members.values())

    async def _adopt(self) -> list[Batch]:
        batches = []
        for record in await self._book.adopt():
            if record.batch_key in self._known:
                continue
            stored = await self._book.members(record.batch_key)
            self._known.add(record.batch_key)
            members = {one.request_id: Member(one, attempt) for one, attempt in stored}
            tokens = sum(self._tokens(member.request) for member in members.values())
            batch = Batch(record, members, tokens, adopted=True, abilities=self._backend.abilities)
            self._running[record.batch_key] = batch
            batches.append(batch)
        return batches

    async def _adopt_for_ever(self) -> None:
        while self.end is None:
            await asyncio.sleep(min(30.0, max(0.5, self._config.batch_poll_s)))
            with contextlib.suppress(LedgerError):
                for batch in await self._adopt():
                    self._begin(batch)

    # -- one batch

    def _begin(self, batch: Batch) -> None:
        self._spawn(self._look_after(batch))

    async def _look_after(self, batch: Batch) -> None:
        try:
            if not batch.members or (batch.adopted and not batch.status and not await self._desk.recover(batch)):
                await self._desk.close(batch, "dead", [])  # its requests are free for whoever wants them
                return
            if batch.status is None:
                await self._desk.submit(batch)
            await self._see_through(batch)
        except NotHeldError:
            for member in batch.members.values():
                member.answer(None)
        except ApiFailure as failure:
            name = batch.record.batch_id or f"to be, of {len(batch.members):,} requests"
            self._stop(str(self._desk.api.explain(failure, f"batch {name}")))
        except Exception as error:  # whatever it is: nobody may wait for ever
            self._break_off(error)
        finally:
            self._running.pop(batch.record.batch_key, None)
            self._known.discard(batch.record.batch_key)
            self._changed.set()

    async def _see_through(self, batch: Batch) -> None:
        while batch.status is None or not batch.status.ended:
            await asyncio.sleep(self._config.batch_poll_s)
            batch.status = await self._desk.look(batch)
            if batch.status.state != "failed":
                self._refusals = 0
        if batch.status.state == "failed":
            await self._failed(batch, batch.status)
        else:
            await self._completed(batch, batch.status)

    async def _failed(self, batch: Batch, status: BatchStatus) -> None:
        """Nothing of it was answered, or charged."""
        why = "; ".join(status.errors[:3]) or "it says no more"
        if len(status.errors) > 3:
            why += f"; and {len(status.errors) - 3} more"
        if status.lacks_room and self._refusals < MOST_REFUSALS:
            others = sum(one.tokens for one in self._running.values() if one is not batch)
            if others:
                self._room = replace(self._room, tokens=others)  # so many fit
            else:
                self._refusals += 1
                self._room = shrink(self._room, batch.tokens, status.errors)
            waiting = [member for member in batch.members.values() if member.reply is not None]
            await self._desk.close(batch, "dead", [member.request.request_id for member in waiting])
            self._queue.extendleft(reversed(waiting))
            self._arrived.set()
        elif batch.adopted:
            await self._finish(batch, dict.fromkeys(batch.members, lost(f"the batch failed: {why}")))
        else:
            await self._desk.close(batch, "dead", [])
            raise TeacherError(
                f"teacher.mode = 'batch': {self._config.base_url} failed batch {status.batch_id}: {self._backend.hide(why)}"
            )

    async def _completed(self, batch: Batch, status: BatchStatus) -> None:
        found = await self._desk.collect(batch, status)
        if self._room.tokens is not None:
            self._room = replace(self._room, tokens=2 * self._room.tokens)  # whoever else had used up the limit
        cancelled = status.state == "cancelled" and not batch.adopted
        await self._finish(batch, found)
        if cancelled:
            good = sum(sent.response is not None for sent in found.values())
            raise TeacherError(
                f"teacher.mode = 'batch': batch {status.batch_id} was cancelled at {self._config.base_url}; "
                f"{good:,} of its {len(batch.members):,} requests were answered"
            )

    async def _finish(self, batch: Batch, found: dict[str, Sent]) -> None:
        """End a batch whose good answers are committed, and say what came of each request."""
        failed = [name for name, sent in found.items() if sent.response is None]
        await self._desk.close(batch, "collected", [name for name in failed if batch.members[name].reply is not None])
        for name, sent in found.items():
            member = batch.members[name]
            if member.reply is None and sent.response is None:
                self.left[name] = (sent, member.attempt)
            member.answer(sent)

    # -- the rest

    def _tokens(self, request: Request) -> int:
        return about_tokens(request.messages) + most_completion_tokens(request, self._backend.abilities)

    def _spawn(self, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self._break_off(error)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _break_off(self, error: Exception) -> None:
        if isinstance(error, TeacherError | LedgerError):
            self._stop(str(error))
            return
        self._stop(f"the batches broke off: {type(error).__name__}: {error}")
        raise error

    def _stop(self, why: str) -> None:
        """Nothing goes on any more; batches that were submitted are for the next run to pick up."""
        self.end = self.end or why
        members = [*self._queue, *(one for batch in self._running.values() for one in batch.members.values())]
        self._queue.clear()
        for member in members:
            if member.reply is not None and not member.reply.done():
                member.reply.set_exception(TeacherError(self.end))
