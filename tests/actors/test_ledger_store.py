import sqlite3
import time

import pytest

from actors.ledger_store import LedgerStore
from potstill.errors import LedgerError
from potstill.rows import Message, Request, Response, Sampling


def request(occurrence: int) -> Request:
    return Request(
        "generate",
        "t",
        "s",
        "list",
        "embedded",
        "m",
        None,
        (Message("prompt", "hi"),),
        Sampling(),
        occurrence=occurrence,
    )


REQUESTS = [request(i) for i in range(1200)]
IDS = [r.request_id for r in REQUESTS]


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path}/deep/ledger.db"


def answer(requests, **changes):
    return [
        Response(r.request_id, f"text {r.occurrence}", "stop", (-0.5, None), 0.25, 5, 7, 0.01, 0.2, 1.5, **changes)
        for r in requests
    ]


def test_what_was_committed_is_there_for_ever(uri):
    store = LedgerStore(uri)
    assert set(store.take(IDS, "a").mine) == set(IDS)
    store.commit(REQUESTS, answer(REQUESTS))
    store.close()
    again = LedgerStore(uri)
    taken = again.take(IDS, "b")
    assert not taken.mine
    assert not taken.others
    assert {response.request_id: response for response in taken.known} == {r.request_id: r for r in answer(REQUESTS)}
    assert again.count_known([*IDS, "unknown"]) == 1200


def test_two_askers_never_ask_the_same(uri):
    one, two = LedgerStore(uri), LedgerStore(uri)
    first = one.take(IDS[:600], "one")
    second = two.take(IDS, "two")
    assert set(first.mine) == set(second.others) == set(IDS[:600])
    assert set(second.mine) == set(IDS[600:])
    assert set(one.take(IDS[:5], "one").mine) == set(IDS[:5])  # one's own claims stay its own


def test_leases_end(uri):
    store = LedgerStore(uri)
    store.take(IDS[:3], "dead", 0.05)
    assert store.take(IDS[:3], "b").others == tuple(IDS[:3])
    time.sleep(0.06)
    assert set(store.take(IDS[:3], "b").mine) == set(IDS[:3])


def test_leases_are_renewed_and_released_by_prefix(uri):
    store = LedgerStore(uri)
    store.take(IDS[:1], "job_1-0", 0.05)
    store.take(IDS[1:2], "jobx1-0")
    store.renew("job_1")
    time.sleep(0.06)
    assert store.take(IDS[:1], "b").others == (IDS[0],)
    store.release("job_1")
    assert store.take(IDS[:2], "b").mine == (IDS[0],)


def test_failures_are_asked_again(uri):
    store = LedgerStore(uri)
    store.take(IDS[:2], "a")
    store.commit(REQUESTS[:2], [*answer(REQUESTS[:1]), Response(IDS[1], error="timeout")])
    taken = store.take(IDS[:2], "b")
    assert [response.request_id for response in taken.known] == [IDS[0]]
    assert taken.mine == (IDS[1],)


def test_the_first_answer_stays(uri):
    store = LedgerStore(uri)
    store.commit(REQUESTS[:1], answer(REQUESTS[:1]))
    store.commit(REQUESTS[:1], [Response(IDS[0], "other")])
    assert store.fetch(IDS[:1])[0].text == "text 0"


def test_files_that_are_no_ledger(tmp_path):
    path = tmp_path / "notes.db"
    path.write_text("just some text that is long enough to be no database header at all")
    with pytest.raises(LedgerError, match=r"ledger.uri = .*notes.db.*not a database"):
        LedgerStore(f"sqlite:///{path}")
    with pytest.raises(LedgerError, match="can't be opened"):
        LedgerStore("nonsense://x")


def test_a_newer_schema_is_refused(uri, tmp_path):
    LedgerStore(uri).close()
    with sqlite3.connect(tmp_path / "deep/ledger.db") as connection:
        connection.execute("update meta set value = '99'")
    with pytest.raises(LedgerError, match="is of schema 99, this potstill reads 1"):
        LedgerStore(uri)
