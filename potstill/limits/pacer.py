"""The limiter's decisions: how many requests each process may send now. No clock, no cluster.

Every method takes ``now``, monotonic seconds. Processes that send requests (holders) exchange a ``HolderReport`` for a
``Grant`` several times a second, using ``potstill.limits.wallet``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from potstill.limits.accounts import LEASE_S, Accounts
from potstill.limits.breaker import Breaker, BreakerSettings
from potstill.limits.rate import AnswerCounts, RateControl
from potstill.limits.shares import Shares

MOST_AT_ONCE = 8192  # maximum requests per grant
OFTEN_S = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
    """The endpoint's limits and the user's budget, for the whole cluster.

    ``concurrency``: maximum requests in flight. ``requests_per_minute``, ``tokens_per_minute``: None if unknown; they are
    then read from headers or found by trial. ``budget_usd``: None for no budget.
    """

    concurrency: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    budget_usd: float | None = None


@dataclass(frozen=True, slots=True)
class HolderReport:
    """A holder's whole account, its answers since the last report, and its demand.

    ``spent_usd``: since its start; ``held_*``: granted, unsent or in flight; ``in_flight``: only the latter; ``demand``:
    requests it could have in flight. ``unused``: requests returned unsent; ``tokens_over``: tokens used beyond the grant
    (negative: fewer). ``failed``: counts by kind; ``rejected``: final errors of single requests, which say nothing about
    the endpoint's health. ``usd_next``: worst-case cost of the first waiting request; ``usd_each``: of any wanted.
    """

    holder: str
    spent_usd: float = 0.0
    held_usd: float = 0.0
    held_requests: int = 0
    in_flight: int = 0
    demand: int = 0
    unused: int = 0
    tokens_over: float = 0.0
    answers: AnswerCounts = field(default_factory=AnswerCounts)
    failed: Mapping[str, int] = field(default_factory=dict)
    rejected: int = 0
    wanted: int = 0
    tokens_each: float = 0.0
    usd_each: float = 0.0
    usd_next: float | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission for ``requests`` more, with ``tokens`` and reserved ``usd`` for all of them.

    Spread them evenly over ``spread_s``. ``wait_s``: time until the next report. ``hold``: send nothing, not even earlier
    grants, and return them. ``share``: maximum requests in flight. ``tolerant``: continue after a refusal, since some are
    expected. ``stop``: why nothing will be granted any more.
    """

    requests: int = 0
    tokens: float = 0.0
    usd: float = 0.0
    wait_s: float = 0.0
    spread_s: float = 0.0
    hold: bool = False
    share: int = 0
    tolerant: bool = False
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class PacerState:
    """State for display. ``held_because``: why requests are held back; None if they are not."""

    succeeded: int
    refused: int
    failed: int
    spent_usd: float
    reserved_usd: float
    requests_per_s: float
    held_because: str | None


class Pacer:
    """Decides for all processes that send requests to one endpoint."""

    def __init__(self, limits: Limits, breaker: BreakerSettings | None = None, lease_s: float = LEASE_S) -> None:
        self._settings = breaker or BreakerSettings()
        self._rates = RateControl(limits.requests_per_minute, limits.tokens_per_minute)
        self._breaker = Breaker(self._settings)
        self._accounts = Accounts(limits.budget_usd, lease_s)
        self._shares = Shares(limits.concurrency)
        self._stop: str | None = None
        self._succeeded = self._refused = self._failed = 0

    def exchange(self, report: HolderReport, now: float) -> Grant:
        """Settle a report and grant what it wants."""
        self.settle(report, now)
        return self.grant(report, now)

    def settle(self, report: HolderReport, now: float) -> None:
        """Record a report's spending, returned permissions and answers."""
        for gone in self._accounts.lose(now):
            self._shares.drop(gone)
        self._accounts.report(report.holder, report.spent_usd, report.held_usd, report.held_requests, now)
        self._rates.take(-report.unused, report.tokens_over, now)
        answers, failures = report.answers, sum(report.failed.values())
        self._succeeded += answers.succeeded
        self._refused += answers.refused
        self._failed += failures
        self._breaker.record(answers.succeeded + report.rejected, report.failed, answers.refused, now)
        self._rates.settle(answers, now)

    def grant(self, report: HolderReport, now: float) -> Grant:
        """Grant what ``report`` wants. Call ``settle`` first."""
        share = self._shares.update(report.holder, report.in_flight, report.demand)
        if stop := self._stop_because(now):
            return Grant(hold=True, share=share, stop=stop)
        if wait := max(self._breaker.wait_s(now), self._rates.hold_s(now)):
            return Grant(wait_s=wait, hold=True, share=share)
        wanted = min(report.wanted, MOST_AT_ONCE, 1 if self._breaker.is_open else MOST_AT_ONCE)
        count = self._rates.allowed(wanted, report.tokens_each, self._accounts.outstanding, now)
        if count < 1:
            # While probing, holders must not send earlier grants.
            careful = self._rates.probing or self._breaker.is_open
            wait_s = self._rates.wait_s(now) if wanted else 0.0
            return Grant(wait_s=wait_s, hold=careful, share=share, tolerant=self._rates.tolerant)
        usd_next = report.usd_each if report.usd_next is None else report.usd_next
        usd_each = report.usd_each
        if not self._accounts.fitting(usd_each, 1):
            usd_each, count = usd_next, 1
        count = self._accounts.fitting(usd_each, count)
        if not count:
            return Grant(wait_s=5 * OFTEN_S, share=share, stop=self._accounts.stop(usd_next))
        self._accounts.give(report.holder, count, count * usd_each, now)
        self._rates.take(count, count * report.tokens_each, now)
        self._breaker.probe(now)
        tokens, usd, tolerant = count * report.tokens_each, count * usd_each, self._rates.tolerant
        wait, spread = self._rates.wait_s(now), self._rates.spread_s(now)
        return Grant(count, tokens, usd, wait, spread, share=share, tolerant=tolerant)

    def _stop_because(self, now: float) -> str | None:
        pause, most = self._rates.paused_until - now, self._settings.give_up_s
        if self._stop is None and pause > most:
            self._stop = f"the endpoint asks to wait {pause:.0f} s (Retry-After), more than {most:g} s"
        self._stop = self._stop or self._breaker.stop(now)
        return self._stop

    def state(self, now: float) -> PacerState:
        """The state for a progress line."""
        because = self._stop
        if self._breaker.is_open:
            because = f"nothing gets through; {self._breaker.why()}; next try in {self._breaker.wait_s(now):.0f} s"
        elif because is None and (hold := self._rates.hold_s(now)) >= 0.5:
            because = f"waiting for the endpoint's rate limit (429), next try in {hold:.0f} s"
        return PacerState(
            self._succeeded,
            self._refused,
            self._failed,
            self._accounts.spent_usd,
            self._accounts.reserved_usd,
            self._rates.requests_per_s,
            because,
        )

    def memo(self) -> dict[str, Any]:
        """The state to keep across a restart: the accounts, a requested pause and the rate found."""
        cap, paused_until = self._rates.cap, max(0.0, self._rates.paused_until)
        return {"accounts": self._accounts.memo(), "paused_until": paused_until, "cap": cap if cap < 1e9 else None}

    def recall(self, memo: Mapping[str, Any], now: float) -> None:
        """Restore a ``memo`` from a process on the same machine, which shares the monotonic clock."""
        self._accounts.recall(memo["accounts"], now)
        self._rates.paused_until = memo["paused_until"]
        if memo["cap"] is not None:
            self._rates.cap = memo["cap"]
