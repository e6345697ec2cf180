"""One ledger for the whole cluster: a named actor that owns the store, and the handle that finds it.

SQLite allows writers on one machine only, so a detached actor on the node of the file owns it and all jobs and nodes
call that actor. Its name holds the protocol version and the URI: after a code change a new actor starts beside the old
one, which is safe since claims are in the database. It ends after ``IDLE_S`` without a call.

Calls of the whole cluster share transactions (``actors/ledger/writer.py``); coroutines of one process share messages.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.ledger.database import redact
from actors.ledger.store import LEASE_S, Call, LedgerStore
from actors.ledger.tables import SCHEMA_VERSION, Row, Taken, to_response, to_rows, to_taken
from actors.ledger.writer import GroupWriter
from potstill.draws import digest
from potstill.errors import LedgerError
from potstill.rows import Request, Response

NAMESPACE = "potstill"
# Version of the messages between handle and actor, part of the actor's name. Raise the number when methods or messages
# change. Messages hold rows by position, so changed fields change it too.
PROTOCOL = digest(["3", *(one.name for kind in (Request, Response) for one in fields(kind))], size=3)
IDLE_S = 300.0
TRIES = 5
READERS = 2


class LedgerActor:
    """A ``LedgerStore`` in its own process: one thread writes, a few read."""

    def __init__(self, uri: str, idle_s: float = IDLE_S) -> None:
        self._store = LedgerStore(uri)
        self._writer = GroupWriter(self._store.write)
        self._readers = concurrent.futures.ThreadPoolExecutor(READERS)
        self._last_call = time.monotonic()
        self._under_way = 0
        threading.Thread(target=self._end_when_idle, args=(idle_s,), daemon=True).start()

    async def write(self, calls: Sequence[Call]) -> list[Any]:
        """``LedgerStore.write``, in one transaction with other calls that are waiting.

        The result of a failed call is its ``LedgerError``.
        """
        return await self._count(asyncio.wrap_future(self._writer.submit(calls)))

    async def read(self, method: str, *args: Any) -> Any:
        """Run a read-only method of the store."""
        reading = asyncio.get_running_loop().run_in_executor(self._readers, getattr(self._store, method), *args)
        return await self._count(reading)

    async def _count(self, answer: asyncio.Future[Any]) -> Any:
        self._under_way += 1
        try:
            return await answer
        finally:
            self._under_way -= 1
            self._last_call = time.monotonic()

    def _end_when_idle(self, idle_s: float) -> None:
        while self._under_way or time.monotonic() - self._last_call < idle_s:
            time.sleep(min(5.0, idle_s / 4))
        # A caller that reaches the dying actor starts a new one (Ledger._call).
        ray.kill(ray.get_runtime_context().current_actor)


class Ledger:
    """A handle on the ledger. It outlives the actor and is cheap to send to other processes.

    Every method raises ``LedgerError``. Methods with a leading ``a`` are for coroutines; their concurrent calls share a
    message. ``lease_s``: claims expire after this time unless renewed; after a crash others wait that long.
    """

    def __init__(self, uri: str, node_id: str | None = None, idle_s: float = IDLE_S, lease_s: float = LEASE_S) -> None:
        self.uri = uri
        self.lease_s = lease_s
        self._idle_s = idle_s
        self._node_id = node_id or ray.get_runtime_context().get_node_id()
        self._actor: Any = None
        self._gathered: list[tuple[Call, asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None

    def __reduce__(self) -> tuple[type, tuple[str, str, float, float]]:
        return Ledger, (self.uri, self._node_id, self._idle_s, self.lease_s)

    def take(self, request_ids: Sequence[str], owner: str) -> Taken:
        """See ``LedgerStore.take``."""
        return to_taken(self._write("take", list(request_ids), owner, self.lease_s))

    def commit(self, requests: Sequence[Request], responses: Sequence[Response]) -> None:
        """See ``LedgerStore.commit``."""
        self._write("commit", *to_rows(requests, responses))

    def fetch(self, request_ids: Sequence[str]) -> list[Response]:
        """See ``LedgerStore.fetch``."""
        return [to_response(row) for row in self.fetch_rows(request_ids)]

    def fetch_rows(self, request_ids: Sequence[str]) -> list[Row]:
        """``fetch`` as rows of ``ANSWER_COLUMNS``, for ``to_response_table``."""
        rows: list[Row] = self._call("read", "fetch_rows", list(request_ids))
        return rows

    def renew(self, owner: str) -> None:
        """See ``LedgerStore.renew``."""
        self._write("renew", owner, self.lease_s)

    def release(self, owner: str) -> None:
        """See ``LedgerStore.release``."""
        self._write("release", owner)

    async def atake(self, request_ids: Sequence[str], owner: str) -> Taken:
        """``take`` for coroutines."""
        return to_taken(await self.awrite("take", list(request_ids), owner, self.lease_s))

    async def acommit(self, requests: Sequence[Request], responses: Sequence[Response]) -> None:
        """``commit`` for coroutines; returns when the answers are durable."""
        await self.awrite("commit", *to_rows(requests, responses))

    def read(self, method: str, *args: Any) -> Any:
        """Run a read-only method of ``LedgerStore``."""
        return self._call("read", method, *args)

    async def aread(self, method: str, *args: Any) -> Any:
        """``read`` for coroutines."""
        return await self._acall("read", method, *args)

    def _write(self, *call: Any) -> Any:
        (result,) = self._call("write", [call])
        if isinstance(result, LedgerError):
            raise result
        return result

    async def awrite(self, *call: Any) -> Any:
        """A call of ``LedgerStore.write`` for coroutines: calls during a message share the next one."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._gathered.append((call, answer))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await answer

    async def _send(self) -> None:
        while self._gathered:
            batch, self._gathered = self._gathered, []
            try:
                results = await self._acall("write", [call for call, _ in batch])
            except BaseException as error:
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error if isinstance(error, Exception) else LedgerError("broken off"))
                if not isinstance(error, Exception):
                    raise
                continue
            for (_, answer), result in zip(batch, results, strict=True):
                if answer.done():
                    continue  # its coroutine was cancelled; its write is durable anyway
                if isinstance(result, LedgerError):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

    def _call(self, method: str, *args: Any) -> Any:
        """Call the actor. A dead one is replaced and the call repeated, which is safe for every method."""
        for attempt in range(TRIES):
            # A local variable: another thread may drop a dead actor from ``self``.
            actor = self._actor or self._find()
            self._actor = actor
            try:
                return ray.get(getattr(actor, method).remote(*args))
            except ray.exceptions.RayError as error:
                message = self._lost(error)
                time.sleep(0.2 * 2**attempt)
        raise self._given_up(message)

    async def _acall(self, method: str, *args: Any) -> Any:
        for attempt in range(TRIES):
            actor = self._actor or await asyncio.to_thread(self._find)
            self._actor = actor
            try:
                return await getattr(actor, method).remote(*args)
            except ray.exceptions.RayError as error:
                message = self._lost(error)
                await asyncio.sleep(0.2 * 2**attempt)
        raise self._given_up(message)

    def _lost(self, error: Exception) -> str:
        """Drop the actor if it died; raise any other error."""
        if isinstance(error, ray.exceptions.RayTaskError):
            raise error.cause from error
        if not isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.ActorUnavailableError):
            raise error
        self._actor = None
        message = _last_line(str(error))
        if "LedgerError" in str(error):
            raise LedgerError(message) from error
        return message

    def _given_up(self, message: str) -> LedgerError:
        return LedgerError(f"ledger.uri = {redact(self.uri)!r}: its process keeps dying: {message}")

    def _find(self) -> Any:
        return (
            ray.remote(LedgerActor)
            .options(
                name=f"ledger-v{SCHEMA_VERSION}.{PROTOCOL}-{digest(self.uri, size=6)}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                # In soft mode another node would open its own file if this node were lost.
                scheduling_strategy=NodeAffinitySchedulingStrategy(self._node_id, soft=False),
            )
            .remote(self.uri, self._idle_s)
        )


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].removeprefix("potstill.errors.LedgerError: ")
