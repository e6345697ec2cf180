"""Classify failed requests.

throttled   rate limit (429): wait as long as the endpoint says, then retry
transient   trouble at the endpoint (5xx, reset, timeout, a reply that isn't JSON): back off, then retry
final       this request will never succeed (400, context length, content filter): recorded in its row
fatal       no request will succeed (key, model, address): stop the job

A 403 may be final or fatal, since some gateways return it for a prompt they reject. ``Refusals`` tells them apart.
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
    """``message``: one readable line; ``retry_after_s``: as requested by the endpoint; ``status``: the HTTP error status,
    if any."""

    kind: FailureKind
    message: str
    retry_after_s: float | None = None
    status: int | None = None


def classify(status: int, code: str | None, message: str, retry_after_s: float | None = None) -> Failure:
    """The failure for an HTTP error status. ``code``: the error code in OpenAI's error body, if any."""
    shown = f"HTTP {status}: {' '.join(message.split())[:300]}"
    return Failure(_kind(status, code, message), shown, retry_after_s, status)


def _kind(status: int, code: str | None, message: str) -> FailureKind:
    if status == 429 and code in _QUOTA:
        return "fatal"
    if status == 429 and "request too large" in message.lower():
        return "final"  # larger than the limit of tokens per minute
    if status == 429:
        return "throttled"
    if status in _TRANSIENT or status >= 500:
        return "transient"
    if status in (401, 402, 403) or (status == 404 and code != "content_filter"):
        return "fatal"
    return "final"


class Refusals:
    """Judges 403s of one process after a trial request has shown that the key is valid: a 403 is about its prompt
    (final), until there are ``MOST_FORBIDDEN`` in a row (fatal)."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def judge(self, failure: Failure | None) -> Failure | None:
        """The failure with its judged kind. None means success; call in order of arrival."""
        if failure is None or failure.kind == "final":
            self._in_a_row = 0
        if failure is None or failure.status != 403:
            return failure
        self._in_a_row += 1
        return failure if self._in_a_row >= MOST_FORBIDDEN else replace(failure, kind="final")


def backoff_s(attempt: int, jitter: float, retry_after_s: float | None = None) -> float:
    """Seconds to wait before the next attempt. ``attempt`` counts failures from 1; ``jitter`` is in [0, 1).

    Capped exponential backoff with jitter, but at least ``retry_after_s``.
    """
    longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 30))
    return max(longest * (0.5 + 0.5 * jitter), retry_after_s or 0.0)
