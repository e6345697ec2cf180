"""Files and batches of an OpenAI-compatible endpoint, for one asyncio process.

    api = BatchApi(backend, config)
    file_id = await api.upload(path, "name.jsonl")
    status = await api.create(file_id, key)          # if the reply was lost: find(key, file_id, since)
    status = await api.retrieve(status.batch_id)
    await api.download(status.output_file_id, path)

Calls are repeated while the failure may be transient, except ``create``, which is one attempt. They raise
``ApiFailure``, which says whether the call may have taken effect.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from actors.backends.openai import OpenAIBackend, root_cause
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.batch_files import URL, BatchStatus, looks_whole, read_status
from potstill.endpoint.failures import Failure, backoff_s
from potstill.errors import TeacherError

METADATA = "potstill_batch"  # the metadata field with our key
PAGE = 100
PATIENCE_S = 3600.0  # with an endpoint that does not answer: its batches keep running
DOWNLOADS = 5

T = TypeVar("T")


class ApiFailure(Exception):
    """A failed call. ``status``: HTTP status, ``None`` without a reply. ``certain``: the call had no effect."""

    def __init__(self, failure: Failure, status: int | None, certain: bool) -> None:
        super().__init__(failure.message)
        self.failure, self.status, self.certain = failure, status, certain


class BatchApi:
    """The calls. Shares the backend's client and key."""

    def __init__(self, backend: OpenAIBackend, config: OpenAITeacher) -> None:
        self._backend, self._config = backend, config
        self._files, self._batches = backend.client.files, backend.client.batches

    def explain(self, failure: ApiFailure, what: str) -> TeacherError:
        """The failure as one line that names the field to correct."""
        if failure.failure.kind == "fatal" and failure.status != 404:
            return TeacherError(self._backend.explain(failure.failure))
        return TeacherError(f"teacher.base_url = {self._config.base_url!r}: {what}: {failure.failure.message}")

    async def check(self) -> None:
        """Raise ``TeacherError`` if the endpoint has no batches, or not for this key."""
        try:
            await self._list(None, 1)
        except ApiFailure as failure:
            if failure.status in (404, 405, 501):
                raise TeacherError(
                    f"teacher.mode = 'batch': {self._config.base_url} has no batches ({failure.failure.message}); "
                    "set mode: realtime"
                ) from failure
            if failure.failure.kind in ("fatal", "final"):
                raise self.explain(failure, "its batches can't be listed") from failure

    async def upload(self, path: Path, name: str) -> str:
        """Upload an input file and return its id."""

        async def call() -> str:
            with path.open("rb") as file:
                raw = await self._files.with_raw_response.create(file=(name, file), purpose="batch")
            return str(json.loads(raw.content)["id"])

        return await self._persist(call)

    async def create(self, file_id: str, key: str) -> BatchStatus:
        """Start a batch from an uploaded file."""

        async def call() -> BatchStatus:
            raw = await self._batches.with_raw_response.create(
                input_file_id=file_id, endpoint=URL, completion_window="24h", metadata={METADATA: key}
            )
            return read_status(json.loads(raw.content))

        return await self._attempt(call)

    async def find(self, key: str, file_id: str | None, since: float) -> BatchStatus | None:
        """The batch with this key or input file, if created after ``since`` (seconds since 1970), else ``None``."""
        after: str | None = None
        while True:
            page = await self._list(after, PAGE)
            found = page["data"]
            for one in found:
                of_key = (one.get("metadata") or {}).get(METADATA) == key
                if of_key or (file_id is not None and one.get("input_file_id") == file_id):
                    return read_status(one)
            # Newest first.
            if not page.get("has_more") or not found or (found[-1].get("created_at") or since) < since:
                return None
            after = str(found[-1]["id"])

    async def retrieve(self, batch_id: str) -> BatchStatus:
        """The current status of a batch."""

        async def call() -> BatchStatus:
            return read_status(json.loads((await self._batches.with_raw_response.retrieve(batch_id)).content))

        return await self._persist(call)

    async def download(self, file_id: str, path: Path, lines: int) -> None:
        """Stream a file to ``path``, and fetch it again if it has fewer than ``lines`` lines.

        The requests of missing lines would be asked, and paid, again.
        """

        async def call() -> None:
            async with self._files.with_streaming_response.content(file_id) as response:
                await response.stream_to_file(path)

        for attempt in range(1, DOWNLOADS + 1):
            await self._persist(call)
            with path.open("rb") as file:
                if looks_whole(file, lines):
                    return
            await asyncio.sleep(backoff_s(attempt, random.random()))

    async def _list(self, after: str | None, limit: int) -> dict[str, Any]:
        backend = self._backend

        async def call() -> dict[str, Any]:
            place = backend.openai.omit if after is None else after
            page = json.loads((await self._batches.with_raw_response.list(limit=limit, after=place)).content)
            if not isinstance(page.get("data"), list) or not all(isinstance(one, dict) for one in page["data"]):
                raise ValueError("no list")
            return page

        return await self._persist(call)

    async def _persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Retry while the failure may be transient."""
        until, attempt = time.monotonic() + PATIENCE_S, 0
        while True:
            try:
                return await self._attempt(call)
            except ApiFailure as failure:
                attempt += 1
                if failure.failure.kind in ("final", "fatal") or time.monotonic() > until:
                    raise
                await asyncio.sleep(backoff_s(attempt, random.random(), failure.failure.retry_after_s))

    async def _attempt(self, call: Callable[[], Awaitable[T]]) -> T:
        backend = self._backend
        openai = backend.openai
        try:
            return await call()
        except openai.APIStatusError as error:
            failure = backend.classify(error.status_code, error.body, error.message, error.response.headers)
            # `from None`: the endpoint's message in a traceback may contain the key.
            raise ApiFailure(failure, error.status_code, certain=failure.kind != "transient") from None
        except openai.APIConnectionError as error:
            raise ApiFailure(Failure("transient", backend.hide(root_cause(error))), None, certain=False) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ApiFailure(Failure("transient", "the reply is not the expected JSON"), None, certain=False) from error
