"""The progress of a stage that asks the teacher: counted by a ``Meter``, read as a ``Progress``, formatted as a line.

    1,204/4,000  212 req/s  18,400 tok/s  $0.41 of ~$1.37  retries 3  ledger 512  ETA 0:13

Rates cover the last minute, so that a silent teacher shows, or the last three batches if these took longer. Answers from
the ledger count as done, but not towards rates.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WINDOW_S = 60.0
SAMPLE_S = 0.5  # batches within this time are one sample
LOG_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """The numbers of a progress line. Rates and ``expected_usd`` are None until the first new answer.

    ``reused``: those of ``done`` that came from the ledger; ``cost_usd``: newly paid; ``note``: extra text, such as the
    state of a batch.
    """

    done: int
    total: int
    reused: int = 0
    retries: int = 0
    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    cost_usd: float = 0.0
    expected_usd: float | None = None
    eta_s: float | None = None
    note: str = ""


class Meter:
    """Counts a stage's answers. ``record`` gets the numbers at most every 10 s, with the elapsed second as step.

    One thread may count; any thread may read.
    """

    def __init__(
        self,
        record: Callable[[Mapping[str, float], int], object] = lambda values, step: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record, self._clock = record, clock
        self._lock = threading.Lock()
        self._start = self._last_log = clock()
        self._total = self._new = self._reused = self._tokens = self._retries = 0
        self._cost_usd = 0.0
        self._note = ""
        # Running totals (second, new answers, their tokens); the window begins at the first.
        self._samples = collections.deque([(self._start, 0, 0)])

    def note(self, text: str) -> None:
        """Set the note."""
        self._note = text

    def expect(self, requests: int) -> None:
        """Add to the expected requests."""
        with self._lock:
            self._total += requests

    def count(self, *, new: int = 0, reused: int = 0, tokens: int = 0, cost_usd: float = 0.0, retries: int = 0) -> None:
        """Count a batch: new answers (with their tokens and dollars) and answers from the ledger."""
        now = self._clock()
        with self._lock:
            self._reused += reused
            self._new += new
            self._tokens += tokens
            self._cost_usd += cost_usd
            self._retries += retries
            if new:
                if len(self._samples) > 1 and now - self._samples[-2][0] < SAMPLE_S:
                    self._samples.pop()
                self._samples.append((now, self._new, self._tokens))
        if now - self._last_log >= LOG_EVERY_S:
            self._last_log = now
            self._record(progress_metrics(self.progress()), int(now - self._start))

    def progress(self) -> Progress:
        """The present numbers."""
        now = self._clock()
        with self._lock:
            done = self._new + self._reused
            if not self._new:
                return Progress(done, self._total, self._reused, self._retries, note=self._note)
            while len(self._samples) > 3 and self._samples[1][0] < now - WINDOW_S:
                self._samples.popleft()
            begin, new, tokens = self._samples[0]
            elapsed = max(now - begin, 1e-3)
            rate, left = (self._new - new) / elapsed, self._total - done
            return Progress(
                done,
                self._total,
                self._reused,
                self._retries,
                rate,
                (self._tokens - tokens) / elapsed,
                self._cost_usd,
                self._cost_usd * (1 + left / self._new),
                left / rate if rate > 0 and left else None,
                self._note,
            )


def format_progress(progress: Progress, width: int | None = None) -> str:
    """One line without zeros and unknowns. Drops the least important parts to fit ``width`` characters."""
    parts = {"done": f"{progress.done:,}/{progress.total:,}"}
    if progress.requests_per_s is not None:
        parts["requests"] = f"{_rate(progress.requests_per_s)} req/s"
    if progress.tokens_per_s:
        parts["tokens"] = f"{_rate(progress.tokens_per_s)} tok/s"
    if progress.cost_usd:
        expected = "" if progress.expected_usd is None else f" of ~{format_usd(progress.expected_usd)}"
        parts["cost"] = format_usd(progress.cost_usd) + expected
    if progress.retries:
        parts["retries"] = f"retries {progress.retries:,}"
    if progress.reused:
        parts["ledger"] = f"ledger {progress.reused:,}"
    if progress.eta_s is not None:
        parts["eta"] = f"ETA {format_duration(progress.eta_s)}"
    if progress.note:
        parts["note"] = progress.note
    for least in ("tokens", "ledger", "requests", "retries", "cost", "eta"):
        if width is None or len("  ".join(parts.values())) <= width:
            break
        parts.pop(least, None)
    return "  ".join(parts.values())


def progress_metrics(progress: Progress) -> dict[str, float]:
    """The numbers under their MLflow names."""
    return {
        "progress/requests": progress.done,
        "progress/requests_reused": progress.reused,
        "progress/requests_per_s": progress.requests_per_s or 0.0,
        "progress/tokens_per_s": progress.tokens_per_s or 0.0,
        "progress/cost_usd": progress.cost_usd,
        "progress/retries": progress.retries,
    }


def format_usd(dollars: float) -> str:
    """Dollars with cents, or two significant digits below ten cents: ``$1,204.50``, ``$0.41``, ``$0.0037``."""
    if 0 < dollars < 0.0001:
        return "<$0.0001"
    if 0 < dollars < 0.0995:
        return f"${dollars:.3f}" if dollars >= 0.00995 else f"${dollars:.4f}"
    return f"${dollars:,.2f}"


def format_duration(seconds: float) -> str:
    """Seconds as ``0:13``, ``12:05`` or ``3:00:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"
