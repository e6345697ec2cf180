"""Read an endpoint's rate limits from response headers.

Supported: ``retry-after`` (seconds or an HTTP date), ``retry-after-ms``, OpenAI's
``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` (also sent by Azure, Groq and others) and Anthropic's
``anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}``. The bare ``x-ratelimit-limit`` is ignored, since its
period is a second at some endpoints and an hour at others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MINUTE_S = 60.0

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Announced:
    """One announced limit: the maximum, what remains of it, and the seconds until it is fully reset."""

    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None

    @property
    def per_minute(self) -> float | None:
        """The limit per minute; None if there is no limit or its period is longer.

        Headers don't name the period. A limit that takes more than a minute to reset is per hour or day (Groq's
        ``limit-requests`` is per day) and does not imply a rate.
        """
        if self.limit is None or self.limit <= 0 or (self.reset_s or 0.0) > MINUTE_S * 1.05:
            return None
        return self.limit

    @property
    def exhausted_s(self) -> float:
        """Seconds until an exhausted limit with a period above a minute is reset; otherwise 0."""
        return self.reset_s if self.remaining == 0 and self.reset_s and self.reset_s > MINUTE_S * 1.05 else 0.0


@dataclass(frozen=True, slots=True)
class RateHeaders:
    """The limits in one response; None for those it does not state."""

    requests: Announced | None = None
    tokens: Announced | None = None
    retry_after_s: float | None = None


def read_rate_headers(headers: Mapping[str, str], wall_time_s: float) -> RateHeaders | None:
    """The limits in ``headers`` (any case); None if there are none. Unreadable values are ignored.

    ``wall_time_s``: the current time in seconds since 1970, to convert dates to waits.
    """
    found = {name.lower(): value for name, value in headers.items() if name.lower().startswith(_PREFIXES)}
    if not found:
        return None
    requests, tokens = (_announced(found, what, wall_time_s) for what in ("requests", "tokens"))
    read = RateHeaders(requests, tokens, _wait(found, wall_time_s))
    return None if read == RateHeaders() else read


def parse_wait(text: str, wall_time_s: float) -> float | None:
    """Parse plain seconds, ``6m0s``, ``20ms``, an HTTP date or an ISO date into seconds to wait (0 if past), or None."""
    if (seconds := _number(text)) is not None:
        return seconds
    text = text.strip()
    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    then = _date(text)
    return None if then is None else max(0.0, then.timestamp() - wall_time_s)


_PREFIXES = ("retry-after", "x-ratelimit-", "anthropic-ratelimit-")


def _wait(headers: Mapping[str, str], wall_time_s: float) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms", ""))
    return parse_wait(headers.get("retry-after", ""), wall_time_s) if milliseconds is None else milliseconds / 1000


def _announced(headers: Mapping[str, str], what: str, wall_time_s: float) -> Announced | None:
    for name in (f"x-ratelimit-{{}}-{what}", f"anthropic-ratelimit-{what}-{{}}"):
        one = Announced(
            _number(headers.get(name.format("limit"), "")),
            _number(headers.get(name.format("remaining"), "")),
            parse_wait(headers.get(name.format("reset"), ""), wall_time_s),
        )
        if one.limit is not None or one.remaining is not None:
            return one
    return None


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) and math.isfinite(float(text)) else None


def _date(text: str) -> datetime | None:
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            then = parse(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
        return then if then.tzinfo else then.replace(tzinfo=UTC)
    return None
