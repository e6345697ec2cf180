"""Files of OpenAI's Batch API: write requests as JSON lines, read results, and split requests by file size.

    {"custom_id": "5f0c...", "method": "POST", "url": "/v1/chat/completions", "body": {...}}

A line's ``custom_id`` is the request id; its ``body`` is that of a single request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MOST_LINES = 50_000
MOST_BYTES = 190_000_000  # the API allows 200 MB, without saying whether MB or MiB
WINDOW_S = 86_400.0  # a batch expires after this time
ENDED = ("completed", "expired", "failed", "cancelled")

_LIMIT = re.compile(r"limit:\s*([\d,]+)", re.IGNORECASE)
_SPARE = 0.9  # share of the limit to use, since tokens are estimated


@dataclass(frozen=True, slots=True)
class Room:
    """The capacity of a file. ``tokens``: limit of enqueued tokens, None if unknown."""

    lines: int = MOST_LINES
    bytes: int = MOST_BYTES
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A line of an output or error file. ``status`` is None if the request never reached the model; ``body`` is the
    reply or the error body."""

    custom_id: str
    status: int | None
    body: Any
    message: str = ""


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """The API's status of a batch. ``errors``: why it failed, one line each; ``codes``: the error codes."""

    batch_id: str
    state: str
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the batch has reached a final state."""
        return self.state in ENDED

    @property
    def lacks_room(self) -> bool:
        """Whether it failed because too many tokens are enqueued already."""
        return self.state == "failed" and "token_limit_exceeded" in self.codes


def to_line(request_id: str, body: Mapping[str, Any]) -> bytes:
    """The input file's line for a request."""
    content = {"custom_id": request_id, "method": "POST", "url": URL, "body": body}
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def count_fitting(sizes: Iterable[tuple[int, int]], room: Room) -> int:
    """How many of the first lines, given as (bytes, tokens), fit into a file; at least one."""
    count = length = tokens = 0
    for line_bytes, line_tokens in sizes:
        length, tokens = length + line_bytes, tokens + line_tokens
        full = count >= room.lines or length > room.bytes or (room.tokens is not None and tokens > room.tokens)
        if count and full:
            break
        count += 1
    return count


def shrink(room: Room, tokens: int, errors: Iterable[str]) -> Room:
    """The smaller room after a file of ``tokens`` was refused while no other batch of ours was enqueued.

    The new limit is the one named in the errors; half of the file if they name none or the file was within it.
    """
    named = [int(found[1].replace(",", "")) for error in errors if (found := _LIMIT.search(error))]
    fits = int(_SPARE * min(named)) if named else tokens
    return replace(room, tokens=max(1, fits if fits < tokens else tokens // 2))


def read_result(line: bytes) -> Result | None:
    """Parse a line of an output or error file; None if it isn't a result."""
    try:
        content = json.loads(line)
        name = content["custom_id"]
        response, error = content.get("response"), content.get("error")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(name, str):
        return None
    if isinstance(response, dict) and isinstance(response.get("status_code"), int):
        return Result(name, response["status_code"], response.get("body"))
    said = error if isinstance(error, dict) else {}
    message = ": ".join(str(said[key]) for key in ("code", "message") if said.get(key))
    return Result(name, None, None, " ".join(message.split())[:300] or "no reply and no error")


def looks_whole(lines: Iterable[bytes], at_least: int) -> bool:
    """Whether a downloaded file has ``at_least`` lines, none of them cut off. Does not parse JSON."""
    count = 0
    for line in lines:
        line = line.strip()
        if line and not (line.startswith(b"{") and line.endswith(b"}")):
            return False
        count += bool(line)
    return count >= at_least


def read_status(content: Any) -> BatchStatus:
    """Parse the API's batch object. Raises ``ValueError`` for anything else."""
    try:
        counts = content.get("request_counts") or {}
        problems = (content.get("errors") or {}).get("data") or []
        return BatchStatus(
            str(content["id"]),
            str(content["status"]),
            int(counts.get("total") or 0),
            int(counts.get("completed") or 0),
            int(counts.get("failed") or 0),
            content.get("output_file_id") or None,
            content.get("error_file_id") or None,
            tuple(_problem(one) for one in problems),
            tuple(str(one.get("code")) for one in problems),
        )
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError("the reply is not a batch object") from error


def _problem(error: Mapping[str, Any]) -> str:
    where = f" (line {error['line']})" if error.get("line") is not None else ""
    return f"{' '.join(str(error.get('message') or error.get('code')).split())[:300]}{where}"
