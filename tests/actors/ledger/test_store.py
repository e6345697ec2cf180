"""The ledger's guarantees on either database."""

import multiprocessing
import random
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import sqlalchemy as sa

from actors.ledger.store import LedgerStore
from actors.ledger.tables import to_rows
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


def answer(requests, **changes):
    return [
        Response(r.request_id, f"text {r.occurrence}", "stop", (-0.5, None), 0.25, 5, 7, 0.01, 0.2, 1.5, **changes)
        for r in requests
    ]


def test_committed_answers_persist(uri):
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


def test_two_owners_never_ask_the_same_request(uri):
    one, two = LedgerStore(uri), LedgerStore(uri)
    first = one.take(IDS[:600], "one")
    second = two.take(IDS, "two")
    assert set(first.mine) == set(second.others) == set(IDS[:600])
    assert set(second.mine) == set(IDS[600:])
    assert set(one.take(IDS[:5], "one").mine) == set(IDS[:5])  # an owner keeps its own claims


def test_leases_expire(uri):
    store = LedgerStore(uri)
    store.take(IDS[:3], "alive")
    store.take(IDS[3:6], "dead", 0.05)
    time.sleep(0.06)
    taken = store.take(IDS[:6], "b")
    assert (set(taken.others), set(taken.mine)) == (set(IDS[:3]), set(IDS[3:6]))


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


def test_an_unsafe_text_is_stored_as_readers_see_it(uri):
    store = LedgerStore(uri)
    response = Response(IDS[0], "a\0b\ud800c ünd 😀 \u2028", choice_logprobs=(float("-inf"), None))
    assert response.text == "a\ufffdb\ufffdc ünd 😀 \u2028"
    store.commit(REQUESTS[:1], [response])
    assert store.fetch(IDS[:1]) == [response]


def test_more_ids_than_the_parameters_of_a_statement(uri):
    store = LedgerStore(uri)
    many = [f"unknown {i}" for i in range(70_000)]
    store.commit(REQUESTS[:10], answer(REQUESTS[:10]))
    assert store.count_known([*many, *IDS[:10], *IDS[:10]]) == 10
    assert len(store.take([*many, *IDS[:10]], "a").mine) == 70_000
    store.release("a")


def test_calls_that_share_a_transaction_are_seen_in_order(uri):
    store = LedgerStore(uri)
    rows, ids = to_rows(REQUESTS[:2], answer(REQUESTS[:2]))
    store.take(IDS[:2], "a")
    # Commits run first, so that takes in the same transaction get the answers. Each take sees those before it.
    taken = store.write([("take", IDS[:4], "b"), ("commit", rows, ids), ("take", IDS[:4], "c"), ("release", "b")])
    assert taken[1] is None
    assert [len(part) for part in taken[0]] == [2, 2, 0]
    assert [len(part) for part in taken[2]] == [2, 0, 2]
    assert store.take(IDS[:4], "d").mine == tuple(IDS[2:4])


def test_a_transaction_that_fails_leaves_nothing_behind(uri):
    store = LedgerStore(uri)
    rows, ids = to_rows(REQUESTS[:2], answer(REQUESTS[:2]))
    broken = (ids[1], *(None for _ in rows[1][1:]))
    with pytest.raises(LedgerError, match="can't be written"):
        store.write([("take", IDS[2:4], "a"), ("commit", [rows[0], broken], ids)])
    assert store.count_known(IDS) == 0
    assert set(store.take(IDS[:4], "b").mine) == set(IDS[:4])


def ask_all(uri, owner, seed, start, paid):
    """Ask everything in a separate process and record what it had to pay for."""
    order = random.Random(seed).sample(IDS, len(IDS))
    by_id = {request.request_id: request for request in REQUESTS}
    start.wait(300)
    store = LedgerStore(uri)
    store.take(order[:40], owner)
    start.wait(300)  # from here on each process pays for something
    for begin in range(0, len(order), 40):
        pending = order[begin : begin + 40]
        while pending:
            taken = store.take(pending, owner)
            mine = [by_id[name] for name in taken.mine]
            with open(paid, "a") as file:
                file.writelines(f"{request.request_id}\n" for request in mine)
            store.commit(mine, answer(mine))
            pending = list(taken.others)
            if pending and not mine:
                time.sleep(0.002)
    store.close()


@pytest.mark.slow
def test_concurrent_processes_pay_once_for_the_same_requests(uri, tmp_path):
    """They also create the ledger concurrently, and meet each other's rows in a different order."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    papers = [tmp_path / f"paid-{number}" for number in range(3)]
    processes = [
        context.Process(target=ask_all, args=(uri, f"job-{number}", number, start, paper))
        for number, paper in enumerate(papers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    paid = [paper.read_text().split() for paper in papers]
    assert sorted(name for names in paid for name in names) == sorted(IDS)
    assert sum(bool(names) for names in paid) > 1
    store = LedgerStore(uri)
    assert store.count_known(IDS) == len(IDS)
    assert not store.take(IDS, "late").mine
    store.close()


def test_a_take_waits_for_an_answer_that_is_being_committed(uri):
    """Otherwise it would see neither answer nor claim, and pay again."""
    one, two = LedgerStore(uri), LedgerStore(uri)
    rows, ids = to_rows(REQUESTS[:2], answer(REQUESTS[:2]))
    with ThreadPoolExecutor(1) as other:
        with one.database.write() as connection:
            one._commit(connection, rows, ids)
            looking = other.submit(two.take, IDS[:3], "two")
            wait([looking], 0.5)
            assert not looking.done()
        taken = looking.result(60)
    assert {response.request_id for response in taken.known} == set(IDS[:2])
    assert taken.mine == (IDS[2],)
    one.close()
    two.close()


def test_a_newer_schema_is_refused(uri):
    store = LedgerStore(uri)
    with store.database.write() as connection:
        connection.execute(sa.text("update meta set value = '99'"))
    store.close()
    for create in (True, False):
        with pytest.raises(
            LedgerError, match="has schema 99, but this potstill reads schema 1; use the potstill version that wrote it"
        ):
            LedgerStore(uri, create)
