"""How far the batches of a teacher are and what holds its requests back, looked up now and then for the progress line."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from actors.teachers.batch_queue import BatchProgress
from actors.teachers.pool import TeacherPool
from jobs.runtime.progress import Meter

EVERY_S = 2.0


@contextlib.contextmanager
def watched(pool: TeacherPool, meter: Meter, every_s: float = EVERY_S) -> Iterator[None]:
    """Within it the meter's note says how far batches are, where there are any, or what all requests wait for."""
    left = threading.Event()

    def watch() -> None:
        while not left.wait(every_s):
            progress = pool.batch_progress()
            note = format_batches(progress) if progress else pool.held_because() or ""
            if not left.is_set():
                meter.note(note)

    thread = threading.Thread(target=watch, name="batches", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        meter.note("")


def format_batches(progress: BatchProgress) -> str:
    """``2 batches 1,204/4,000 (in_progress)``."""
    word = "batch" if progress.batches == 1 else "batches"
    return f"{progress.batches} {word} {progress.done:,}/{progress.total:,} ({', '.join(progress.states)})"
