"""The endpoint's own book: what it was asked and what it answered, to be compared with a ledger.

One line a request, in order of arrival; a request that is still open has no status.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from hashlib import blake2b
from operator import attrgetter
from typing import Any

# The fields of a request's content; parameters with two names count as one.
_CONTENT = ("model", "messages", "temperature", "top_p", "stop", "seed", "n", "response_format", "logprobs")
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


@dataclass(slots=True)
class Entry:
    """One request. Times are seconds since the epoch; tokens are those of ``usage``, 0 where none was sent."""

    number: int  # in order of arrival, from 0
    arrived: float
    route: str  # "chat", "batch" (a line of a batch), "models", "files", "batches", "other"
    digest: str = ""  # of model, messages and sampling: ``content_digest``
    attempt: int = 0  # how often this content had been asked before
    prompt: str = ""  # the last message, its first ``book_characters``
    client_request_id: str = ""  # the client's X-Client-Request-Id header, or a batch line's custom_id
    status: int | None = None  # the status line that was sent; None: none (yet)
    whole: bool = False  # the answer's last byte was handed to the connection while it was open
    fault: str = ""  # the scripted fault
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ended: float | None = None

    @property
    def answered(self) -> bool:
        """Whether the client got an answer worth paying for: a 200, whole."""
        return self.whole and self.status == 200


_NAMES = tuple(field.name for field in fields(Entry))
_values = attrgetter(*_NAMES)


def content_digest(body: Mapping[str, Any]) -> str:
    """Digest of what a request asks: model, messages and sampling. The limit counts the same under both names."""
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    asked = [body.get(name) for name in _CONTENT]
    return blake2b(_canonical([*asked, body.get("top_logprobs"), limit]).encode(), digest_size=16).hexdigest()


def last_message(body: Mapping[str, Any]) -> str:
    """The text of the last message; parts of a message are joined."""
    messages = body.get("messages") or [{}]
    content = messages[-1].get("content") if isinstance(messages[-1], Mapping) else None
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


class Book:
    """All entries, in memory: about half a kB each, plus the prompt's text."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._asked: dict[str, int] = {}

    def clear(self) -> None:
        """Delete all entries and attempt counts."""
        self.entries.clear()
        self._asked.clear()

    def open(self, route: str, arrived: float) -> Entry:
        """A new entry at its end."""
        entry = Entry(len(self.entries), arrived, route)
        self.entries.append(entry)
        return entry

    def describe(self, entry: Entry, body: Mapping[str, Any], client_request_id: str, characters: int) -> None:
        """Fill in what was asked, and how often it had been before."""
        entry.digest = content_digest(body)
        entry.prompt = last_message(body)[:characters]
        entry.client_request_id = client_request_id
        entry.attempt = self._asked.get(entry.digest, 0)
        self._asked[entry.digest] = entry.attempt + 1

    def lines(self, since: int = 0) -> Iterator[bytes]:
        """Entries as JSON lines, from number ``since`` on, a thousand at a time."""
        for start in range(since, len(self.entries), 1000):
            chosen = map(_values, self.entries[start : start + 1000])
            yield "".join(json.dumps(dict(zip(_NAMES, row, strict=True))) + "\n" for row in chosen).encode()

    def summary(self) -> dict[str, Any]:
        """Totals, so that the reader need not fetch all lines."""
        chat = [entry for entry in self.entries if entry.route in ("chat", "batch")]
        return {
            "requests": len(self.entries),
            "asked": len(chat),
            "contents": len(self._asked),
            "answered": sum(entry.answered for entry in chat),
            "by_status": dict(Counter(str(entry.status) for entry in chat)),
            "prompt_tokens": sum(entry.prompt_tokens for entry in chat),
            "completion_tokens": sum(entry.completion_tokens for entry in chat),
        }
