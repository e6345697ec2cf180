"""The circuit breaker: stops requests to an endpoint that is down, probes it, and eventually gives up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When the breaker opens and for how long.

    ``failures``: open after this many failures (server errors, timeouts, lost connections) in a row;
    ``silent_s``: or this long after the first of a row of failures and refusals;
    ``first_pause_s``, ``longest_pause_s``: pause between two probes, doubling;
    ``give_up_s``: stop the job after being open this long, or on a longer ``Retry-After``.
    """

    failures: int = 32
    silent_s: float = 90.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 30.0
    give_up_s: float = 900.0


class Breaker:
    """Closed: all requests pass. Open: a single probe passes after each pause, and its success closes the breaker."""

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self.settings = settings or BreakerSettings()
        self._errors: Counter[str] = Counter()  # since the last success
        self._row = 0
        self._row_since: float | None = None
        self._opened_at: float | None = None
        self._pause_s = 0.0
        self._next_probe = 0.0
        self._probed_at: float | None = None  # set while a probe is in flight

    @property
    def is_open(self) -> bool:
        """Whether requests are held back."""
        return self._opened_at is not None

    def record(self, got_through: int, failed: Mapping[str, int], refused: int, now: float) -> None:
        """Record successes, failures by kind, and refusals (429). Refusals open the breaker only through ``silent_s``."""
        if got_through:
            self._errors.clear()
            self._row, self._row_since, self._opened_at, self._probed_at = 0, None, None, None
            return
        if not failed and not refused:
            return
        self._errors.update(failed)
        if refused:
            self._errors["refused for too many requests (429)"] += refused
        self._row += sum(failed.values())
        self._row_since = now if self._row_since is None else self._row_since
        if self._opened_at is None:
            if self._row >= self.settings.failures or now - self._row_since >= self.settings.silent_s:
                self._opened_at, self._pause_s = now, self.settings.first_pause_s
                self._next_probe = now + self._pause_s
        elif self._probed_at is not None:
            self._probed_at = None
            self._pause_s = min(2 * self._pause_s, self.settings.longest_pause_s)
            self._next_probe = now + self._pause_s

    def wait_s(self, now: float) -> float:
        """0 if a request may pass now (only one if ``is_open``), otherwise seconds until one may."""
        if self._opened_at is None:
            return 0.0
        # An unanswered probe may have died with its process, so send another one after the longest pause.
        due = self._next_probe if self._probed_at is None else self._probed_at + self.settings.longest_pause_s
        return max(0.0, due - now)

    def probe(self, now: float) -> None:
        """Record that a probe was sent, if the breaker is open."""
        if self._opened_at is not None:
            self._probed_at = now

    def stop(self, now: float) -> str | None:
        """Why to give up; None unless the breaker has been open for ``give_up_s``."""
        if self._opened_at is None or now - self._opened_at < self.settings.give_up_s:
            return None
        return f"the endpoint has let nothing through for {now - (self._row_since or 0.0):.0f} s; {self.why()}"

    def why(self) -> str:
        """The most common error since the last success, as text."""
        if not self._errors:
            return "no error seen"
        kind, count = self._errors.most_common(1)[0]
        return f"most common error ({count} of {self._errors.total()}): {kind}"
