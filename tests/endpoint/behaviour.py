"""The script: every deviation from answering at once and correctly.

    Script(latency_s=0.2, shares={"500": 0.05, "hang": 0.01}, requests_per_minute=3000)

It travels as JSON (command line, ``PUT /_script``). All draws are keyed by ``seed`` and their purpose, so the
same script gives the same requests the same faults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from hashlib import blake2b
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, field_validator
from pydantic.dataclasses import dataclass

ERROR_FAULTS = ("429", "insufficient_quota", "500", "502", "503", "529", "content_filter", "context_length")
CONNECTION_FAULTS = ("hang", "reset_before", "reset_midway")
PAYLOAD_FAULTS = (
    "truncated_json",
    "not_json",
    "html_page",
    "wrong_type",
    "empty_body",
    "invalid_utf8",
    "no_choices",
    "null_content",
    "no_usage",
    "refusal",
    "length",
    "huge",
)
FAULTS = ERROR_FAULTS + CONNECTION_FAULTS + PAYLOAD_FAULTS
SPOILT_BODIES = ("truncated_json", "not_json", "html_page", "wrong_type", "empty_body", "invalid_utf8")  # of any answer
API_FAULTS = ("500", "502", "503", "529", "hang", "reset_before", "reset_midway", "truncated_json", "not_json")

Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Capability = Literal["served", "refused", "ignored"]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Script:
    """How the endpoint behaves; by default it answers any key at once and correctly. A wrong field: ``ValueError``."""

    seed: int = 0
    models: tuple[str, ...] = ("scripted-1",)  # all others are answered 404
    keys: tuple[str, ...] = ()  # the accepted API keys; empty: all are accepted
    echo_key: bool = False  # the 401 quotes the whole key, as careless proxies do

    latency_s: NotNegative = 0.0  # the median, where latency_sigma > 0
    latency_sigma: NotNegative = 0.0  # sigma of the logarithm: lognormal latency; 0: constant

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    # The burst allowed, in seconds of the limit. Providers enforce limits per minute over shorter times.
    burst_s: Positive = 1.0
    max_in_flight: Annotated[int, Field(ge=1)] | None = None  # more at the same time are answered 429
    # Limits announced to a client: x-ratelimit-* and Retry-After, only Retry-After, or nothing.
    limit_headers: Literal["all", "retry_after", "none"] = "all"
    retry_after_form: Literal["seconds", "date"] = "seconds"

    # 429 storms start when they are scripted.
    storm_requests: Annotated[int, Field(ge=0)] = 0
    storm_s: NotNegative = 0.0
    storm_retry_after_s: NotNegative | None = None  # None: without the header

    shares: dict[str, Share] = Field(default_factory=dict)  # fault -> its share of the chat requests
    api_shares: dict[str, Share] = Field(default_factory=dict)  # the same for models, files and batches
    # What a share is drawn by: the content (a retry meets the same), the content and how often it was asked (a
    # retry draws anew, regardless of the order of arrival), or the arrival number.
    decided_by: Literal["content", "attempt", "arrival"] = "attempt"
    fault_retry_after_s: NotNegative | None = None  # Retry-After of errors drawn by shares; None: without
    poison: dict[str, Annotated[int, Field(ge=400, le=599)]] = Field(default_factory=dict)  # substring -> status
    huge_bytes: Annotated[int, Field(ge=1)] = 5_000_000

    structured_output: Capability = "served"
    logprobs: Capability = "served"
    temperature: Literal["served", "refused"] = "served"
    max_tokens: Literal["served", "refused"] = "served"  # refused: wants max_completion_tokens
    refused_parameters: tuple[str, ...] = ()  # any others, each answered 400 unsupported_parameter
    max_top_logprobs: Annotated[int, Field(ge=0)] = 20
    context_length: Annotated[int, Field(ge=1)] = 128_000

    # base_url of a real server that gives the good answers, with the caller's key; batches stay scripted.
    upstream: str | None = None
    answers: dict[str, str] = Field(default_factory=dict)  # substring of the last message -> the answer
    options: tuple[str, ...] = ()  # answers to choose from; empty: read from the prompt's list of classes
    option_format: str = "{}"  # how a free text states an option, e.g. "The class is {}."
    stray_mass: Share = 0.02  # probability of tokens that belong to no option
    vary: bool = False  # the same question gets another answer each time it is asked
    reasoning_tokens: Annotated[int, Field(ge=0)] = 0  # spent, and charged, before the first visible one

    book_characters: Annotated[int, Field(ge=0)] = 2000  # characters of a prompt that the book keeps

    batch_validating_s: NotNegative = 0.0
    batch_running_s: NotNegative = 0.0
    batch_expired_share: Share = 0.0  # lines that the batch did not get to before it expired
    batch_max_lines: Annotated[int, Field(ge=1)] = 50_000
    batches: Literal["served", "refused"] = "served"  # refused: 404 for all batch routes
    batch_lost_answers: Annotated[int, Field(ge=0)] = 0  # this many batches are created but their response is lost
    batch_failure: str = ""  # a message with which every batch fails
    batch_token_limit: Annotated[int, Field(ge=1)] | None = None  # more enqueued tokens fail the batch

    @field_validator("shares", "api_shares")
    @classmethod
    def _known_faults(cls, shares: dict[str, float], info: Any) -> dict[str, float]:
        known = FAULTS if info.field_name == "shares" else API_FAULTS
        unknown = sorted(set(shares) - set(known))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} not known; known: {', '.join(known)}")
        if sum(shares.values()) > 1 + 1e-9:
            raise ValueError(f"shares sum to {sum(shares.values()):g}, more than 1")
        return shares

    @field_validator("option_format")
    @classmethod
    def _has_a_place(cls, option_format: str) -> str:
        if option_format.count("{}") != 1:
            raise ValueError("option_format needs one {} where the option goes")
        return option_format


_ADAPTER = TypeAdapter(Script)


def read_script(text: str | bytes) -> Script:
    """The script that JSON ``text`` describes. Raises ``ValueError`` (pydantic's) naming the field that is wrong."""
    return _ADAPTER.validate_json(text)


def write_script(script: Script) -> str:
    """The script as JSON, all fields."""
    return _ADAPTER.dump_json(script).decode()


def change_script(script: Script, changes: Mapping[str, Any]) -> Script:
    """The script with other fields replaced; validated like a new one."""
    return _ADAPTER.validate_python({**asdict(script), **changes})


def uniform(*key: object) -> float:
    """A number in (0, 1) that depends on the key alone."""
    digest = blake2b("\x1f".join(map(str, key)).encode(), digest_size=7).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**56


def draw_key(script: Script, digest: str, attempt: int, arrival: int) -> str:
    """The key of a request's draws, by the script's ``decided_by``."""
    if script.decided_by == "content":
        return digest
    return f"{digest}/{attempt}" if script.decided_by == "attempt" else str(arrival)


def draw_fault(shares: Mapping[str, float], seed: int, key: str) -> str | None:
    """The fault drawn for a request, or ``None``."""
    if not shares:
        return None
    position = uniform(seed, "fault", key)
    for fault, share in shares.items():
        position -= share
        if position < 0:
            return fault
    return None


def draw_latency_s(script: Script, key: str) -> float:
    """Seconds before the answer."""
    if script.latency_s == 0 or script.latency_sigma == 0:
        return script.latency_s
    return script.latency_s * math.exp(script.latency_sigma * _normal().inv_cdf(uniform(script.seed, "latency", key)))


@lru_cache(maxsize=1)
def _normal() -> NormalDist:
    return NormalDist()
