"""How many requests may be sent now: under known limits a smooth token bucket, without any a search.

Known limits (configured, or announced in headers) are used to 98 %, never more than half a second's worth
at once. Refusals (429) lower the rate below them too, since somebody else may use the same key.

Without a known limit the rate is found by additive-increase/multiplicative-decrease in the manner of TCP:

- *Slow start* bounds what is outstanding: it doubles each round trip up to 32, then grows by 2.6 % a round trip.
  So when an allowance ends that was good for n requests, at most about n/36 are refused.
- *A refusal* sets the rate just below the measured rate of success. All refusals of what was sent before that
  took effect are one signal. Then the rate creeps up again, faster the longer nothing is refused.
  A cut that was too deep is made good quickly: up to the rate at which the refusals came.
- *Refusals that don't depend on the rate* are found by an experiment (``potstill.limits.noise``) and put up with.
- *A blackout* (nothing but refusals, or ``Retry-After`` of seconds) lets only a probe through now and then. When
  one succeeds, slow start begins again, up to the mean rate of the whole cycle, pause included: this is what
  finds the sustainable rate of an endpoint that counts in whole minutes.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from potstill.limits.headers import RateHeaders
from potstill.limits.noise import RateTest

MARGIN = 0.98  # of a known limit; the rest is for jitter on the way, which a sliding window would count against us
DEPTH_S = 0.5  # a bucket holds so much of its rate: a caller that comes late loses nothing, and no burst is larger
BELOW = 0.95  # of the measured rate, after a refusal; nearer to it where refusals are rare
FLOOR_PER_S = 0.02
FIRST_WINDOW = 4.0
FAST_WINDOW = 32.0  # up to here slow start doubles
SLOW_GROWTH = 1.026  # a round trip, above that
BACK_PER_S, BACK_SHARE = 0.25, 0.3  # growth on the way back to where the last cut was made: a second, and of the way
GRACE_S = 0.25  # until every process has heard of a cut
BLACKOUT_AFTER = 10  # refusals at least, and
BLACKOUT_SHARE = 0.6  # of what was granted since the first of them, of which nothing has succeeded
SLOW_S = 1.0  # answers that take longer are late news: refusals come first
BULK_S = 0.2  # under a rate, holders ask so often
LONG_PAUSE_S = 2.0  # a Retry-After of more is a blackout
FIRST_PROBE_S, LONGEST_PROBE_S = 0.5, 5.0


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """What came back since the last report. ``*_age_s``: how long ago the youngest of its kind was sent."""

    succeeded: int = 0
    success_age_s: float = 0.0
    latency_s: float = 0.0  # mean of the successes
    refused: int = 0
    refusal_age_s: float = 0.0
    retry_after_s: float | None = None
    rates: RateHeaders | None = None


class Bucket:
    """A token bucket that starts empty. A level below zero is a debt."""

    def __init__(self) -> None:
        self.level = 0.0
        self._updated: float | None = None

    def refill(self, rate: float, now: float) -> None:
        """Add what has accrued since the last time at ``rate`` per second."""
        if self._updated is not None and math.isfinite(rate):
            self.level = min(max(1.0, rate * DEPTH_S), self.level + rate * max(0.0, now - self._updated))
        self._updated = now if self._updated is None else max(self._updated, now)

    def restart(self, at: float) -> None:
        """Empty, and nothing accrues before ``at``."""
        self.level, self._updated = min(self.level, 0.0), at


class SuccessMeter:
    """The rate at which requests succeed, over as short a while as tells it well enough."""

    ENOUGH, SHORTEST_S, LONGEST_S = 20, 1.0, 30.0

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, count: int, now: float) -> None:
        """``count`` requests have succeeded by ``now``."""
        self._counts.append((now, count))
        while self._counts[0][0] < now - self.LONGEST_S:
            self._counts.popleft()

    def rate(self, since: float, now: float) -> float | None:
        """Successes per second since ``since`` or a later time; ``None`` if that is too short a while to tell."""
        total, start = 0, max(since, now - self.LONGEST_S)
        for time, count in reversed(self._counts):
            if time < start:
                break
            if total >= self.ENOUGH and now - time >= self.SHORTEST_S:
                start = time
                break
            total += count
        return total / (now - start) if now - start >= self.SHORTEST_S / 2 else None


class RateControl:
    """The state machine. Times are monotonic seconds; ``None`` for a limit means unknown, not unlimited."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._configured = (requests_per_minute, tokens_per_minute)
        self._announced: list[float | None] = [None, None]
        self._requests, self._tokens = Bucket(), Bucket()
        self._meter = SuccessMeter()
        self.cap = math.inf  # requests a second, found from refusals
        self._window = FIRST_WINDOW
        self._latency: float | None = None
        self._advanced_at: float | None = None
        self._rate_bound_at = self._window_bound_at = self._cut_at = -math.inf
        self.paused_until = -math.inf
        self._probe_at: float | None = None  # set in a blackout: when the next probe may go
        self._probe_every = FIRST_PROBE_S
        self._blackout_at = -math.inf
        self._refused_since_cut = self._succeeded_since_cut = 0
        self._streak, self._streak_at = 0, math.inf  # refusals, and when the first of them was sent
        self._granted: deque[tuple[float, int]] = deque()  # lately
        self._cycle_at: float | None = None
        self._cycle_successes = 0
        self._test = RateTest()
        self._before_dip = math.inf, FIRST_WINDOW  # rate and window
        self._bearing = False  # refusals of which the test has shown that they don't depend on the rate
        self._ceiling = 0.0  # the rate at which refusals came last

    def known(self, index: int) -> float | None:
        """The known limit a minute of requests (0) or tokens (1)."""
        limits = [limit for limit in (self._configured[index], self._announced[index]) if limit is not None]
        return min(limits) if limits else None

    @property
    def requests_per_s(self) -> float:
        """The rate in force; infinite while nothing has bounded it."""
        known = self.known(0)
        return min(self.cap, math.inf if known is None else MARGIN * known / 60)

    @property
    def tokens_per_s(self) -> float:
        """The rate in force; infinite without a known limit."""
        known = self.known(1)
        return math.inf if known is None else MARGIN * known / 60

    def hold_s(self, now: float) -> float:
        """Seconds in which nothing at all may be sent, not even what had been granted before."""
        return max(0.0, self.paused_until - now, (self._probe_at or 0.0) - now)

    @property
    def probing(self) -> bool:
        """In a blackout: only single requests are let through."""
        return self._probe_at is not None

    @property
    def bearing(self) -> bool:
        """Whether a share of refusals is put up with: nobody need hear of one at once."""
        return self._bearing and not self._test.dipping

    def allowed(self, wanted: int, tokens_each: float, outstanding: int, now: float) -> int:
        """How many of ``wanted`` requests may go now."""
        self._advance(now)
        if self.hold_s(now) > 0 or wanted <= 0:
            return 0
        if self.probing:
            return 1
        count = wanted
        if self.known(0) is None and count > self._window - outstanding:
            count = max(0, int(self._window) - outstanding)
            self._window_bound_at = now
        self._requests.refill(self.requests_per_s, now)
        if math.isfinite(self.requests_per_s) and count > self._requests.level + 1e-9:
            count = max(0, math.floor(self._requests.level + 1e-9))
            self._rate_bound_at = now
        self._tokens.refill(self.tokens_per_s, now)
        if math.isfinite(self.tokens_per_s) and tokens_each > 0:
            # The last one may go into debt: a request of more tokens than the bucket holds would wait for ever.
            count = min(count, max(0, math.ceil(self._tokens.level / tokens_each)))
        return count

    def take(self, count: int, tokens: float, now: float) -> None:
        """Note that ``count`` requests have been granted (negative: given back unused)."""
        self._cycle_at = now if self._cycle_at is None else self._cycle_at
        if count:
            self._granted.append((now, count))
            while self._granted[0][0] < now - SuccessMeter.LONGEST_S:
                self._granted.popleft()
        if math.isfinite(self.requests_per_s):
            self._requests.level -= count
        if math.isfinite(self.tokens_per_s):
            self._tokens.level -= tokens
        if self.probing and count > 0:
            self._probe_at = now + self._probe_every
            self._probe_every = min(LONGEST_PROBE_S, 1.5 * self._probe_every)

    def wait_s(self, now: float) -> float:
        """After ``allowed`` and ``take``: seconds until it makes sense to ask again."""
        if hold := self.hold_s(now):
            return hold
        waits = [0.005]
        if self._window_bound_at == now:
            waits.append(min(0.05, (self._latency or 0.2) / 4))
        if self._rate_bound_at == now:
            waits.append(max(BULK_S, (1 - self._requests.level) / self.requests_per_s))
        if math.isfinite(self.tokens_per_s):
            waits.append(BULK_S * (self._tokens.level <= 0) - self._tokens.level / self.tokens_per_s)
        return max(waits)

    def spread_s(self, now: float) -> float:
        """Over how long to spread what was just allowed: under a rate, until the next time of asking."""
        return 0.9 * BULK_S if self._rate_bound_at == now else 0.0

    def settle(self, answers: AnswerCounts, now: float) -> None:
        """Learn from what came back."""
        self._advance(now)
        self._test.record(answers.succeeded, answers.refused, now)
        if answers.rates is not None:
            self._listen(answers.rates, now)
        if answers.succeeded:
            self._meter.add(answers.succeeded, now)
            self._cycle_successes += answers.succeeded
            self._succeeded_since_cut += answers.succeeded
            if now - answers.success_age_s > self._streak_at:
                self._streak, self._streak_at = 0, math.inf
            mean = answers.latency_s
            self._latency = mean if self._latency is None else 0.8 * self._latency + 0.2 * mean
            if self.probing and now - answers.success_age_s > self._blackout_at:
                self._resume(now, now - answers.success_age_s - self._blackout_at)
        if answers.refused:
            self._refuse(answers, now)
        self._experiment(now)

    def _listen(self, rates: RateHeaders, now: float) -> None:
        for index, one in enumerate((rates.requests, rates.tokens)):
            if one is None:
                continue
            if one.per_minute is not None:
                self._announced[index] = one.per_minute
            if one.exhausted_s:
                self._black_out(now, one.exhausted_s)

    def _refuse(self, answers: AnswerCounts, now: float) -> None:
        sent_at = now - answers.refusal_age_s
        self._streak += answers.refused
        self._streak_at = min(self._streak_at, sent_at)
        self._refused_since_cut += answers.refused
        wait = answers.retry_after_s or 0.0
        borne = self._test.explains() and not self.probing
        if not borne and not self._test.dipping and sent_at > self._cut_at + GRACE_S and not self.probing:
            self._cut(now)
        if wait and not (borne and wait <= LONG_PAUSE_S):
            self._pause(now + wait)
        granted = sum(count for time, count in self._granted if time >= self._streak_at)
        dark = self._streak >= max(BLACKOUT_AFTER, BLACKOUT_SHARE * granted)
        if dark and self._test.noise:  # by chance alone many may be refused before the first success is back
            dark = now - self._streak_at > GRACE_S + 2 * (self._latency or 0.2)
        if dark or wait > LONG_PAUSE_S:
            self._black_out(now, wait)

    def _experiment(self, now: float) -> None:
        """Dip the rate where refusals may be no matter of it, and end that again."""
        if self.probing:
            return
        self._test.confirm(min(self.requests_per_s, self._sent_per_s(now)), now)
        if self._test.is_due_again(now):
            self._dip(now)
        found = self._test.verdict(now)
        if found is None:
            return
        self.cap, self._window = self._before_dip
        if found == "limit":
            self.cap *= BELOW
        elif found == "noise" and not self._bearing:
            self.cap, self._window = math.inf, FIRST_WINDOW
        self._bearing = bool(self._test.noise)
        self._cut_at = now
        self._refused_since_cut = self._succeeded_since_cut = 0

    def _dip(self, now: float) -> None:
        rate = self.requests_per_s
        sent = self._sent_per_s(now)
        self._before_dip = self.cap, self._window
        self._test.begin(now, GRACE_S + 1.5 * (self._latency or 0.2))
        self.cap = max(FLOOR_PER_S, self._test.dip * min(rate, sent))

    def _pause(self, until: float) -> None:
        self.paused_until = max(self.paused_until, until)
        self._requests.restart(self.paused_until)
        self._tokens.restart(self.paused_until)

    def _cut(self, now: float) -> None:
        """Fall back to just below the measured rate of success; or dip, where that has not helped."""
        rate, sent = self.requests_per_s, self._sent_per_s(now)
        measured = self._meter.rate(max(self._cut_at, self._cycle_at or now), now)
        if self._test.is_due(now):
            self._dip(now)
            return
        self._ceiling = min(rate, sent)
        if self._test.credit(self._ceiling, now):
            self._ceiling *= 2
            self._bearing, self._cut_at = True, now
            return
        if math.isinf(rate):
            rate = measured or self._window / (self._latency or 0.2)
        refused = self._refused_since_cut / max(1, self._refused_since_cut + self._succeeded_since_cut)
        if measured is None:  # too soon after the last cut
            measured = rate * (1 - refused)
        steep = refused >= 0.3 and self._refused_since_cut >= BLACKOUT_AFTER
        if noise := self._test.noise:
            measured, refused = measured / (1 - noise), max(0.0, refused - noise)
        below = min(0.99, max(BELOW, 1 - 5 * refused))  # where few are refused, a large cut would cost more than they
        self.cap = max(FLOOR_PER_S, min(below * rate, max(below * measured, rate / (10 if steep else 2))))
        self._refused_since_cut = self._succeeded_since_cut = 0
        if math.isfinite(self._window):
            # What was measured may be an allowance being used up: wait for all refusals and begin again from below.
            self._pause(now + GRACE_S)
            # Where answers are slow that would take very long.
            self._window = max(FIRST_WINDOW, self.cap * (self._latency or 0.0) / 2) if self._slow else FIRST_WINDOW
        self._cut_at = now
        self._test.cut(self._ceiling, now)
        self._bearing = bool(self._test.noise)

    @property
    def _slow(self) -> bool:
        return (self._latency or 0.0) > SLOW_S

    def _sent_per_s(self, now: float) -> float:
        """Requests that were granted a second, over the last two."""
        return sum(count for time, count in self._granted if time >= now - 2.0) / 2

    def _black_out(self, now: float, wait_s: float) -> None:
        if not self.probing:
            self._probe_at, self._probe_every, self._blackout_at = now + FIRST_PROBE_S, FIRST_PROBE_S, now
            self._test.forget()
        if wait_s:
            self._probe_at = max(self._probe_at or 0.0, now + wait_s)

    def _resume(self, now: float, dark_s: float) -> None:
        """A probe of ``dark_s`` into the blackout has succeeded: slow start again, up to the mean rate of the cycle
        that ends here."""
        known, before = self.known(0), self.requests_per_s
        least = max(FLOOR_PER_S, 0.0 if known is None else known / 120)
        if self._cycle_successes >= self._meter.ENOUGH and self._cycle_at is not None:
            self.cap = max(least, BELOW * self._cycle_successes / max(1e-3, now - self._cycle_at))
        elif math.isfinite(self.requests_per_s):
            self.cap = max(least, self.requests_per_s / 2)
        self._window = FIRST_WINDOW
        if self._slow and dark_s < 2 * FIRST_PROBE_S and math.isfinite(before):
            # A row of refusals, but no blackout: the successes between them are still on their way.
            self.cap = max(self.cap, BELOW * before)
            self._window = max(FIRST_WINDOW, self.cap * (self._latency or 0.0) / 2)
        self._probe_at, self._streak, self._streak_at = None, 0, math.inf
        self._cycle_at, self._cycle_successes, self._cut_at = now, 0, now
        self._ceiling = 0.0
        self._requests.restart(now)

    def _advance(self, now: float) -> None:
        """Creep up: the window while it is what holds requests back, the rate likewise."""
        last = now if self._advanced_at is None else self._advanced_at
        self._advanced_at = max(now, last)
        elapsed = min(1.0, max(0.0, now - last))
        if not elapsed or self.hold_s(now) > 0 or self.probing or self._test.dipping:
            return
        if now - self._window_bound_at <= 0.25 and math.isfinite(self._window):
            trip = max(0.005, min(self._latency or 1.0, 1.0 if self._window < FAST_WINDOW else 0.2))
            growth = (2.0 if self._window < FAST_WINDOW else SLOW_GROWTH) ** min(64.0, elapsed / trip)
            self._window *= min(2.0, growth)
        elif math.isfinite(self.cap) and now - max(self._window_bound_at, self._cut_at) > 1.0:
            self._window = math.inf  # the rate is what bounds from now on
        if now - self._rate_bound_at <= 1.0 and math.isfinite(self.cap):
            calm = min(30.0, max(0.0, now - max(self._cut_at, self.paused_until)))
            back = min(BACK_PER_S, BACK_SHARE * (self._ceiling / self.cap - 1))
            self.cap *= math.exp(elapsed * max(0.01 + 0.001 * calm, back))
            if (known := self.known(0)) is not None:
                self.cap = min(self.cap, known / 60)
