"""Rate control: a token bucket under known limits, and a search for the rate without them.

Known limits (configured, or announced in headers) are used to 98 %, with bursts of at most half a second's worth.
Refusals (429) lower the rate below known limits too, since others may use the same key.

An unknown limit is found by additive increase and multiplicative decrease, as in TCP:

- *Slow start* bounds the outstanding requests. The window doubles each round trip up to 32, then grows by 2.6 % per
  round trip, so that after an allowance of n requests at most about n/36 are refused.
- *A refusal* sets the rate just below the measured success rate. All refusals of requests sent before the cut took
  effect count as one signal. The rate then creeps up, faster the longer nothing is refused. If a cut was too deep, the
  rate quickly returns to the one at which refusals came.
- *Refusals that don't depend on the rate* are found by an experiment (``potstill.limits.noise``) and tolerated.
- *A blackout* (only refusals, or a ``Retry-After`` of seconds) lets through only occasional probes. After a successful
  one, slow start begins again, up to the mean rate of the whole cycle including the pause. This finds the sustainable
  rate of an endpoint that counts in whole minutes.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from potstill.limits.headers import RateHeaders
from potstill.limits.noise import RateTest

MARGIN = 0.98  # share of a known limit to use; the rest allows for jitter, which could overrun a sliding window
DEPTH_S = 0.5  # capacity of a bucket in seconds of its rate: late callers lose nothing, and bursts are bounded
BELOW = 0.95  # share of the measured rate after a refusal; higher if refusals are rare
FLOOR_PER_S = 0.02
FIRST_WINDOW = 4.0
FAST_WINDOW = 32.0  # slow start doubles up to this window
SLOW_GROWTH = 1.026  # growth per round trip above it
BACK_PER_S, BACK_SHARE = 0.25, 0.3  # growth per second back to the rate of the last cut: maximum, and share of the way
GRACE_S = 0.25  # time until all processes know of a cut
BLACKOUT_AFTER = 10  # a blackout is at least this many refusals without a success
BLACKOUT_SHARE = 0.6  # and this share of the requests granted since the first of them
SLOW_S = 1.0  # with a higher latency, refusals arrive before the successes of earlier requests
BULK_S = 0.2  # interval at which holders ask under a rate
LONG_PAUSE_S = 2.0  # a longer Retry-After is a blackout
FIRST_PROBE_S, LONGEST_PROBE_S = 0.5, 5.0


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """Answers since the last report. ``*_age_s``: time since the most recent of its kind was sent."""

    succeeded: int = 0
    success_age_s: float = 0.0
    latency_s: float = 0.0  # mean of the successes
    refused: int = 0
    refusal_age_s: float = 0.0
    retry_after_s: float | None = None
    rates: RateHeaders | None = None


class Bucket:
    """A token bucket that starts empty. A negative level is a debt."""

    def __init__(self) -> None:
        self.level = 0.0
        self._updated: float | None = None

    def refill(self, rate: float, now: float) -> None:
        """Add what has accrued since the last call at ``rate`` per second."""
        if self._updated is not None and math.isfinite(rate):
            self.level = min(max(1.0, rate * DEPTH_S), self.level + rate * max(0.0, now - self._updated))
        self._updated = now if self._updated is None else max(self._updated, now)

    def restart(self, at: float) -> None:
        """Empty the bucket; nothing accrues before ``at``."""
        self.level, self._updated = min(self.level, 0.0), at


class SuccessMeter:
    """The rate of successes over the shortest recent period that gives a good estimate."""

    ENOUGH, SHORTEST_S, LONGEST_S = 20, 1.0, 30.0

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, count: int, now: float) -> None:
        """Record ``count`` successes at ``now``."""
        self._counts.append((now, count))
        while self._counts[0][0] < now - self.LONGEST_S:
            self._counts.popleft()

    def rate(self, since: float, now: float) -> float | None:
        """Successes per second since ``since`` or a later time; None if that period is too short."""
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
    """The state machine. Times are monotonic seconds. A limit of None is unknown, not unlimited."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._configured = (requests_per_minute, tokens_per_minute)
        self._announced: list[float | None] = [None, None]
        self._requests, self._tokens = Bucket(), Bucket()
        self._meter = SuccessMeter()
        self.cap = math.inf  # requests per second, found from refusals
        self._window = FIRST_WINDOW
        self._latency: float | None = None
        self._advanced_at: float | None = None
        self._rate_bound_at = self._window_bound_at = self._cut_at = -math.inf
        self.paused_until = -math.inf
        self._probe_at: float | None = None  # set in a blackout: time of the next probe
        self._probe_every = FIRST_PROBE_S
        self._blackout_at = -math.inf
        self._refused_since_cut = self._succeeded_since_cut = 0
        self._streak, self._streak_at = 0, math.inf  # refusals in a row, and when the first of them was sent
        self._granted: deque[tuple[float, int]] = deque()  # recent (time, count)
        self._cycle_at: float | None = None
        self._cycle_successes = 0
        self._test = RateTest()
        self._before_dip = math.inf, FIRST_WINDOW  # rate and window
        self._tolerant = False  # the test has shown that some refusals don't depend on the rate
        self._ceiling = 0.0  # the rate at which the last refusals came

    def known(self, index: int) -> float | None:
        """The known limit per minute of requests (0) or tokens (1)."""
        limits = [limit for limit in (self._configured[index], self._announced[index]) if limit is not None]
        return min(limits) if limits else None

    @property
    def requests_per_s(self) -> float:
        """The current request rate; infinite if nothing bounds it."""
        known = self.known(0)
        return min(self.cap, math.inf if known is None else MARGIN * known / 60)

    @property
    def tokens_per_s(self) -> float:
        """The current token rate; infinite without a known limit."""
        known = self.known(1)
        return math.inf if known is None else MARGIN * known / 60

    def hold_s(self, now: float) -> float:
        """Seconds in which nothing may be sent, not even earlier grants."""
        return max(0.0, self.paused_until - now, (self._probe_at or 0.0) - now)

    @property
    def probing(self) -> bool:
        """Whether only single probes may be sent, in a blackout."""
        return self._probe_at is not None

    @property
    def tolerant(self) -> bool:
        """Whether a share of refusals is tolerated, so that holders need not report one at once."""
        return self._tolerant and not self._test.dipping

    def allowed(self, wanted: int, tokens_each: float, outstanding: int, now: float) -> int:
        """How many of ``wanted`` requests may be sent now."""
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
            # The last request may go into debt: one with more tokens than the bucket's capacity would wait forever.
            count = min(count, max(0, math.ceil(self._tokens.level / tokens_each)))
        return count

    def take(self, count: int, tokens: float, now: float) -> None:
        """Record that ``count`` requests were granted (negative: returned unused)."""
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
        """After ``allowed`` and ``take``: seconds until the next request for permission makes sense."""
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
        """Seconds over which to spread what was just allowed: under a rate, until holders ask again."""
        return 0.9 * BULK_S if self._rate_bound_at == now else 0.0

    def settle(self, answers: AnswerCounts, now: float) -> None:
        """Adjust the rate to the answers."""
        self._advance(now)
        self._test.record(answers.succeeded, answers.refused, now)
        if answers.rates is not None:
            self._read_limits(answers.rates, now)
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

    def _read_limits(self, rates: RateHeaders, now: float) -> None:
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
        tolerated = self._test.explains() and not self.probing
        if not tolerated and not self._test.dipping and sent_at > self._cut_at + GRACE_S and not self.probing:
            self._cut(now)
        if wait and not (tolerated and wait <= LONG_PAUSE_S):
            self._pause(now + wait)
        granted = sum(count for time, count in self._granted if time >= self._streak_at)
        dark = self._streak >= max(BLACKOUT_AFTER, BLACKOUT_SHARE * granted)
        if dark and self._test.noise:  # with noise, many refusals may arrive before the first success
            dark = now - self._streak_at > GRACE_S + 2 * (self._latency or 0.2)
        if dark or wait > LONG_PAUSE_S:
            self._black_out(now, wait)

    def _experiment(self, now: float) -> None:
        """Start a dip if the noise needs testing, and apply the result of one that has ended."""
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
        elif found == "noise" and not self._tolerant:
            self.cap, self._window = math.inf, FIRST_WINDOW
        self._tolerant = bool(self._test.noise)
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
        """Set the rate just below the measured success rate, or dip it if cuts have not helped."""
        rate, sent = self.requests_per_s, self._sent_per_s(now)
        measured = self._meter.rate(max(self._cut_at, self._cycle_at or now), now)
        if self._test.is_due(now):
            self._dip(now)
            return
        self._ceiling = min(rate, sent)
        if self._test.credit(self._ceiling, now):
            self._ceiling *= 2
            self._tolerant, self._cut_at = True, now
            return
        if math.isinf(rate):
            rate = measured or self._window / (self._latency or 0.2)
        refused = self._refused_since_cut / max(1, self._refused_since_cut + self._succeeded_since_cut)
        if measured is None:  # too soon after the last cut
            measured = rate * (1 - refused)
        steep = refused >= 0.3 and self._refused_since_cut >= BLACKOUT_AFTER
        if noise := self._test.noise:
            measured, refused = measured / (1 - noise), max(0.0, refused - noise)
        below = min(0.99, max(BELOW, 1 - 5 * refused))  # if few are refused, a large cut would cost more than they do
        self.cap = max(FLOOR_PER_S, min(below * rate, max(below * measured, rate / (10 if steep else 2))))
        self._refused_since_cut = self._succeeded_since_cut = 0
        if math.isfinite(self._window):
            # The measured rate may come from using up an allowance: wait for all refusals and restart slow start.
            self._pause(now + GRACE_S)
            # With slow answers, starting from the first window would take very long.
            self._window = max(FIRST_WINDOW, self.cap * (self._latency or 0.0) / 2) if self._slow else FIRST_WINDOW
        self._cut_at = now
        self._test.cut(self._ceiling, now)
        self._tolerant = bool(self._test.noise)

    @property
    def _slow(self) -> bool:
        return (self._latency or 0.0) > SLOW_S

    def _sent_per_s(self, now: float) -> float:
        """Requests granted per second, over the last two seconds."""
        return sum(count for time, count in self._granted if time >= now - 2.0) / 2

    def _black_out(self, now: float, wait_s: float) -> None:
        if not self.probing:
            self._probe_at, self._probe_every, self._blackout_at = now + FIRST_PROBE_S, FIRST_PROBE_S, now
            self._test.forget()
        if wait_s:
            self._probe_at = max(self._probe_at or 0.0, now + wait_s)

    def _resume(self, now: float, dark_s: float) -> None:
        """End the blackout after a successful probe, sent ``dark_s`` after its start: restart slow start, up to the mean
        rate of the cycle that ends here."""
        known, before = self.known(0), self.requests_per_s
        least = max(FLOOR_PER_S, 0.0 if known is None else known / 120)
        if self._cycle_successes >= self._meter.ENOUGH and self._cycle_at is not None:
            self.cap = max(least, BELOW * self._cycle_successes / max(1e-3, now - self._cycle_at))
        elif math.isfinite(self.requests_per_s):
            self.cap = max(least, self.requests_per_s / 2)
        self._window = FIRST_WINDOW
        if self._slow and dark_s < 2 * FIRST_PROBE_S and math.isfinite(before):
            # Not a real blackout: the successes between the refusals are still in flight.
            self.cap = max(self.cap, BELOW * before)
            self._window = max(FIRST_WINDOW, self.cap * (self._latency or 0.0) / 2)
        self._probe_at, self._streak, self._streak_at = None, 0, math.inf
        self._cycle_at, self._cycle_successes, self._cut_at = now, 0, now
        self._ceiling = 0.0
        self._requests.restart(now)

    def _advance(self, now: float) -> None:
        """Raise the window or the rate, whichever is limiting."""
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
            self._window = math.inf  # from now on, only the rate limits
        if now - self._rate_bound_at <= 1.0 and math.isfinite(self.cap):
            calm = min(30.0, max(0.0, now - max(self._cut_at, self.paused_until)))
            back = min(BACK_PER_S, BACK_SHARE * (self._ceiling / self.cap - 1))
            self.cap *= math.exp(elapsed * max(0.01 + 0.001 * calm, back))
            if (known := self.known(0)) is not None:
                self.cap = min(self.cap, known / 60)
