"""When a search ends before its trials are done: the budget or time is used up, or every trial fails."""

from __future__ import annotations

import re
from collections import Counter

SAME_ERRORS = 3  # a search ends if its first trials all fail with the same error


def gist(error: str) -> str:
    """The error with its counts masked, since they differ between trials."""
    return re.sub(r"(?<!HTTP )\b\d+", "#", error)


class Ending:
    """Collects outcomes. ``reason``: why no further rung should start, or None.

    ``budget_usd``: for trials, without the reserve for the finals; ``deadline``: on the caller's clock.
    """

    def __init__(self, budget_usd: float | None = None, deadline: float | None = None) -> None:
        self._budget_usd, self._deadline = budget_usd, deadline
        self._errors: Counter[str] = Counter()
        self._good = 0
        self.reason: str | None = None
        self.error: str | None = None

    def succeeded(self, spent_usd: float) -> None:
        """A rung was scored; ``spent_usd``: total so far."""
        self._good += 1
        if self._budget_usd is not None and spent_usd >= self._budget_usd:
            self.reason = (
                self.reason or f"search.budget_usd: ${spent_usd:.4g} spent; the rest is reserved for the finals"
            )

    def failed(self, error: str) -> None:
        """A trial failed. An exhausted budget ends the search, and so do ``SAME_ERRORS`` equal errors at its start."""
        self._errors[gist(error)] += 1
        if "budget_usd" in error:
            self.reason = self.reason or error
        if not self._good and self._errors[gist(error)] >= SAME_ERRORS and len(self._errors) == 1:
            self.error = error
            self.reason = f"the first {SAME_ERRORS} trials failed with the same error"

    def passed(self, now: float) -> None:
        """Check the deadline."""
        if self._deadline is not None and now >= self._deadline:
            self.reason = self.reason or "search.budget_hours is used up"
