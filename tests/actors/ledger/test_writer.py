"""Group commit: durable before it is acknowledged, batched where possible, errors isolated to their caller."""

import threading
import time
from concurrent.futures import wait

import pytest
import sqlalchemy as sa

from actors.ledger.writer import MOST_CALLS, GroupWriter
from potstill.errors import LedgerError

FULL = "ledger.uri = 'x': disk is full"


class Disk:
    """Commits when its transaction ends, which needs the gate to be open."""

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
    """The thread is busy with one call, so that the next ones wait."""
    first = writer.submit(["first"])
    until = time.monotonic() + 120
    while not writer._waiting.empty() and time.monotonic() < until:
        time.sleep(0.001)
    return first


def test_calls_that_arrive_during_a_commit_share_the_next(disk, writer):
    first = wait_until_at_work(disk, writer)
    others = [writer.submit([i, i + 0.5]) for i in range(50)]
    assert not any(future.done() for future in (first, *others))  # nothing is acknowledged before it is committed
    disk.gate.set()
    assert [future.result(120) for future in others] == [[f"done {i}", f"done {i + 0.5}"] for i in range(50)]
    assert disk.groups[0] == ["first"]
    assert len(disk.groups) == 2
    assert disk.kept[1:] == [call for i in range(50) for call in (i, i + 0.5)]


def test_transactions_are_bounded(disk, writer):
    wait_until_at_work(disk, writer)
    futures = [writer.submit([i]) for i in range(2 * MOST_CALLS)]
    disk.gate.set()
    wait(futures, 120)
    assert [len(group) for group in disk.groups] == [1, MOST_CALLS, MOST_CALLS]


def test_an_invalid_call_fails_only_its_own_caller(disk, writer):
    wait_until_at_work(disk, writer)
    good, bad, full, late = (writer.submit([name]) for name in ("good", "nonsense", "full", "late"))
    disk.gate.set()
    assert good.result(120) == ["done good"]
    assert late.result(120) == ["done late"]
    for future, said in ((bad, "the ledger could not run a call: ValueError: nonsense"), (full, FULL)):
        (error,) = future.result(120)
        assert isinstance(error, LedgerError)
        assert str(error) == said
    mixed = writer.submit(["fine", "nonsense"]).result(120)  # nor does it fail valid rows of the same call
    assert mixed[0] == "done fine"
    assert isinstance(mixed[1], LedgerError)
    assert disk.kept == ["first", "good", "late", "fine"]
    assert writer.submit(["again"]).result(120) == ["done again"]  # the thread lives on


def test_a_database_error_reaches_all_callers_at_once(disk, writer):
    """Retrying each call alone would wait a minute for the lock each time."""
    wait_until_at_work(disk, writer)
    futures = [writer.submit([name, "locked"]) for name in range(20)]
    disk.gate.set()
    for future in futures:
        assert [str(error) for error in future.result(120)] == ["locked", "locked"]
    assert disk.tries == 1


def test_closing_commits_pending_calls(disk):
    writer = GroupWriter(disk.write)
    futures = [writer.submit([i]) for i in range(20)]
    disk.gate.set()
    writer.close()
    assert all(future.done() for future in futures)
    assert disk.kept == list(range(20))
