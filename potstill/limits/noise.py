"""Test whether refusals (429) depend on the rate. Some endpoints refuse a share of requests at any rate.

Slowing down does not reduce such refusals, and a controller that only slows down would end near zero. So if refusals
continue after cuts, it runs an experiment: it dips the rate to three quarters or to half and counts the refusals of
requests sent during the dip. A limit refuses nothing below its rate, so three refusals prove *noise*: a share of
refusals to tolerate from then on. Only refusals above the noise are attributed to a limit. The noise is tested again
from time to time, since limits change.

For a share of 1 % or less a dip would take too long. It is tolerated on trial (*credit*) while the rate rises: under a
limit, refusals would soon increase.
"""

from __future__ import annotations

import math
from typing import Literal

MEMORY_S = 40.0  # time constant of the evidence for an experiment
NEWS_S = 4.0  # time constant of the counts compared with the noise
PROOF, PROOF_AGAIN = 3, 8  # refusals in a dip that prove noise, the first time and later
MOST_NOISE = 0.6  # a larger share can't be proved to be noise by halving the rate
AGAIN_S = 30.0  # time until the noise is tested again
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0  # after an experiment without noise, doubling
LONGEST_DIP_S = 30.0
CREDIT_SHARE = 0.02  # largest share of refusals tolerated on trial
CREDIT_TO = 1.5  # a credit is confirmed at this multiple of the rate
CREDIT_PAUSE_S = 30.0
BLOCK = 500  # answers per update of the noise


