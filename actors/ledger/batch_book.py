"""The batches of one teacher, as the process that looks after them sees the ledger's records of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from actors.ledger.batches import CHUNK, BatchRecord
from actors.ledger.handle import Ledger
from actors.ledger.tables import pack_request, unpack_request
from potstill.rows import Request


class BatchBook:
    """The batches of one teacher, as one holder sees and changes them. Every method raises ``LedgerError``."""

    def __init__(self, ledger: Ledger, provider: str, model: str, base_url: str, holder: str) -> None:
        self.ledger, self._holder = ledger, holder
        self._provider, self._model, self._base_url = provider, model, base_url

    async def open(self, key: str) -> BatchRecord:
        """Record a batch that is going to be; held from now on."""
        values = (key, self._provider, self._model, self._base_url, self._holder)
        return BatchRecord(*await self.ledger.awrite("batch_open", *values))

    async def add(self, key: str, requests: Sequence[tuple[Request, int]]) -> set[str]:
        """Put requests, each with how often it has been asked before, into a batch; the ids of those that are in it.

        A request that this holder has no claim on any more stays out.
        """
        added: set[str] = set()
        for start in range(0, len(requests), CHUNK):
            rows = [(one.request_id, attempt, pack_request(one)) for one, attempt in requests[start : start + CHUNK]]
            added.update(await self.ledger.awrite("batch_add", key, self._holder, rows))
        return added

    async def note(self, key: str, **values: Any) -> bool:
        """Note ``file_id``, ``attempted_at`` or ``batch_id``; whether the batch is still held."""
        return await self.ledger.awrite("batch_note", key, self._holder, values)

    async def adopt(self) -> list[BatchRecord]:
        """All batches that are held now: this holder's own, and those whose holder is gone."""
        call = ("batch_adopt", self._provider, self._model, self._holder)
        return [BatchRecord(*row) for row in await self.ledger.awrite(*call)]

    async def members(self, key: str) -> list[tuple[Request, int]]:
        """What is in a batch."""
        rows = await self.ledger.aread("batch_requests", key)
        return [(unpack_request(text), attempt) for attempt, text in rows]

    async def close(self, key: str, state: Literal["collected", "dead"], keep: Sequence[str]) -> bool:
        """End a batch: claims on ``keep`` go (back) to this holder, all others are given up. Whether it was held."""
        return await self.ledger.awrite("batch_close", key, self._holder, state, list(keep))


def under_way(ledger: Ledger, provider: str, model: str) -> list[BatchRecord]:
    """The open batches of a teacher, whoever holds them."""
    return [BatchRecord(*row) for row in ledger.read("open_batches", provider, model)]
