"""Are refusals (429) a matter of the rate? Some endpoints refuse a share of requests whatever the rate is.

Slowing down does not help against those, and a controller that only knows how to slow down ends near nothing. So
where refusals go on although the rate was cut, an experiment is made: the rate is dipped, to three quarters or to
half, and the refusals of what is sent then are counted. Below the rate at which a limit refuses it refuses nothing.
Three refusals there are the proof of a *noise*, a share of refusals that is to be put up with from then on. Only
refusals in excess of it are a limit's. A noise is tested again now and then, since limits change.

For a share of a hundredth and less such a dip would take long. It is put up with on trial instead, while the rate
rises: a limit would soon refuse more.
"""

from __future__ import annotations

import math
from typing import Literal

MEMORY_S = 40.0  # of the evidence for an experiment
NEWS_S = 4.0  # of what is compared with the noise
PROOF, PROOF_AGAIN = 3, 8  # refusals in a dip
MOST_NOISE = 0.6  # a larger share is no noise: half the rate would be no proof then
AGAIN_S = 30.0  # until a noise is tested again
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0  # after an experiment that showed nothing, doubling
LONGEST_DIP_S = 30.0
CREDIT_SHARE = 0.02  # of refusals are borne on trial
CREDIT_TO = 1.5  # times the rate has to be reached then
CREDIT_PAUSE_S = 30.0
BLOCK = 500  # answers after which the noise is estimated anew


class Tally:
    """Successes, refusals and cuts of late; they fade with a time constant of ``memory_s``."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self.answers = self.refused = self.cuts = 0.0
        self._at: float | None = None

    def add(self, succeeded: int, refused: int, now: float, cuts: int = 0) -> None:
        """So many more by ``now``."""
        keep = 1.0 if self._at is None else math.exp(min(0.0, self._at - now) / self._memory_s)
        self.answers = keep * self.answers + succeeded + refused
        self.refused = keep * self.refused + refused
        self.cuts = keep * self.cuts + cuts
        self._at = now

    def clear(self) -> None:
        """Forget."""
        self.answers = self.refused = self.cuts = 0.0

    @property
    def share(self) -> float:
        """Of the answers, those that were refusals."""
        return self.refused / max(1.0, self.answers)


class RateTest:
    """Counts refusals, says when a dip is due, and judges it. ``noise``: the share that no rate can avoid."""

    def __init__(self) -> None:
        self.noise = 0.0
        self._evidence, self._news = Tally(MEMORY_S), Tally(NEWS_S)
        self._trusted_at: float | None = None  # the rate at which credit was given, until it has proved right
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
        """Whether an experiment is going on."""
        return self._begun_at is not None

    @property
    def dip(self) -> float:
        """What the rate is multiplied with: so little that a limit would refuse nothing any more."""
        return 0.75 if self._before <= 0.2 else 0.5

    def record(self, succeeded: int, refused: int, now: float) -> None:
        """What came back."""
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
                # Upwards only an experiment changes it: what a limit refuses would be put up with otherwise.
                least = _at_most(self._block_refused, self._block_answers) if self._block_refused else 0.0
                self.noise = min(self.noise, least)
                self._block_answers = self._block_refused = 0

    def explains(self) -> bool:
        """Whether the refusals of late are no more than the noise."""
        if not self.noise:
            return False
        expected = self._news.answers * self.noise
        return self._news.refused <= expected + 3 * math.sqrt(expected) + 2

    def cut(self, rate: float, now: float) -> None:
        """The rate was cut from ``rate`` a second."""
        self._evidence.add(0, 0, now, cuts=1)
        self._news.clear()
        if self._trusted_at is not None:
            if rate < CREDIT_TO * self._trusted_at:
                self.noise = 0.0
                self._no_credit_before = now + self._credit_pause_s
                self._credit_pause_s = min(LONGEST_PAUSE_S, 2 * self._credit_pause_s)
            self._trusted_at = None

    def forget(self) -> None:
        """Something else is known to have refused: what was counted proves nothing."""
        self._evidence.clear()
        self._news.clear()
        self._begun_at = None

    def is_due(self, now: float) -> bool:
        """Whether to dip now, on a refusal: cuts have not helped."""
        share, cuts = self._evidence.share, self._evidence.cuts
        if self.dipping or now < self._not_before or share > MOST_NOISE:
            return False
        return (cuts > 1.5 and share > 0.05) or (cuts > 3 and share > CREDIT_SHARE)

    def is_due_again(self, now: float) -> bool:
        """Whether the noise is to be tested anew."""
        return bool(self.noise) and self._trusted_at is None and not self.dipping and now >= self._not_before

    def credit(self, rate: float, now: float) -> bool:
        """Whether to bear so few refusals on trial. A dip would take long to tell; to go faster tells at once."""
        if self.noise or self._evidence.cuts < 4 or now < self._no_credit_before:
            return False
        self.noise = min(CREDIT_SHARE, _at_most(round(self._evidence.refused), max(1, round(self._evidence.answers))))
        self._trusted_at = rate
        self._news.clear()
        return True

    def confirm(self, rate: float, now: float) -> None:
        """Told the present ``rate``: a credit is right once so much more gets through with no more refusals."""
        if self._trusted_at is not None and rate > CREDIT_TO * self._trusted_at:
            self._trusted_at, self._credit_pause_s = None, CREDIT_PAUSE_S
            self._not_before = now + AGAIN_S

    def begin(self, now: float, settle_s: float) -> None:
        """The rate is dipped now; after ``settle_s`` what comes back was sent after that."""
        self._before = self.noise or self._evidence.share
        self._begun_at, self._counts_from = now, now + settle_s
        self._answers = self._refused = 0

    def verdict(self, now: float) -> Literal["noise", "limit", "unknown"] | None:
        """The end of an experiment, once: ``noise`` is set; ``None`` while it is going on or there is none."""
        if self._begun_at is None:
            return None
        share = max(0.01, self._before)
        found: Literal["noise", "limit", "unknown"] | None = None
        if self._refused >= (PROOF_AGAIN if self.noise else PROOF) and self._answers > self._refused:
            found = "noise"
            # What is refused at the lower rate bounds the noise from above, whatever a limit refuses beside.
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
    """A share that the true one hardly exceeds."""
    share = (refused + 1) / (answers + 1)
    return share + 1.5 * math.sqrt(share / answers)
