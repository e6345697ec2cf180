"""When a search has to end before its trials are done: money, time, or nothing but errors."""

from __future__ import annotations

import re
from collections import Counter

SAME_ERRORS = 3
"""The first so many trials with one and the same error, and no other outcome, end a search."""


def gist(error: str) -> str:
    """The error without its counts: trials of other sizes have other numbers of the same failures."""
    return re.sub(r"(?<!HTTP )\b\d+", "#", error)


class Ending:
    """Told of every outcome; ``reason`` says why no further rung should begin, once there is a reason.

    ``budget_usd`` is for trials alone, without what is put aside for the finals; ``deadline`` by the caller's clock.
    """

    def __init__(self, budget_usd: float | None = None, deadline: float | None = None) -> None:
        self._budget_usd, self._deadline = budget_usd, deadline
        self._errors: Counter[str] = Counter()
        self._good = 0
        self.reason: str | None = None
        self.error: str | None = None

    def succeeded(self, spent_usd: float) -> None:
        """A rung gave a score; ``spent_usd`` by all so far."""
        self._good += 1
        if self._budget_usd is not None and spent_usd >= self._budget_usd:
            self.reason = self.reason or f"search.budget_usd: ${spent_usd:.4g} are spent, the rest is for the finals"

    def failed(self, error: str) -> None:
        """A trial failed. What failed for lack of money ends the search, and so do the same errors over and over."""
        self._errors[gist(error)] += 1
        if "budget_usd" in error:
            self.reason = self.reason or error
        if not self._good and self._errors[gist(error)] >= SAME_ERRORS and len(self._errors) == 1:
            self.error = error
            self.reason = f"the first {SAME_ERRORS} trials failed alike"

    def passed(self, now: float) -> None:
        """What time it is."""
        if self._deadline is not None and now >= self._deadline:
            self.reason = self.reason or "search.budget_hours is over"
