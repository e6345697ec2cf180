"""All batches of one process: requests are gathered into files, submitted, polled and collected.

Each step at the endpoint is recorded before and after (``actors/ledger/batches.py``), and answers are committed before
a batch is closed, so that a process that takes over continues where the last one stopped. A submitted batch runs at
the endpoint even if no process is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace

from actors.backends.openai import OpenAIBackend, Sent
from actors.backends.openai_batches import ApiFailure
from actors.ledger.batch_book import BatchBook
from actors.teachers.batch_job import YIELD, Batch, BatchJobs, BatchOptions, Member, NotHeldError, lost, poll_s
from actors.teachers.bill import Bill
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.batch_files import BatchStatus, Room, count_fitting, shrink
from potstill.endpoint.chat import most_completion_tokens
from potstill.endpoint.cost import about_tokens
from potstill.errors import LedgerError, TeacherError
from potstill.rows import Request

MOST_REFUSALS = 100  # in a row for too many enqueued tokens: about a day
LONGEST_PAUSE_S = 900.0  # between tries to enqueue while others use up the limit


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Batches under way, their requests, and how many of those the endpoint has processed (failed ones included)."""

    batches: int
    total: int
    done: int
    states: tuple[str, ...]


class BatchQueue:
    """The queue; make it inside the process's event loop.

    ``end`` says why it has stopped. ``left`` holds what failed in adopted batches, with the number of earlier attempts.
    """

    def __init__(
        self, config: OpenAITeacher, backend: OpenAIBackend, book: BatchBook, bill: Bill, options: BatchOptions
    ) -> None:
        self.end: str | None = None
        self.left: dict[str, tuple[Sent, int]] = {}
        self._config, self._backend, self._book, self._options = config, backend, book, options
        self._jobs = BatchJobs(config, backend, book, bill, options.unsure_s)
        self._room = Room()
        self._refusals = 0
        self._waiting: deque[Member] = deque()
        self._running: dict[str, Batch] = {}
        self._known: set[str] = set()  # keys of running batches, and of one that is being made
        self._arrived, self._changed = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Adopt the batches of dead processes, now and later, and start to submit.

        Raises ``TeacherError`` if the endpoint has no batches or does not know an adopted one.
        """
        if self._options.submit:
            await self._jobs.api.check()
        for batch in await self._adopt():
            if batch.record.batch_id is not None:
                batch.status = await self._jobs.look(batch)
            self._begin(batch)
        self._spawn(self._keep_adopting())
        if self._options.submit:
            self._spawn(self._gather())

    async def put(self, request: Request, attempt: int) -> Sent | None:
        """The result of a request once its batch has ended; ``None`` if another process has taken it over.

        Raises ``TeacherError`` once the queue has stopped.
        """
        if self.end is not None:
            raise TeacherError(self.end)
        member = Member(request, attempt, asyncio.get_running_loop().create_future())
        self._waiting.append(member)
        self._arrived.set()
        assert member.reply is not None
        return await member.reply

    def progress(self) -> BatchProgress:
        """How far the batches are, as of their last polls."""
        batches = list(self._running.values())
        done = sum(batch.status.completed + batch.status.failed for batch in batches if batch.status)
        states = sorted({batch.status.state if batch.status else "uploading" for batch in batches})
        if self._refusals:
            states.append("waiting, too many tokens are enqueued")
        return BatchProgress(len(batches), sum(len(batch.members) for batch in batches), done, tuple(states))

    async def close(self) -> None:
        """Stop polling. Batches continue at the endpoint."""
        self._stop("closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._jobs.clean_up()

    # -- gathering

    async def _gather(self) -> None:
        while self.end is None:
            await self._arrived.wait()
            count = -1
            while count != len(self._waiting) < self._room.lines:
                count = len(self._waiting)
                await asyncio.sleep(self._options.gather_s)
            await self._wait_for_room()
            members = await self._next_file()
            if not self._waiting:
                self._arrived.clear()
            if not members:
                continue
            key = uuid.uuid4().hex
            self._known.add(key)
            self._running[key] = batch = Batch(await self._book.open(key), {}, 0)
            await self._fill(batch, members)
            self._begin(batch)

    async def _wait_for_room(self) -> None:
        """Wait until the enqueued tokens leave room for a request, if the endpoint has a known limit."""
        while self._room.tokens is not None and self._running and self._waiting:
            enqueued = sum(batch.tokens for batch in self._running.values())
            if enqueued + self._tokens(self._waiting[0].request) <= self._room.tokens:
                return
            self._changed.clear()
            await self._changed.wait()
        if self._refusals:
            pause = self._config.batch_poll_s * 2.0 ** min(self._refusals - 1, 20)
            await asyncio.sleep(min(pause, LONGEST_PAUSE_S))

    async def _next_file(self) -> list[Member]:
        """Take as many waiting requests as fit into a file."""
        room = self._room
        if room.tokens is not None:
            room = replace(room, tokens=room.tokens - sum(batch.tokens for batch in self._running.values()))
        sizes: list[tuple[int, int]] = []
        for number, member in enumerate(list(self._waiting)[: room.lines], 1):
            sizes.append((len(self._jobs.line(member.request, self._backend.abilities)), self._tokens(member.request)))
            if number % YIELD == 0:
                await asyncio.sleep(0)
        return [self._waiting.popleft() for _ in range(count_fitting(sizes, room))]

    async def _fill(self, batch: Batch, members: Sequence[Member]) -> None:
        added = await self._book.add(batch.record.batch_key, [(one.request, one.attempt) for one in members])
        batch.abilities = self._backend.abilities
        for member in members:
            if member.request.request_id in added:
                batch.members[member.request.request_id] = member
            else:
                member.answer(None)  # its lease had expired and another process asks it
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

    async def _keep_adopting(self) -> None:
        while self.end is None:
            await asyncio.sleep(poll_s(self._config))
            with contextlib.suppress(LedgerError):
                for batch in await self._adopt():
                    self._begin(batch)

    # -- one batch

    def _begin(self, batch: Batch) -> None:
        self._spawn(self._run(batch))

    async def _run(self, batch: Batch) -> None:
        try:
            if not batch.members or (batch.adopted and not batch.status and not await self._jobs.recover(batch)):
                await self._jobs.close(batch, "dead", [])  # releases its requests
                return
            if batch.status is None:
                await self._jobs.submit(batch)
            await self._poll(batch)
        except NotHeldError:
            for member in batch.members.values():
                member.answer(None)
        except ApiFailure as failure:
            name = batch.record.batch_id or f"of {len(batch.members):,} requests, not created yet"
            self._stop(str(self._jobs.api.explain(failure, f"batch {name}")))
        except Exception as error:  # any error must end the callers' waiting
            self._fail_with(error)
        finally:
            self._running.pop(batch.record.batch_key, None)
            self._known.discard(batch.record.batch_key)
            self._changed.set()

    async def _poll(self, batch: Batch) -> None:
        while batch.status is None or not batch.status.ended:
            await asyncio.sleep(self._config.batch_poll_s)
            batch.status = await self._jobs.look(batch)
            if batch.status.state != "failed":
                self._refusals = 0
        if batch.status.state == "failed":
            await self._failed(batch, batch.status)
        else:
            await self._completed(batch, batch.status)

    async def _failed(self, batch: Batch, status: BatchStatus) -> None:
        """Handle a batch that the endpoint refused; none of it was answered or charged."""
        why = "; ".join(status.errors[:3]) or "it gives no reason"
        if len(status.errors) > 3:
            why += f"; and {len(status.errors) - 3} more"
        if status.lacks_room and self._refusals < MOST_REFUSALS:
            others = sum(one.tokens for one in self._running.values() if one is not batch)
            if others:
                self._room = replace(self._room, tokens=others)  # that much fits
            else:
                self._refusals += 1
                self._room = shrink(self._room, batch.tokens, status.errors)
            again = [member for member in batch.members.values() if member.reply is not None]
            await self._jobs.close(batch, "dead", [member.request.request_id for member in again])
            self._waiting.extendleft(reversed(again))
            self._arrived.set()
        elif batch.adopted:
            await self._finish(batch, dict.fromkeys(batch.members, lost(f"the batch failed: {why}")))
        else:
            await self._jobs.close(batch, "dead", [])
            raise TeacherError(
                f"teacher.mode = 'batch': {self._config.base_url} failed batch {status.batch_id}: {self._backend.hide(why)}"
            )

    async def _completed(self, batch: Batch, status: BatchStatus) -> None:
        found = await self._jobs.collect(batch, status)
        if self._room.tokens is not None:
            self._room = replace(self._room, tokens=2 * self._room.tokens)  # others may have used up the limit
        cancelled = status.state == "cancelled" and not batch.adopted
        await self._finish(batch, found)
        if cancelled:
            good = sum(sent.response is not None for sent in found.values())
            raise TeacherError(
                f"teacher.mode = 'batch': batch {status.batch_id} was cancelled at {self._config.base_url}; "
                f"{good:,} of its {len(batch.members):,} requests were answered"
            )

    async def _finish(self, batch: Batch, found: dict[str, Sent]) -> None:
        """Close a batch whose good answers are committed, and pass on the result of each request."""
        failed = [name for name, sent in found.items() if sent.response is None]
        await self._jobs.close(batch, "collected", [name for name in failed if batch.members[name].reply is not None])
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
                self._fail_with(error)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fail_with(self, error: Exception) -> None:
        if isinstance(error, TeacherError | LedgerError):
            self._stop(str(error))
            return
        self._stop(f"the batches failed: {type(error).__name__}: {error}")
        raise error

    def _stop(self, why: str) -> None:
        """Stop for good. The next run adopts the submitted batches."""
        self.end = self.end or why
        members = [*self._waiting, *(one for batch in self._running.values() for one in batch.members.values())]
        self._waiting.clear()
        for member in members:
            if member.reply is not None and not member.reply.done():
                member.reply.set_exception(TeacherError(self.end))
