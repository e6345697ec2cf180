"""Ask in batches inside the test process, and inspect the endpoint and the ledger afterwards."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from actors.ledger import tables
from actors.ledger.store import LedgerStore
from actors.teachers.answers import Answer
from actors.teachers.batch import BatchTeacherActor
from actors.teachers.batch_job import BatchOptions
from potstill.config.teacher import OpenAITeacher
from potstill.rows import Request
from tests.endpoint.client import Endpoint
from tests.support.near import NearLedger, NearLimiter


def start(config: OpenAITeacher, store: LedgerStore, owner: str = "job-a", submit: bool = True) -> BatchTeacherActor:
    return BatchTeacherActor(
        config, NearLedger(store), owner, NearLimiter(config), BatchOptions(submit=submit, gather_s=0.2, unsure_s=1.0)
    )


def ask(
    config: OpenAITeacher,
    store: LedgerStore,
    wanted: list[Request],
    owner: str = "job-a",
    then: Callable[[], object] = lambda: None,
) -> list[Answer]:
    """Return the answers; call ``then`` after the trial request."""

    async def run() -> list[Answer]:
        actor = start(config, store, owner)
        try:
            await actor.ready()
            then()
            return await asyncio.wait_for(actor.answer(wanted), 300)
        finally:
            await actor.close()

    return asyncio.run(run())


def fetch(endpoint: Endpoint, path: str, method: str = "GET") -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(endpoint.base_url + path, method=method), timeout=300) as response:
        return bytes(response.read())


def batches_of(endpoint: Endpoint) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """All batches, oldest first, with the lines of their input files."""
    batches = json.loads(fetch(endpoint, "/batches?limit=100"))["data"]
    return [
        (one, [json.loads(line) for line in fetch(endpoint, f"/files/{one['input_file_id']}/content").splitlines()])
        for one in reversed(batches)
    ]


def answered(endpoint: Endpoint) -> Counter[str]:
    """How often each request was answered in a batch."""
    return Counter(e.client_request_id for e in endpoint.book() if e.route == "batch" and e.answered)


def left_over(store: LedgerStore) -> tuple[int, int, list[str]]:
    """Claims, requests in batches, and the states of all batches."""
    with store.database.read() as connection:
        counts = [
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in (tables.claims, tables.batch_requests)
        ]
        states = connection.execute(sa.select(tables.batches.c.state)).scalars().all()
    return counts[0], counts[1], sorted(states)


def expire_leases(store: LedgerStore) -> None:
    """Expire the leases of the batches' holder."""
    with store.database.write() as connection:
        connection.execute(sa.update(tables.batches).values(held_until=0.0))
