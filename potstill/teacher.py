"""A teacher's identity, and the interface that every backend implements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from potstill.rows import Request, Response


@dataclass(frozen=True, slots=True)
class TeacherIdentity:
    """The part of a teacher that enters each request's content hash."""

    provider: str
    model: str
    weights_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher and the ``renderer`` of its prompts (``potstill.prompts.render``)."""

    identity: TeacherIdentity
    renderer: str


class TeacherBackend(Protocol):
    """Returns one response per request, in order. A failed request gets a response with ``error``; it never fails the
    batch."""

    identity: TeacherIdentity

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """Sampled replies to requests without ``choices``."""
        ...

    def choose(self, requests: Sequence[Request]) -> list[Response]:
        """The raw log-probability of each of a request's ``choices``."""
        ...
