"""Files and batches like OpenAI's: a JSONL file in, a batch over it, an output and an error file out.

    validating -> in_progress -> finalizing -> completed | expired
    validating -> failed            in_progress -> cancelling -> cancelled

Batches run without being polled. Output lines are in another order than input lines.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.endpoint.answers import count_prompt_tokens, token_limit
from tests.endpoint.behaviour import CONNECTION_FAULTS, Script, uniform
from tests.endpoint.outcomes import Outcome, invalid

CHAT_URL = "/v1/chat/completions"
DAY_S = 86_400
OPEN = ("validating", "in_progress", "finalizing", "cancelling")
AnswerLine = Callable[[Mapping[str, Any], str], Outcome]


@dataclass(slots=True)
class File:
    """A stored file and its description in the API."""

    id: str
    content: bytes
    filename: str
    purpose: str
    created_at: int = field(default_factory=lambda: int(time.time()))

    def described(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass(slots=True)
class Batch:
    """A batch's own record; ``fields`` is the API's object."""

    fields: dict[str, Any]
    lines: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    hurried: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> str:
        return str(self.fields["status"])

    def become(self, status: str) -> None:
        """Set the status and its time."""
        self.fields["status"] = status
        self.fields[f"{status}_at"] = int(time.time())


class Batches:
    """The store of files and batches. ``script`` is asked for when needed, since it changes while batches run."""

    def __init__(self, script: Callable[[], Script], answer: AnswerLine) -> None:
        self._script = script
        self._answer = answer
        self._files: dict[str, File] = {}
        self._batches: dict[str, Batch] = {}
        self._running: set[asyncio.Task[None]] = set()

    # -- files

    def add_file(self, content: bytes, filename: str, purpose: str) -> Outcome:
        if purpose not in ("batch", "batch_output"):
            return invalid(f"'{purpose}' is not one of ['batch'] - 'purpose'", "purpose")
        file = File(f"file-{len(self._files) + 1:08d}", content, filename, purpose)
        self._files[file.id] = file
        return _sent(file.described())

    def list_files(self) -> Outcome:
        return _listed([file.described() for file in reversed(self._files.values())])

    def describe_file(self, file_id: str) -> Outcome:
        file = self._files.get(file_id)
        return _no_file(file_id) if file is None else _sent(file.described())

    def read_file(self, file_id: str) -> Outcome:
        file = self._files.get(file_id)
        if file is None:
            return _no_file(file_id)
        return Outcome(200, file.content, "application/octet-stream")

    def delete_file(self, file_id: str) -> Outcome:
        if self._files.pop(file_id, None) is None:
            return _no_file(file_id)
        return _sent({"id": file_id, "object": "file", "deleted": True})

    # -- batches

    def create(self, wanted: Mapping[str, Any]) -> Outcome:
        """A new batch, which starts at once."""
        if wanted.get("endpoint") != CHAT_URL:
            return invalid(f"Invalid value: {wanted.get('endpoint')!r}.", "endpoint", "invalid_value")
        if wanted.get("completion_window") != "24h":
            return invalid("Invalid value: only '24h' is supported.", "completion_window", "invalid_value")
        if wanted.get("input_file_id") not in self._files:
            return _no_file(str(wanted.get("input_file_id")))
        now = int(time.time())
        fields: dict[str, Any] = {
            "id": f"batch_{len(self._batches) + 1:08d}",
            "object": "batch",
            "status": "validating",
        }
        fields |= {name: wanted[name] for name in ("endpoint", "input_file_id", "completion_window")}
        fields |= {"errors": None, "output_file_id": None, "error_file_id": None, "created_at": now}
        fields |= {"expires_at": now + DAY_S, "metadata": wanted.get("metadata"), "in_progress_at": None}
        fields["request_counts"] = {"total": 0, "completed": 0, "failed": 0}
        batch = self._batches[fields["id"]] = Batch(fields)
        task = asyncio.get_running_loop().create_task(self._run(batch))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return _sent(fields)

    def list_batches(self, limit: int = 20, after: str | None = None) -> Outcome:
        """Batches, newest first, ``limit`` of them, from the one behind ``after``."""
        known = [batch.fields for batch in reversed(self._batches.values())]
        ids = [fields["id"] for fields in known]
        known = known[ids.index(after) + 1 :] if after in ids else known
        return _listed(known[:limit], has_more=len(known) > limit)

    def describe(self, batch_id: str) -> Outcome:
        batch = self._batches.get(batch_id)
        return _no_batch(batch_id) if batch is None else _sent(batch.fields)

    def cancel(self, batch_id: str) -> Outcome:
        batch = self._batches.get(batch_id)
        if batch is None:
            return _no_batch(batch_id)
        if batch.status not in ("validating", "in_progress"):
            return invalid(f"Cannot cancel a batch with status '{batch.status}'.", status=409)
        batch.become("cancelling")
        batch.cancelled.set()
        return _sent(batch.fields)

    def hurry(self) -> None:
        """Let running batches finish at once."""
        for batch in self._batches.values():
            batch.hurried.set()

    def forget(self) -> None:
        """Delete all files and batches."""
        self._files.clear()
        self._batches.clear()

    async def close(self) -> None:
        """Stop running batches."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, batch: Batch) -> None:
        script = self._script()
        if await _passed(batch, script.batch_validating_s):
            problems = self._read_lines(batch)
            if problems:
                batch.fields["errors"] = {"object": "list", "data": problems}
                batch.become("failed")
                return
            batch.fields["request_counts"]["total"] = len(batch.lines)
            batch.become("in_progress")
        await self._answer_lines(batch, script.batch_running_s)

    def _read_lines(self, batch: Batch) -> list[dict[str, Any]]:
        """Parse the input file; return its errors as the API words them."""
        script, seen, problems, tokens = self._script(), set(), [], 0
        file = self._files.get(batch.fields["input_file_id"])
        for number, line in enumerate((file.content if file else b"").splitlines(), 1):
            parsed, code, message = _parse_line(line)
            if code is None and parsed["custom_id"] in seen:
                code, message = "duplicate_custom_id", f"The custom_id '{parsed['custom_id']}' is used more than once."
            if code is not None:
                problems.append({"code": code, "message": message, "line": number, "param": None})
                continue
            seen.add(parsed["custom_id"])
            batch.lines.append(parsed)
            tokens += count_prompt_tokens(parsed["body"]) + (token_limit(parsed["body"]) or 0)
        general = {"line": None, "param": None}
        if script.batch_failure:
            problems.append({"code": "model_not_found", "message": script.batch_failure, **general})
        if not batch.lines and not problems:
            problems.append({"code": "empty_file", "message": "The input file is empty.", **general})
        if len(batch.lines) > script.batch_max_lines:
            message = f"The input file has more than {script.batch_max_lines} requests."
            problems.append({"code": "max_requests_exceeded", "message": message, **general})
        batch.tokens = tokens
        enqueued = sum(one.tokens for one in self._batches.values() if one.status in OPEN)
        if script.batch_token_limit is not None and enqueued > script.batch_token_limit:
            batch.tokens = 0
            message = f"Enqueued token limit reached. Limit: {script.batch_token_limit} enqueued tokens. Please try again once some in_progress batches have been completed."
            problems.append({"code": "token_limit_exceeded", "message": message, **general})
        return problems

    async def _answer_lines(self, batch: Batch, running_s: float) -> None:
        """Answer the lines, spread over ``running_s``, until they are done or the batch is cancelled."""
        script, batch_id = self._script(), batch.fields["id"]
        order = sorted(batch.lines, key=lambda line: uniform(script.seed, batch_id, line["custom_id"]))
        late = round(script.batch_expired_share * len(order))
        output: list[bytes] = []
        errors: list[bytes] = []
        counts = batch.fields["request_counts"]
        started = time.monotonic()
        for i, line in enumerate(order[: len(order) - late]):
            if i % 50 == 0 and not await _passed(batch, started + running_s * i / len(order) - time.monotonic()):
                break
            outcome = self._answer(line["body"], line["custom_id"])
            lost = outcome.fault in CONNECTION_FAULTS
            (errors if lost or outcome.status != 200 else output).append(_result(batch_id, i, line, outcome, lost))
            counts["failed" if lost or outcome.status != 200 else "completed"] += 1
        else:
            await _passed(batch, started + running_s - time.monotonic())
        cancelled = batch.cancelled.is_set()
        if not cancelled:
            batch.become("finalizing")
            expired = "This request could not be executed before the completion window expired."
            for line in order[len(order) - late :]:
                errors.append(_failure(batch_id, len(errors), line, "batch_expired", expired))
                counts["failed"] += 1
        for name, lines in (("output", output), ("error", errors)):
            if lines:
                stored = self.add_file(b"".join(lines), f"{batch_id}_{name}.jsonl", "batch_output")
                batch.fields[f"{name}_file_id"] = json.loads(stored.payload)["id"]
        batch.become("cancelled" if cancelled else "expired" if late else "completed")


