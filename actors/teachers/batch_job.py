"""One batch job at the endpoint: submitted exactly once, polled, collected.

Each step is noted in the ledger before and after (``actors/ledger/batches.py``), so that a process that takes a batch
over continues where the last one stopped.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from actors.backends.openai import OpenAIBackend, Sent
from actors.backends.openai_batches import ApiFailure, BatchApi
from actors.ledger.batch_book import BatchBook
from actors.ledger.batches import BatchRecord
from actors.teachers.bill import Bill
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.batch_files import WINDOW_S, BatchStatus, Result, read_result, to_line
from potstill.endpoint.chat import Abilities, body
from potstill.endpoint.failures import Failure, backoff_s
from potstill.errors import TeacherError
from potstill.rows import Request

COMMIT = 500  # answers committed together
YIELD = 500  # lines written before other coroutines get a turn


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """``submit``: False only collects what earlier runs have submitted. ``choices``: classes will be asked for.

    A file is closed after ``gather_s`` without another request. After an attempt to create a batch that got no reply,
    the batch may still appear for ``unsure_s``.
    """

    submit: bool = True
    choices: bool = True
    gather_s: float = 2.0
    unsure_s: float = 30.0


def poll_s(config: OpenAITeacher) -> float:
    """Seconds between looks into the ledger for what other processes have done."""
    return min(30.0, max(0.5, config.batch_poll_s))


@dataclass(slots=True)
class Member:
    """A request in a batch, asked ``attempt`` times before.

    ``reply`` resolves to its result, or to ``None`` if another process has taken the request over. There is no
    ``reply`` if no caller waits.
    """

    request: Request
    attempt: int
    reply: asyncio.Future[Sent | None] | None = None

    def answer(self, sent: Sent | None) -> None:
        """Resolve ``reply``."""
        if self.reply is not None and not self.reply.done():
            self.reply.set_result(sent)


@dataclass(slots=True)
class Batch:
    """A batch that this process holds. ``adopted``: begun by a process that died."""

    record: BatchRecord
    members: dict[str, Member]
    tokens: int
    adopted: bool = False
    abilities: Abilities = field(default_factory=Abilities)
    status: BatchStatus | None = None


class NotHeldError(Exception):
    """Another process has taken a batch over."""


class BatchJobs:
    """Submits, polls and collects batches at the endpoint, and notes each step in ``book``."""

    def __init__(
        self, config: OpenAITeacher, backend: OpenAIBackend, book: BatchBook, bill: Bill, unsure_s: float
    ) -> None:
        self.api = BatchApi(backend, config)
        self._config, self._backend, self._book, self._bill = config, backend, book, bill
        self._unsure_s = unsure_s
        self._folder = tempfile.TemporaryDirectory(prefix="potstill-batches-")

    async def recover(self, batch: Batch) -> bool:
        """Find the ``status`` of a batch whose process died. False if the batch was never created."""
        if batch.record.batch_id is not None:
            batch.status = await self.look(batch)
        elif batch.record.attempted_at is not None:
            batch.status = await self._find(batch)
            if batch.status is not None:
                await self._note_id(batch, batch.status)
        return batch.status is not None

    async def submit(self, batch: Batch) -> None:
        """Upload and create a batch. If the reply to an attempt was lost, look for its batch before trying again."""
        file_id = await self._upload(batch)
        batch.record = replace(batch.record, file_id=file_id)
        await self._note(batch, file_id=file_id)
        attempt = 0
        while batch.status is None:
            attempt += 1
            batch.record = replace(batch.record, attempted_at=time.time())
            await self._note(batch, attempted_at=batch.record.attempted_at)
            try:
                batch.status = await self.api.create(file_id, batch.record.batch_key)
            except ApiFailure as failure:
                if failure.failure.kind in ("final", "fatal") or attempt >= self._config.max_attempts:
                    raise
                if failure.certain:
                    await asyncio.sleep(backoff_s(attempt, random.random(), failure.failure.retry_after_s))
                else:
                    batch.status = await self._find(batch)
        await self._note_id(batch, batch.status)

    async def _upload(self, batch: Batch) -> str:
        path = Path(self._folder.name) / f"{batch.record.batch_key}.jsonl"
        batch.abilities = self._backend.abilities
        with path.open("wb") as file:
            for number, member in enumerate(batch.members.values(), 1):
                file.write(self.line(member.request, batch.abilities))
                if number % YIELD == 0:
                    await asyncio.sleep(0)
        try:
            return await self.api.upload(path, f"potstill-{batch.record.batch_key}.jsonl")
        finally:
            path.unlink()

    async def _find(self, batch: Batch) -> BatchStatus | None:
        """The batch that an attempt without a reply may have created; ``None`` once it can no longer appear."""
        record = batch.record
        until = (record.attempted_at or 0.0) + self._unsure_s
        while True:
            late = time.time() > until
            since = record.created_at - WINDOW_S  # clocks may differ
            found = await self.api.find(record.batch_key, record.file_id, since)
            if found is not None or late:
                return found
            await asyncio.sleep(min(5.0, self._unsure_s / 4))

    async def look(self, batch: Batch) -> BatchStatus:
        """The status of a batch. One that the endpoint does not know counts as expired once it can't be running."""
        batch_id = batch.record.batch_id
        assert batch_id is not None
        try:
            status = await self.api.retrieve(batch_id)
        except ApiFailure as failure:
            if failure.status != 404:
                raise
            given_up_at = batch.record.created_at + 1.1 * WINDOW_S
            if time.time() > given_up_at:
                return BatchStatus(batch_id, "expired")
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(given_up_at))
            raise TeacherError(
                f"teacher.base_url = {self._config.base_url!r}: does not know batch {batch_id}, submitted to "
                f"{batch.record.base_url} with {batch.record.requests:,} requests; use the address and key that it was "
                f"submitted with; after {when} its requests are asked again"
            ) from failure
        return status

    async def collect(self, batch: Batch, status: BatchStatus) -> dict[str, Sent]:
        """The result of every request, by id. All good answers are committed."""
        found: dict[str, Sent] = {}
        for file_id, expected in ((status.output_file_id, status.completed), (status.error_file_id, 0)):
            if file_id is None:
                continue
            path = Path(self._folder.name) / f"{uuid.uuid4().hex}.jsonl"
            try:
                await self.api.download(file_id, path, expected)
                for results in _chunks(path):
                    found |= await self._read_results(batch, [one for one in results if one.custom_id not in found])
            except ApiFailure as failure:
                if failure.status != 404:
                    raise
                # Deleted or expired: its results are lost.
            finally:
                path.unlink(missing_ok=True)
        for name in batch.members:
            if name not in found:
                found[name] = lost(f"the batch ended ({status.state}) without an answer to it")
        return found

    async def _read_results(self, batch: Batch, results: Sequence[Result]) -> dict[str, Sent]:
        """Read some results and commit the good ones."""
        found: dict[str, Sent] = {}
        for result in results:
            member = batch.members.get(result.custom_id)
            if member is not None and result.custom_id not in found:
                sent = self._read(batch, member, result)
                if sent.response is not None:
                    sent = replace(sent, response=self._bill.answered(sent))
                found[result.custom_id] = sent
        good = {name: sent.response for name, sent in found.items() if sent.response is not None}
        await self._book.ledger.acommit([batch.members[name].request for name in good], list(good.values()))
        return found

    def _read(self, batch: Batch, member: Member, result: Result) -> Sent:
        if result.status == 200:
            seconds = max(0.0, time.time() - batch.record.created_at)
            return self._backend.read(member.request, result.body, {}, seconds)
        if result.status is None:
            return lost(self._backend.hide(result.message))
        sent = self._backend.refused(member.request, result.status, result.body, batch.abilities)
        return sent or lost("the endpoint refused a setting, which is left out from now on")

    async def close(self, batch: Batch, state: Literal["collected", "dead"], keep: Sequence[str]) -> None:
        """End a batch. Claims on ``keep`` return to this process. Raises ``NotHeldError``."""
        if not await self._book.close(batch.record.batch_key, state, keep):
            raise NotHeldError

    async def _note_id(self, batch: Batch, status: BatchStatus) -> None:
        batch.record = replace(batch.record, batch_id=status.batch_id)
        await self._note(batch, batch_id=status.batch_id)

    async def _note(self, batch: Batch, **values: object) -> None:
        if not await self._book.note(batch.record.batch_key, **values):
            raise NotHeldError

    def line(self, request: Request, abilities: Abilities) -> bytes:
        """A request as a line of the input file, with the same body as in real time."""
        return to_line(request.request_id, body(request, self._config.model, abilities))

    def clean_up(self) -> None:
        """Delete the files on this machine."""
        self._folder.cleanup()


def lost(message: str) -> Sent:
    """The result of a request that was not answered and may be asked again."""
    return Sent(None, Failure("transient", message), {})


def _chunks(path: Path) -> Iterator[list[Result]]:
    results: list[Result] = []
    with path.open("rb") as file:
        for line in file:
            result = read_result(line)
            if result is not None:
                results.append(result)
            if len(results) >= COMMIT:
                yield results
                results = []
    yield results
