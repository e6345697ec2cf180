"""What prompts and requests must know of a teacher, and the interface that every backend implements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from potstill.rows import Request, Response


@dataclass(frozen=True, slots=True)
class TeacherIdentity:
    """The part of a teacher that enters every request's content hash."""

    provider: str
    model: str
    weights_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher and the ``renderer`` that puts prompts into words for it (``potstill.prompts.render``)."""

    identity: TeacherIdentity
    renderer: str


class TeacherBackend(Protocol):
    """Answers requests: one response each, in the order given. A request that fails gets a response with ``error``;
    it never fails the batch."""

    identity: TeacherIdentity

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """Sampled replies to requests without ``choices``."""
        ...

    def choose(self, requests: Sequence[Request]) -> list[Response]:
        """The raw log-probability of every one of each request's ``choices``."""
        ...
