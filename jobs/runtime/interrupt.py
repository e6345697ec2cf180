"""Ctrl-C and SIGTERM (``ray job stop``): the job ends within ``DEADLINE_S`` and leaves no process behind.

The first signal raises ``KeyboardInterrupt``, so that stages unwind: no further request is sent, requests in flight are
awaited (``actors.teachers.pool.INTERRUPTED_S``), claims in the ledger are released, the MLflow run is marked as killed.
After ``DEADLINE_S`` the process ends regardless. Every received answer is in the ledger; only requests that the endpoint
answers later are lost, and it may charge for them. Signals are noticed even if a library has replaced our handler, as
Ray Train and Tune do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import psutil

DEADLINE_S = 3.0
LINE = "stopped; all answers of the teacher are in the ledger; run the same command again to resume"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: int | None = None
_unwinding = False
_ending = threading.Lock()
_family: set[psutil.Process] = set()


def received() -> bool:
    """Whether the job has received a stop signal."""
    return _received is not None


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Inside the block, SIGINT and SIGTERM end the process: exit code 130 or 143, one line on standard error.

    For the main thread of a command. Without a signal, the former handlers are restored at the end.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, _unwind) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="interrupt", daemon=True).start()
    try:
        yield
    finally:
        if received():
            _end()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # ends the watching thread


def _children() -> set[psutil.Process]:
    """All live descendants of this process."""
    return set(psutil.Process().children(recursive=True))


def _unwind(number: int, _frame: FrameType | None) -> None:
    global _received, _unwinding
    _received = _received or number
    if not _unwinding:  # a second signal must not interrupt the clean-up
        _unwinding = True
        raise KeyboardInterrupt


def _watch(reader: socket.socket) -> None:
    """Read the number of each signal, which Python's C code writes regardless of the handler."""
    global _received
    with reader:
        while numbers := reader.recv(1):
            if numbers[0] in _SIGNALS:
                break
        else:
            return
    _received = _received or numbers[0]
    # List them now: once the clean-up has ended a parent, its children are no longer our descendants.
    _family.update(_children())
    threading.Event().wait(DEADLINE_S)
    _end()


def _end() -> NoReturn:
    """End the process. ``sys.exit`` would join Ray's threads, which can take many seconds."""
    with _ending:
        family = _family | _children()
        for child in family:
            with contextlib.suppress(psutil.Error):  # it has already ended
                child.kill()
        psutil.wait_procs(family, timeout=1.0)
        print(f"\n{LINE}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(128 + (_received or signal.SIGINT))
