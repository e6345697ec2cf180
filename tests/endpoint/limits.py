"""Providers' rate limits: token buckets that fill continuously, and the headers that announce them.

A bucket holds one burst (``burst_s`` seconds of the limit) and fills at the limit, so over any time t
no more than ``limit * (t + burst_s) / 60`` gets through.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from tests.endpoint.behaviour import Script

_FULL_S = 1e-9  # tolerance for rounding of a level


class Bucket:
    """A token bucket. ``limit_per_minute`` in units a minute; at least one unit fits. Times are in seconds."""

    def __init__(self, limit_per_minute: float, burst_s: float, now: float) -> None:
        self.limit_per_minute = limit_per_minute
        self.rate = limit_per_minute / 60
        self.capacity = max(1.0, self.rate * burst_s)
        self.level = self.capacity
        self._updated = now

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` fits; 0: now. More than the bucket holds fits when it is full."""
        self._fill(now)
        missing = min(amount, self.capacity) - self.level
        return missing / self.rate if missing > _FULL_S * self.capacity else 0.0

    def take(self, amount: float) -> None:
        """Take what ``wait_s`` said would fit; a large amount leaves a debt."""
        self.level -= amount

    def reset_s(self, now: float) -> float:
        """Seconds until it is full."""
        self._fill(now)
        return (self.capacity - self.level) / self.rate

    def _fill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self._updated) * self.rate)
        self._updated = now


@dataclass(frozen=True, slots=True)
class Excess:
    """A refused request: the limit it exceeds, and the wait before a retry."""

    kind: str  # "requests" or "tokens"
    limit: float
    asked: float
    wait_s: float


class Limits:
    """The requests and tokens a minute of a script. ``clock`` counts seconds."""

    def __init__(self, script: Script, clock: Callable[[], float] = time.monotonic) -> None:
        self.script = script  # may be exchanged for one of the same limits
        self._clock = clock
        wanted = (("requests", script.requests_per_minute), ("tokens", script.tokens_per_minute))
        self._buckets = {name: Bucket(limit, script.burst_s, clock()) for name, limit in wanted if limit is not None}

    def admit(self, tokens: int) -> Excess | None:
        """Admit and count a request, or return the limit it exceeds; a refused request costs nothing."""
        if not self._buckets:
            return None
        now = self._clock()
        amounts = {"requests": 1, "tokens": tokens}
        waits = {name: bucket.wait_s(amounts[name], now) for name, bucket in self._buckets.items()}
        kind = max(waits, key=waits.__getitem__)
        if waits[kind] > 0:
            return Excess(kind, self._buckets[kind].limit_per_minute, amounts[kind], waits[kind])
        for name, bucket in self._buckets.items():
            bucket.take(amounts[name])
        return None

    def headers(self) -> dict[str, str]:
        """``x-ratelimit-*`` as of now; empty if the script announces none."""
        if not self._buckets or self.script.limit_headers != "all":
            return {}
        now = self._clock()
        found = {}
        for name, bucket in self._buckets.items():
            found[f"x-ratelimit-limit-{name}"] = str(int(bucket.limit_per_minute))
            reset = format_duration(bucket.reset_s(now))  # which fills the bucket first
            found[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level + _FULL_S)))
            found[f"x-ratelimit-reset-{name}"] = reset
        return found


def retry_headers(script: Script, wait_s: float | None) -> dict[str, str]:
    """``Retry-After`` in whole seconds or as a date, and OpenAI's ``retry-after-ms``; empty without a wait."""
    if wait_s is None or script.limit_headers == "none":
        return {}
    if script.retry_after_form == "date":
        return {"Retry-After": formatdate(math.ceil(time.time() + wait_s), usegmt=True)}
    return {"Retry-After": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def format_duration(seconds: float) -> str:
    """Seconds as OpenAI's reset headers write them: "0s", "120ms", "7.66s", "6m0s", "1h2m3s"."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
