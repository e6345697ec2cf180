"""Ledger and limiter in the test process, with the behaviour that they have behind their actors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from actors.ledger.store import LedgerStore
from actors.teachers.allowance import Allowance
from actors.teachers.batch import limits
from potstill.config.teacher import OpenAITeacher
from potstill.limits.pacer import Pacer


class NearLedger:
    """A ``Ledger`` in this process."""

    lease_s = 1e6  # longer than any test

    def __init__(self, store: LedgerStore) -> None:
        self.store = store
        self.renew = store.renew

    async def atake(self, request_ids: Sequence[str], owner: str) -> Any:
        return await asyncio.to_thread(self.store.take, request_ids, owner)

    async def acommit(self, *rows: Any) -> None:
        await asyncio.to_thread(self.store.commit, *rows)

    async def awrite(self, *call: Any) -> Any:
        return (await asyncio.to_thread(self.store.write, [call]))[0]

    async def aread(self, method: str, *args: Any) -> Any:
        return await asyncio.to_thread(getattr(self.store, method), *args)


class NearLimiter:
    """A ``LimiterHandle`` in this process."""

    def __init__(self, config: OpenAITeacher) -> None:
        self.pacer = Pacer(limits(config))

    def allowance(self, holder: str) -> Allowance:
        async def exchange(report: Any) -> Any:
            return self.pacer.exchange(report, time.monotonic())

        return Allowance(exchange, holder)
