"""What kind of failure a request met, and what to do about it.

throttled   the endpoint wants less (429): wait as long as it says, then again
transient   its own trouble (5xx, reset, timeout, a reply that is no JSON): back off, then again
final       this request will never work (400, context length, content filter): recorded with its row
fatal       no request will work (key, model, address): the job stops
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FailureKind = Literal["throttled", "transient", "final", "fatal"]

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
_TRANSIENT = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529})
_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


@dataclass(frozen=True, slots=True)
class Failure:
    """``message``: one line for people; ``retry_after_s``: as the endpoint asked, if it did."""

    kind: FailureKind
    message: str
    retry_after_s: float | None = None


def classify(status: int, code: str | None, message: str, retry_after_s: float | None = None) -> Failure:
    """The failure behind an HTTP error status. ``code``: the error code in OpenAI's error body, if any."""
    shown = f"HTTP {status}: {' '.join(message.split())[:300]}"
    if status == 429 and code in _QUOTA:
        return Failure("fatal", shown)
    if status == 429 and "request too large" in message.lower():
        return Failure("final", shown)  # larger than a minute's tokens: it will never get in
    if status == 429:
        return Failure("throttled", shown, retry_after_s)
    if status in _TRANSIENT or status >= 500:
        return Failure("transient", shown, retry_after_s)
    if status in (401, 402, 403) or (status == 404 and code != "content_filter"):
        return Failure("fatal", shown)
    return Failure("final", shown)


def backoff_s(attempt: int, jitter: float, retry_after_s: float | None = None) -> float:
    """Seconds to wait before the next try; ``attempt`` counts failures from 1, ``jitter`` is in [0, 1).

    Exponential with full jitter, capped; what the endpoint asks for is waited for whole.
    """
    longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 30))
    return max(longest * (0.5 + 0.5 * jitter), retry_after_s or 0.0)
