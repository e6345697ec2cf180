"""What kind of failure a request met, and what to do about it.

throttled   the endpoint wants less (429): wait as long as it says, then again
transient   its own trouble (5xx, reset, timeout, a reply that is no JSON): back off, then again
final       this request will never work (400, context length, content filter): recorded with its row
fatal       no request will work (key, model, address): the job stops

A 403 may be either: some gateways give it for a prompt that they don't like. ``Refusals`` tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

FailureKind = Literal["throttled", "transient", "final", "fatal"]

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
MOST_FORBIDDEN = 10
_TRANSIENT = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529})
_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


@dataclass(frozen=True, slots=True)
class Failure:
    """``message``: one line for people; ``retry_after_s``: as the endpoint asked, if it did; ``status``: of HTTP,
    where that says that it failed."""

    kind: FailureKind
    message: str
    retry_after_s: float | None = None
    status: int | None = None


def classify(status: int, code: str | None, message: str, retry_after_s: float | None = None) -> Failure:
    """The failure behind an HTTP error status. ``code``: the error code in OpenAI's error body, if any."""
    shown = f"HTTP {status}: {' '.join(message.split())[:300]}"
    return Failure(_kind(status, code, message), shown, retry_after_s, status)


def _kind(status: int, code: str | None, message: str) -> FailureKind:
    if status == 429 and code in _QUOTA:
        return "fatal"
    if status == 429 and "request too large" in message.lower():
        return "final"  # larger than a minute's tokens: it will never get in
    if status == 429:
        return "throttled"
    if status in _TRANSIENT or status >= 500:
        return "transient"
    if status in (401, 402, 403) or (status == 404 and code != "content_filter"):
        return "fatal"
    return "final"


class Refusals:
    """Judges the failures of one process, in the order in which they come, once a trial request has shown that the
    key is good: a 403 is then about its prompt, until ``MOST_FORBIDDEN`` come in a row."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def judge(self, failure: Failure | None) -> Failure | None:
        """The failure as it is to be taken; ``None``: the request succeeded."""
        if failure is None or failure.kind == "final":
            self._in_a_row = 0
        if failure is None or failure.status != 403:
            return failure
        self._in_a_row += 1
        return failure if self._in_a_row >= MOST_FORBIDDEN else replace(failure, kind="final")


def backoff_s(attempt: int, jitter: float, retry_after_s: float | None = None) -> float:
    """Seconds to wait before the next try; ``attempt`` counts failures from 1, ``jitter`` is in [0, 1).

    Exponential with full jitter, capped; what the endpoint asks for is waited for whole.
    """
    longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 30))
    return max(longest * (0.5 + 0.5 * jitter), retry_after_s or 0.0)