class Tally:
    """Recent answers, refusals and cuts, decaying exponentially with the time constant ``memory_s``."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self.answers = self.refused = self.cuts = 0.0
        self._at: float | None = None

    def add(self, succeeded: int, refused: int, now: float, cuts: int = 0) -> None:
        """Add counts at ``now``."""
        keep = 1.0 if self._at is None else math.exp(min(0.0, self._at - now) / self._memory_s)
        self.answers = keep * self.answers + succeeded + refused
        self.refused = keep * self.refused + refused
        self.cuts = keep * self.cuts + cuts
        self._at = now

    def clear(self) -> None:
        """Reset all counts."""
        self.answers = self.refused = self.cuts = 0.0

    @property
    def share(self) -> float:
        """Share of refusals among the answers."""
        return self.refused / max(1.0, self.answers)


class RateTest:
    """Counts refusals, decides when to dip, and evaluates the dip. ``noise``: share of refusals at any rate."""

    def __init__(self) -> None:
        self.noise = 0.0
        self._evidence, self._news = Tally(MEMORY_S), Tally(NEWS_S)
        self._trusted_at: float | None = None  # the rate at which credit was given, until it is confirmed
        self._no_credit_before = -math.inf
        self._credit_pause_s = CREDIT_PAUSE_S
        self._begun_at: float | None = None
        self._counts_from = math.inf
        self._before = 0.0  # share of refusals before the dip
        self._answers = self._refused = 0  # in the dip
        self._not_before = -math.inf
        self._pause_s = FIRST_PAUSE_S
        self._block_answers = self._block_refused = 0

    @property
    def dipping(self) -> bool:
        """Whether an experiment is running."""
        return self._begun_at is not None

    @property
    def dip(self) -> float:
        """The factor to dip the rate by, low enough that a limit would refuse nothing."""
        return 0.75 if self._before <= 0.2 else 0.5

    def record(self, succeeded: int, refused: int, now: float) -> None:
        """Count answers."""
        self._evidence.add(succeeded, refused, now)
        self._news.add(succeeded, refused, now)
        if self.dipping:
            if now >= self._counts_from:
                self._answers += succeeded + refused
                self._refused += refused
        elif self.noise:
            self._block_answers += succeeded + refused
            self._block_refused += refused
            if self._block_answers >= BLOCK:
                # Only an experiment may raise the noise, or a limit's refusals would be tolerated.
                least = _at_most(self._block_refused, self._block_answers) if self._block_refused else 0.0
                self.noise = min(self.noise, least)
                self._block_answers = self._block_refused = 0

    def explains(self) -> bool:
        """Whether the noise explains the recent refusals."""
        if not self.noise:
            return False
        expected = self._news.answers * self.noise
        return self._news.refused <= expected + 3 * math.sqrt(expected) + 2

    def cut(self, rate: float, now: float) -> None:
        """Record that the rate was cut from ``rate`` per second. Revokes a credit that isn't confirmed."""
        self._evidence.add(0, 0, now, cuts=1)
        self._news.clear()
        if self._trusted_at is not None:
            if rate < CREDIT_TO * self._trusted_at:
                self.noise = 0.0
                self._no_credit_before = now + self._credit_pause_s
                self._credit_pause_s = min(LONGEST_PAUSE_S, 2 * self._credit_pause_s)
            self._trusted_at = None

    def forget(self) -> None:
        """Discard the evidence and stop a dip, because the refusals have another known cause."""
        self._evidence.clear()
        self._news.clear()
        self._begun_at = None

    def is_due(self, now: float) -> bool:
        """Whether to dip now, after a refusal, because cuts have not helped."""
        share, cuts = self._evidence.share, self._evidence.cuts
        if self.dipping or now < self._not_before or share > MOST_NOISE:
            return False
        return (cuts > 1.5 and share > 0.05) or (cuts > 3 and share > CREDIT_SHARE)

    def is_due_again(self, now: float) -> bool:
        """Whether to test the noise again."""
        return bool(self.noise) and self._trusted_at is None and not self.dipping and now >= self._not_before

    def credit(self, rate: float, now: float) -> bool:
        """Whether to tolerate rare refusals on trial. A dip would take long; raising the rate shows a limit at once."""
        if self.noise or self._evidence.cuts < 4 or now < self._no_credit_before:
            return False
        self.noise = min(CREDIT_SHARE, _at_most(round(self._evidence.refused), max(1, round(self._evidence.answers))))
        self._trusted_at = rate
        self._news.clear()
        return True

    def confirm(self, rate: float, now: float) -> None:
        """Confirm a credit once ``rate`` has risen to ``CREDIT_TO`` times the rate at which it was given."""
        if self._trusted_at is not None and rate > CREDIT_TO * self._trusted_at:
            self._trusted_at, self._credit_pause_s = None, CREDIT_PAUSE_S
            self._not_before = now + AGAIN_S

    def begin(self, now: float, settle_s: float) -> None:
        """Start a dip. Answers count after ``settle_s``, when all of them were sent during the dip."""
        self._before = self.noise or self._evidence.share
        self._begun_at, self._counts_from = now, now + settle_s
        self._answers = self._refused = 0

    def verdict(self, now: float) -> Literal["noise", "limit", "unknown"] | None:
        """The result of an experiment, returned once; updates ``noise``. None if no experiment has just ended."""
        if self._begun_at is None:
            return None
        share = max(0.01, self._before)
        found: Literal["noise", "limit", "unknown"] | None = None
        if self._refused >= (PROOF_AGAIN if self.noise else PROOF) and self._answers > self._refused:
            found = "noise"
            # The share refused during the dip is an upper bound of the noise, even if a limit refuses more.
            self.noise = min(self.noise or MOST_NOISE, _at_most(self._refused, self._answers))
        elif self._answers >= 6 / share * (1 + self._refused):
            found = "limit"
            self.noise = 0.0
        elif now - self._begun_at > LONGEST_DIP_S:
            found = "unknown"
        if found:
            taken = now - self._begun_at
            pause = AGAIN_S if found == "noise" else self._pause_s
            self._pause_s = FIRST_PAUSE_S if found == "noise" else min(LONGEST_PAUSE_S, 2 * self._pause_s)
            self._not_before = now + max(pause, 10 * taken)
            self._begun_at = None
            self._evidence.clear()
            self._news.clear()
            self._block_answers = self._block_refused = 0
        return found


def _at_most(refused: int, answers: int) -> float:
    """An approximate upper confidence bound of the share of refusals."""
    share = (refused + 1) / (answers + 1)
    return share + 1.5 * math.sqrt(share / answers)
