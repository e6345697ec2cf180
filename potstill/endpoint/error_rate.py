"""When so many requests of a stage have failed that it must not go on.

At the end of a stage the share of failures counts. Before, it is stopped where that end is certain or as good as:
where more have failed than may in all, where nothing but failures has come, or where the share is far too large among
many answers. A few failures at the beginning stop nothing.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable

FORGIVEN = 9  # failures that are never too many, as long as anything was answered
HOPELESS = 50  # failures and nothing else: no chance
MANY = 500  # answers among which a share tells; prompts that are alike travel together, and so may their failures
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|\b[0-9a-f]{8,}\b|\d+")
_STATUS = re.compile(r"^HTTP \d+")


class ErrorRate:
    """Counts a stage's answers and failures. ``allowed``: the share of failures; ``expected``: requests, at most."""

    def __init__(self, allowed: float, expected: int) -> None:
        self._allowed, self._expected = allowed, expected
        self._answers = self._fresh = self._failed = 0
        self._kinds = collections.Counter[str]()
        self._examples: dict[str, str] = {}

    def add(self, answers: int, fresh: int, errors: Iterable[str]) -> None:
        """So many answers, of which ``fresh`` were newly asked, the failed ones among them with ``errors``."""
        self._answers += answers
        self._fresh += fresh
        for error in errors:
            kind = kind_of(error)
            self._failed += 1
            self._kinds[kind] += 1
            self._examples.setdefault(kind, error)

    def too_many(self, at_end: bool = False) -> str | None:
        """Why to stop, in a line; ``None`` while there is no reason to."""
        if not self._failed:
            return None
        if at_end:
            # A later round may hold a few requests only, of which one may well fail; nothing but failures is no chance.
            forgiven = FORGIVEN if self._failed < self._answers else 0
            stop = self._failed > max(self._allowed * self._answers, forgiven)
        else:
            likely = self._allowed * self._answers
            stop = (
                self._failed > max(self._allowed * self._expected, FORGIVEN)
                or (self._allowed < 1 and self._failed == self._fresh == self._answers >= HOPELESS)
                or (self._answers >= MANY and self._failed > likely + 4 * math.sqrt(likely) + FORGIVEN)
            )
        if not stop:
            return None
        kind, count = self._kinds.most_common(1)[0]
        return (
            f"{self._failed:,} of {self._answers:,} requests failed (teacher.max_error_rate = {self._allowed:g}); "
            f"the commonest error ({count:,} times): {self._examples[kind]}"
        )


def kind_of(error: str) -> str:
    """An error without what differs from request to request: numbers and quotations."""
    status = _STATUS.match(error)
    return (status.group() if status else "") + _VARIES.sub("…", error[status.end() if status else 0 :])
