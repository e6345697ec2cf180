"""Decide when too many of a stage's requests have failed.

At the end of a stage, the share of failures decides. A stage is stopped earlier if it is sure or almost sure to fail:
more failures than allowed in total, only failures, or a share far too high among many answers. A few failures at the
start don't stop it.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable

FORGIVEN = 9  # failures always tolerated if there is at least one success
HOPELESS = 50  # failures without a success after which to stop
MANY = 500  # minimum answers to judge the share: similar prompts are sent together, so failures may cluster
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|\b[0-9a-f]{8,}\b|\d+")
_STATUS = re.compile(r"^HTTP \d+")


class ErrorRate:
    """Counts a stage's answers and failures. ``allowed``: share of failures; ``expected``: maximum number of requests."""

    def __init__(self, allowed: float, expected: int) -> None:
        self._allowed, self._expected = allowed, expected
        self._answers = self._fresh = self._failed = 0
        self._kinds = collections.Counter[str]()
        self._examples: dict[str, str] = {}

    def add(self, answers: int, fresh: int, errors: Iterable[str]) -> None:
        """Add answers, of which ``fresh`` come from new requests; ``errors``: one per failed answer."""
        self._answers += answers
        self._fresh += fresh
        for error in errors:
            kind = kind_of(error)
            self._failed += 1
            self._kinds[kind] += 1
            self._examples.setdefault(kind, error)

    def too_many(self, at_end: bool = False) -> str | None:
        """One line saying why to stop; None if there is no reason."""
        if not self._failed:
            return None
        if at_end:
            # A later round may have only a few requests, so tolerate some failures unless all failed.
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
            f"most common error ({count:,} times): {self._examples[kind]}"
        )


def kind_of(error: str) -> str:
    """The error without numbers and quotations, which differ between requests."""
    status = _STATUS.match(error)
    return (status.group() if status else "") + _VARIES.sub("…", error[status.end() if status else 0 :])