async def _passed(batch: Batch, seconds: float) -> bool:
    """Wait, yielding to other tasks at least once; False if the batch was cancelled."""
    events = [asyncio.ensure_future(event.wait()) for event in (batch.cancelled, batch.hurried)]
    try:
        await asyncio.wait(events, timeout=max(seconds, 0.001), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for event in events:
            event.cancel()
    return not batch.cancelled.is_set()


def _parse_line(line: bytes) -> tuple[dict[str, Any], str | None, str]:
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}, "invalid_json_line", "This line is not parseable as valid JSON."
    if not isinstance(parsed, dict) or not isinstance(parsed.get("custom_id"), str):
        return {}, "missing_required_parameter", "Missing required parameter: 'custom_id'."
    if parsed.get("method") != "POST" or parsed.get("url") != CHAT_URL:
        return {}, "invalid_url", f"The method and URL of this line must be POST {CHAT_URL}."
    if not isinstance(parsed.get("body"), dict):
        return {}, "missing_required_parameter", "Missing required parameter: 'body'."
    return parsed, None, ""


def _result(batch_id: str, number: int, line: Mapping[str, Any], outcome: Outcome, lost: bool) -> bytes:
    if lost:
        return _failure(batch_id, number, line, "server_error", "The request was lost.")
    try:
        body = json.loads(outcome.payload)
    except ValueError:
        body = outcome.payload.decode(errors="replace")
    request = f"{batch_id}-{number}"
    response = {"status_code": outcome.status, "request_id": request, "body": body}
    result = {"id": f"batch_req_{request}", "custom_id": line["custom_id"], "response": response, "error": None}
    return json.dumps(result).encode() + b"\n"


def _failure(batch_id: str, number: int, line: Mapping[str, Any], code: str, message: str) -> bytes:
    result = {
        "id": f"batch_req_{batch_id}-e{number}",
        "custom_id": line["custom_id"],
        "response": None,
        "error": {"code": code, "message": message},
    }
    return json.dumps(result).encode() + b"\n"


def _sent(content: Mapping[str, Any]) -> Outcome:
    return Outcome(200, json.dumps(content).encode())


def _listed(data: list[dict[str, Any]], has_more: bool = False) -> Outcome:
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return _sent({"object": "list", "data": data, **ends, "has_more": has_more})


def _no_file(file_id: str) -> Outcome:
    return invalid(f"No such File object: {file_id}", "id", status=404)


def _no_batch(batch_id: str) -> Outcome:
    return invalid(f"No batch found with id '{batch_id}'.", status=404)
