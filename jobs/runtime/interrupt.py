"""Ctrl-C and SIGTERM (``ray job stop``): the job ends within ``DEADLINE_S`` and leaves no process behind.

The first signal raises ``KeyboardInterrupt``, so that stages unwind: no request is sent any more, those on their way
to an endpoint are waited for (``actors.teachers.pool.INTERRUPTED_S``), claims in the ledger are released, the MLflow run is
marked as killed. Whatever of that takes longer than ``DEADLINE_S`` is given up. Every answer was committed when it came;
what is lost are requests that the endpoint needed longer for, which it may charge all the same. A signal is noticed even
while a library has put its own handler in place of ours (Ray Train and Tune do).
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
LINE = "stopped; everything the teacher answered is in the ledger, the same command goes on from there"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: int | None = None
_unwinding = False
_ending = threading.Lock()
_family: set[psutil.Process] = set()


def received() -> bool:
    """Whether the job was told to stop."""
    return _received is not None


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within it, SIGINT and SIGTERM end the process: exit code 130 or 143, one line on standard error.

    For the main thread of a command; leaving it without a signal puts everything back.
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
        writer.close()  # which ends the watching thread


def _children() -> set[psutil.Process]:
    """Every process that this one started, directly or not, and that has not lost its parent since."""
    return set(psutil.Process().children(recursive=True))


def _unwind(number: int, _frame: FrameType | None) -> None:
    global _received, _unwinding
    _received = _received or number
    if not _unwinding:  # a second signal must not break off the clean-up after the first
        _unwinding = True
        raise KeyboardInterrupt


def _watch(reader: socket.socket) -> None:
    """Python's C code writes the number of every signal here, whoever handles it."""
    global _received
    with reader:
        while numbers := reader.recv(1):
            if numbers[0] in _SIGNALS:
                break
        else:
            return
    _received = _received or numbers[0]
    # Listed at once: when the clean-up has ended a parent, its children are nobody's descendants.
    _family.update(_children())
    threading.Event().wait(DEADLINE_S)
    _end()


def _end() -> NoReturn:
    """Not ``sys.exit``: the interpreter's own clean-up joins threads of Ray, which can take many seconds."""
    with _ending:
        family = _family | _children()
        for child in family:
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                child.kill()
        psutil.wait_procs(family, timeout=1.0)
        print(f"\n{LINE}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(128 + (_received or signal.SIGINT))
