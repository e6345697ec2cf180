"""Group commit: calls that arrive while one transaction runs share the next.

A durable commit costs one wait for the disk, regardless of its size. One thread writes, and each caller waits for the
transaction of its call: one caller gets a transaction per call, a hundred share one among all that arrive during it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import sqlalchemy as sa

from potstill.errors import LedgerError

MOST_CALLS = 1000  # per transaction: other processes wait for its end

Batch = tuple[list[Any], "Future[list[Any]]"]


class GroupWriter:
    """Runs calls in its own thread, as many together as are waiting. ``write`` returns a result per call."""

    def __init__(self, write: Callable[[Sequence[Any]], list[Any]]) -> None:
        self._write = write
        self._waiting: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, calls: Sequence[Any]) -> Future[list[Any]]:
        """The result of each call once it is durable, or its ``LedgerError``."""
        future: Future[list[Any]] = Future()
        self._waiting.put((list(calls), future))
        return future

    def close(self) -> None:
        """Run the waiting calls, then end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            group, ends = [first], False
            while not ends and sum(len(calls) for calls, _ in group) < MOST_CALLS:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                ends = more is None
                if more is not None:
                    group.append(more)
            self._carry_out(group)
            if ends:
                return

    def _carry_out(self, group: list[Batch]) -> None:
        calls = [call for batch, _ in group for call in batch]
        try:
            results = self._write(calls)
        except Exception as error:  # handed to the callers, or they would wait for ever
            if len(calls) == 1 or isinstance(error.__cause__, sa.exc.OperationalError):
                # A lock, a full disk, a lost connection: not the fault of one call.
                results = [_as_ledger_error(error)] * len(calls)
            else:
                # The transaction was rolled back; find the call that failed.
                results = [self._alone(call) for call in calls]
        start = 0
        for batch, future in group:
            future.set_result(results[start : start + len(batch)])
            start += len(batch)

    def _alone(self, call: Any) -> Any:
        try:
            return self._write([call])[0]
        except Exception as error:
            return _as_ledger_error(error)


def _as_ledger_error(error: Exception) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    wrapped = LedgerError(f"the ledger could not run a call: {type(error).__name__}: {error}".splitlines()[0])
    wrapped.__cause__ = error
    return wrapped
