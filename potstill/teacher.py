"""The teacher seam: what every backend (embedded, HTTP, vLLM) offers, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from potstill.rows import Request, Response


@dataclass(frozen=True, slots=True)
class TeacherIdentity:
    """What of the teacher is part of every request's content hash."""

    provider: str
    model: str
    weights_digest: str | None = None


class Teacher(Protocol):
    """Answers requests, one response for each, in the order given; a request that fails gets a
    response with ``error``, never an exception for the whole batch."""

    identity: TeacherIdentity

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """Sampled replies to requests without ``choices``."""
        ...

    def choose(self, requests: Sequence[Request]) -> list[Response]:
        """The raw log-probability of every one of each request's ``choices``."""
        ...
