"""A holder's side of the limiter: its grants, its use of them and its answers. No clock."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from potstill.limits.headers import RateHeaders
from potstill.limits.pacer import Grant, HolderReport
from potstill.limits.rate import AnswerCounts

AHEAD_S = 0.2  # request permissions for this much sending in advance
MOST_AHEAD = 4096
LATE_S = 0.02  # timers are late: this much of the spacing may be caught up
SPARE_PLACES = 8  # extra concurrency, so that a new request can start at once


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a request: ``ok``; ``refused`` (429); ``failed`` (server error, timeout, lost connection); ``rejected``
    (a final error of this request only); ``abandoned`` (cancelled, result unknown).

    ``tokens`` and ``usd`` are the actual usage; ``usd=None`` if unknown, which counts as the worst case. ``error`` is the
    kind of failure, from a small set since kinds are counted.
    """

    kind: Literal["ok", "refused", "failed", "rejected", "abandoned"] = "ok"
    tokens: float = 0.0
    usd: float | None = 0.0
    error: str = ""
    retry_after_s: float | None = None
    rates: RateHeaders | None = None


class Wallet:
    """A holder's permissions and its account."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        self.requests = 0  # granted, not sent
        self.share = 0
        self.in_flight = 0
        self.next_at = -math.inf  # earliest time of the next request
        self._apart_s = 0.0  # spacing of requests
        self.held = False  # nothing may be sent, not even granted requests
        self.tolerant = False  # a refusal does not set ``held``
        self._usd = self._in_flight_usd = self._spent_usd = 0.0
        self._tokens = 0.0
        self._taken = 0
        self._per_s = 0.0
        self._reported_at: float | None = None
        self._tokens_each = self._usd_each = 0.0
        self._peak = 0
        self._clear()

    def _clear(self) -> None:
        self._succeeded = self._refused = self._rejected = 0
        self._latency = 0.0
        self._success_at = self._refusal_at = -math.inf
        self._retry_at: float | None = None
        self._failed: Counter[str] = Counter()
        self._rates: RateHeaders | None = None
        self._unreported = False

    @property
    def has_news(self) -> bool:
        """Whether there are answers since the last report."""
        return self._unreported

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to account for."""
        return not (self.requests or self.in_flight or self._unreported or self.share)

    def lacks(self, usd: float) -> bool:
        """Whether a request of ``usd`` needs a new grant, rather than a free place."""
        return self.held or self.requests < 1 or usd > self._usd * (1 + 1e-12)

    def take(self, tokens: float, usd: float, now: float) -> bool:
        """Use a permission for a request sent now. Returns whether it may be sent."""
        if self.in_flight >= self.share or now < self.next_at or self.lacks(usd):
            return False
        if self._apart_s:
            self.next_at = max(self.next_at, now - LATE_S) + self._apart_s
        self.requests -= 1
        self._usd = max(0.0, self._usd - usd)
        self._tokens -= tokens
        self._in_flight_usd += usd
        self._taken += 1
        self.in_flight += 1
        if self.in_flight > self._peak:
            self._peak = self.in_flight
        return True

    def finish(self, outcome: Outcome, tokens: float, usd: float, sent_at: float, now: float) -> None:
        """Account for a finished request that was taken with ``tokens`` and ``usd``."""
        self.in_flight -= 1
        self._in_flight_usd = self._in_flight_usd - usd if self.in_flight else 0.0
        self._spent_usd += usd if outcome.usd is None else outcome.usd
        if outcome.kind != "abandoned":
            self._tokens -= outcome.tokens - tokens
        self._unreported = True
        if outcome.kind == "ok":
            self._succeeded += 1
            self._latency += now - sent_at
            self._success_at = max(self._success_at, sent_at)
        elif outcome.kind == "refused":
            self._refused += 1
            self._refusal_at = max(self._refusal_at, sent_at)
            if outcome.retry_after_s is not None:
                self._retry_at = max(self._retry_at or 0.0, now + outcome.retry_after_s)
            self.held = self.held or not self.tolerant  # until the limiter knows of it
        elif outcome.kind == "failed":
            self._failed[outcome.error] += 1
        elif outcome.kind == "rejected":
            self._rejected += 1
        if outcome.rates is not None:
            self._rates = outcome.rates

    def ahead(self) -> int:
        """Number of unsent permissions to keep in stock."""
        return min(MOST_AHEAD, math.ceil(self._per_s * AHEAD_S))

    def close(self, now: float) -> HolderReport:
        """The last report: requests nothing and returns everything except requests in flight."""
        self.held, self._taken, self._peak = True, 0, self.in_flight
        return self.report(0, 0.0, 0.0, 0.0, now)

    def report(self, waiting: int, usd_next: float, usd_most: float, tokens_most: float, now: float) -> HolderReport:
        """Report everything since the last report and the demand of ``waiting`` requests.

        ``usd_next``: worst-case cost of the first of them; ``usd_most``, ``tokens_most``: upper bounds for all.
        """
        if self._reported_at is not None and now > self._reported_at:
            elapsed = now - self._reported_at
            share = min(1.0, elapsed / AHEAD_S)
            self._per_s += share * (self._taken / elapsed - self._per_s)
        idle = not waiting and not self._taken
        self._reported_at, self._taken = now, 0
        if waiting:
            self._usd_each, self._tokens_each = usd_most, tokens_most
        unused = 0
        if self.held or idle or (waiting and self.lacks(usd_next)):
            unused, self.requests, self._usd = self.requests, 0, 0.0
        self._usd = min(self._usd, self.requests * self._usd_each)
        tokens_over = self.requests * self._tokens_each - self._tokens
        self._tokens += tokens_over
        demand = max(self._peak, self.in_flight) + waiting
        if not demand:
            self.share = 0  # a demand of 0 gives up the share
        useful = min(waiting, max(self.share - self.in_flight, SPARE_PLACES))
        wanted = 0 if idle else max(0, useful + self.ahead() - self.requests)
        report = HolderReport(
            self.holder,
            self._spent_usd,
            self._usd + self._in_flight_usd,
            self.requests + self.in_flight,
            self.in_flight,
            demand + SPARE_PLACES if demand else 0,
            unused,
            tokens_over,
            AnswerCounts(
                self._succeeded,
                max(0.0, now - self._success_at) if self._succeeded else 0.0,
                self._latency / max(1, self._succeeded),
                self._refused,
                max(0.0, now - self._refusal_at) if self._refused else 0.0,
                None if self._retry_at is None else max(0.0, self._retry_at - now),
                self._rates,
            ),
            dict(self._failed),
            self._rejected,
            wanted,
            self._tokens_each,
            self._usd_each,
            usd_next if waiting else None,
        )
        self._peak = self.in_flight
        self._clear()
        return report

    def receive(self, grant: Grant) -> None:
        """Add a grant. After a refusal in the meantime, hold it until the next report."""
        self.requests += grant.requests
        self._usd += grant.usd
        if grant.requests:
            self._apart_s = grant.spread_s / self.requests
            self.next_at = self.next_at if self._apart_s else -math.inf
        self._tokens += grant.tokens
        self.share = grant.share
        self.tolerant = grant.tolerant
        self.held = grant.hold or (self._refused > 0 and not grant.tolerant)
