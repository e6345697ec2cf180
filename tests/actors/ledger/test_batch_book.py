"""Batches in the ledger, on both databases: holders, claims, and ledgers of earlier versions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from actors.ledger import tables, upkeep
from actors.ledger.batch_book import BatchBook
from actors.ledger.store import LedgerStore
from potstill.rows import Message, Request, Response, Sampling
from tests.support.near import NearLedger

MESSAGES = (Message("user", "ünd 'quoted' \n"),)
REQUESTS = [
    Request("generate", "t", "s", "chat", "p", "m", None, MESSAGES, Sampling(stop=("a",)), ("x", "y"), occurrence=i)
    for i in range(2500)
]
IDS = [one.request_id for one in REQUESTS]


@pytest.fixture
def store(uri: str) -> Iterator[LedgerStore]:
    store = LedgerStore(uri)
    yield store
    store.close()


def book(store: LedgerStore, holder: str) -> BatchBook:
    return BatchBook(NearLedger(store), "p", "m", "http://x/v1", holder)


def let_go(store: LedgerStore) -> None:
    with store.database.write() as connection:
        connection.execute(sa.update(tables.batches).values(held_until=0.0))


def test_requests_belong_to_their_batch_until_it_is_closed(store: LedgerStore) -> None:
    mine = book(store, "job-a-batches")
    store.take(IDS[:2000], "job-a-batches")
    store.take(IDS[2000:], "job-b")

    async def fill() -> None:
        await mine.open("k")
        added = await mine.add("k", [(one, i % 3) for i, one in enumerate(REQUESTS)])
        assert added == set(IDS[:2000])  # requests claimed by others are not added
        kept = sorted(await mine.members("k"), key=lambda pair: pair[0].occurrence)
        assert kept == [(one, i % 3) for i, one in enumerate(REQUESTS[:2000])]

    asyncio.run(fill())
    store.release("job-a")
    for owner in ("job-a-batches", "job-c"):
        assert set(store.take(IDS[:2000], owner).others) == set(IDS[:2000])
    assert upkeep.verify(store.database) == []
    adopted = asyncio.run(book(store, "job-c").adopt())  # released: no lease to wait for
    assert [(one.batch_key, one.requests) for one in adopted] == [("k", 2000)]
    assert not asyncio.run(mine.close("k", "collected", []))
    store.commit(REQUESTS[:10], [Response(name, "text", created_at=1.0) for name in IDS[:10]])
    assert asyncio.run(book(store, "job-c").close("k", "collected", IDS[10:20]))
    taken = store.take(IDS[:2000], "job-d")
    assert {response.request_id for response in taken.known} == set(IDS[:10])
    assert set(taken.others) == set(IDS[10:20])
    assert set(store.take(IDS[10:20], "job-c").mine) == set(IDS[10:20])


def test_a_batch_has_one_holder(store: LedgerStore) -> None:
    one, two = book(store, "job-a"), book(store, "job-b")
    asyncio.run(one.open("k"))
    assert [record.batch_key for record in asyncio.run(one.adopt())] == ["k"]
    assert asyncio.run(two.adopt()) == []
    assert asyncio.run(one.note("k", file_id="file-1"))
    let_go(store)
    store.renew("job-a")
    assert asyncio.run(two.adopt()) == []
    let_go(store)
    (record,) = asyncio.run(two.adopt())
    assert record.file_id == "file-1"
    assert not asyncio.run(one.note("k", attempted_at=time.time()))
    assert asyncio.run(book(store, "job-a").adopt()) == []
    assert asyncio.run(two.close("k", "dead", []))
    let_go(store)
    assert asyncio.run(one.adopt()) == []


def test_another_models_batches_are_left_alone(store: LedgerStore) -> None:
    asyncio.run(book(store, "job-a").open("k"))
    let_go(store)
    other = BatchBook(NearLedger(store), "p", "other", "http://x/v1", "job-b")
    assert asyncio.run(other.adopt()) == []


def test_an_older_ledger_gets_the_tables(uri: str) -> None:
    store = LedgerStore(uri)
    store.commit(REQUESTS[:1], [Response(IDS[0], "text", created_at=1.0)])
    with store.database.write() as connection:
        for table in (tables.batch_requests, tables.batches):
            table.drop(connection)
    store.close()
    reader = LedgerStore(uri, create=False)
    assert reader.count_known(IDS[:1]) == 1
    reader.close()
    again = LedgerStore(uri)
    asyncio.run(book(again, "job-a").open("k"))
    assert again.count_known(IDS[:1]) == 1
    again.close()


def test_closed_batches_are_pruned(store: LedgerStore) -> None:
    mine = book(store, "job-a")
    for key in ("old", "open"):
        asyncio.run(mine.open(key))
    asyncio.run(mine.close("old", "collected", []))
    upkeep.prune(store.database, time.time() + 5)
    assert [record.batch_key for record in asyncio.run(mine.adopt())] == ["open"]
