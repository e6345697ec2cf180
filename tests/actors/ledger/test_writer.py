"""Group commit: durable before it is told, together where possible, one caller's fault is its own."""

import threading
import time
from concurrent.futures import wait

import pytest
import sqlalchemy as sa

from actors.ledger.writer import MOST_CALLS, GroupWriter
from potstill.errors import LedgerError

FULL = "ledger.uri = 'x': disk is full"


class Disk:
    """Keeps what is written when its transaction ends, which it does only when the gate is open."""

    def __init__(self):
        self.gate = threading.Event()
        self.kept, self.groups = [], []
        self.tries = 0

    def write(self, calls):
        assert self.gate.wait(120)
        if any(call == "nonsense" for call in calls):
            raise ValueError("nonsense\nand more of it")
        if "full" in calls:
            raise LedgerError(FULL)
        if "locked" in calls:
            self.tries += 1
            raise LedgerError("locked") from sa.exc.OperationalError("", {}, Exception())
        self.groups.append(list(calls))
        self.kept += calls
        return [f"done {call}" for call in calls]


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def writer(disk):
    writer = GroupWriter(disk.write)
    yield writer
    disk.gate.set()
    writer.close()


def wait_until_at_work(disk, writer):
    """One call is in the thread's hands, so that the next ones have to wait for it."""
    first = writer.submit(["first"])
    until = time.monotonic() + 120
    while not writer._waiting.empty() and time.monotonic() < until:
        time.sleep(0.001)
    return first


def test_what_arrives_during_a_commit_shares_the_next(disk, writer):
    first = wait_until_at_work(disk, writer)
    others = [writer.submit([i, i + 0.5]) for i in range(50)]
    assert not any(future.done() for future in (first, *others))  # nothing is promised before it is kept
    disk.gate.set()
    assert [future.result(120) for future in others] == [[f"done {i}", f"done {i + 0.5}"] for i in range(50)]
    assert disk.groups[0] == ["first"]
    assert len(disk.groups) == 2
    assert disk.kept[1:] == [call for i in range(50) for call in (i, i + 0.5)]


def test_one_transaction_does_not_grow_without_end(disk, writer):
    wait_until_at_work(disk, writer)
    futures = [writer.submit([i]) for i in range(2 * MOST_CALLS)]
    disk.gate.set()
    wait(futures, 120)
    assert [len(group) for group in disk.groups] == [1, MOST_CALLS, MOST_CALLS]


def test_one_callers_nonsense_is_not_the_others_fault(disk, writer):
    wait_until_at_work(disk, writer)
    good, bad, full, late = (writer.submit([name]) for name in ("good", "nonsense", "full", "late"))
    disk.gate.set()
    assert good.result(120) == ["done good"]
    assert late.result(120) == ["done late"]
    for future, said in ((bad, "the ledger could not run a call: ValueError: nonsense"), (full, FULL)):
        (error,) = future.result(120)
        assert isinstance(error, LedgerError)
        assert str(error) == said
    mixed = writer.submit(["fine", "nonsense"]).result(120)  # nor that of what travelled with it
    assert mixed[0] == "done fine"
    assert isinstance(mixed[1], LedgerError)
    assert disk.kept == ["first", "good", "late", "fine"]
    assert writer.submit(["again"]).result(120) == ["done again"]  # the thread lives on


def test_what_is_wrong_with_the_database_is_told_to_all_at_once(disk, writer):
    """Trying each call alone would wait a minute for the lock each time."""
    wait_until_at_work(disk, writer)
    futures = [writer.submit([name, "locked"]) for name in range(20)]
    disk.gate.set()
    for future in futures:
        assert [str(error) for error in future.result(120)] == ["locked", "locked"]
    assert disk.tries == 1


def test_closing_carries_out_what_waits(disk):
    writer = GroupWriter(disk.write)
    futures = [writer.submit([i]) for i in range(20)]
    disk.gate.set()
    writer.close()
    assert all(future.done() for future in futures)
    assert disk.kept == list(range(20))
