"""The ledger's records of one teacher's batches, for the process that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from actors.ledger.batches import CHUNK, BatchRecord
from actors.ledger.handle import Ledger
from actors.ledger.tables import pack_request, unpack_request
from potstill.rows import Request


class BatchBook:
    """The batches of one teacher, read and changed by ``holder``. Every method raises ``LedgerError``."""

    def __init__(self, ledger: Ledger, provider: str, model: str, base_url: str, holder: str) -> None:
        self.ledger, self._holder = ledger, holder
        self._provider, self._model, self._base_url = provider, model, base_url

    async def open(self, key: str) -> BatchRecord:
        """Record a batch that is about to be created, and hold it."""
        values = (key, self._provider, self._model, self._base_url, self._holder)
        return BatchRecord(*await self.ledger.awrite("batch_open", *values))

    async def add(self, key: str, requests: Sequence[tuple[Request, int]]) -> set[str]:
        """Add requests, each with its number of earlier attempts, to a batch. Returns the ids of those added.

        A request that this holder no longer has a claim on is left out.
        """
        added: set[str] = set()
        for start in range(0, len(requests), CHUNK):
            rows = [(one.request_id, attempt, pack_request(one)) for one, attempt in requests[start : start + CHUNK]]
            added.update(await self.ledger.awrite("batch_add", key, self._holder, rows))
        return added

    async def note(self, key: str, **values: Any) -> bool:
        """Note ``file_id``, ``attempted_at`` or ``batch_id``. False if the batch is no longer held."""
        return await self.ledger.awrite("batch_note", key, self._holder, values)

    async def adopt(self) -> list[BatchRecord]:
        """Take over the batches whose holder is gone. Returns all that are held now, this holder's own included."""
        call = ("batch_adopt", self._provider, self._model, self._holder)
        return [BatchRecord(*row) for row in await self.ledger.awrite(*call)]

    async def members(self, key: str) -> list[tuple[Request, int]]:
        """The requests of a batch, each with its number of earlier attempts."""
        rows = await self.ledger.aread("batch_requests", key)
        return [(unpack_request(text), attempt) for attempt, text in rows]

    async def close(self, key: str, state: Literal["collected", "dead"], keep: Sequence[str]) -> bool:
        """End a batch: claims on ``keep`` return to this holder, all others are released. False if it was not held."""
        return await self.ledger.awrite("batch_close", key, self._holder, state, list(keep))


def under_way(ledger: Ledger, provider: str, model: str) -> list[BatchRecord]:
    """All open batches of a teacher, regardless of their holder."""
    return [BatchRecord(*row) for row in ledger.read("open_batches", provider, model)]
