"""A test's handle on the endpoint: start the subprocess, change its script, read its book, end it.

with Endpoint(latency_s=0.2, shares={"500": 0.1}) as endpoint:
    ...  # ask endpoint.base_url
    endpoint.script(shares={})
    assert all(entry.answered for entry in endpoint.book())
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.endpoint.behaviour import Script, change_script, read_script, write_script
from tests.endpoint.book import Entry

ROOT = Path(__file__).resolve().parents[2]
START_S = 300
STOP_S = 10


class Endpoint:
    """A running endpoint of its own process, on a free port of 127.0.0.1 unless ``port`` is given.

    Raises ``ValueError`` for an invalid script, ``RuntimeError`` if the process does not start.
    The process ends with ``close`` or the ``with`` block, and also when this process dies.
    """

    def __init__(self, script: Script | None = None, *, port: int = 0, **changes: Any) -> None:
        wanted = change_script(script or Script(), changes)
        command = [sys.executable, "-m", "tests.endpoint", "--with-parent", "--port", str(port)]
        self._process = subprocess.Popen(
            [*command, "--script", write_script(wanted)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C goes to the test, which then closes this
        )
        try:
            self.base_url = self._first_line().removeprefix("listening on ")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def root_url(self) -> str:
        """``base_url`` without /v1."""
        return self.base_url.removesuffix("/v1")

    def book(self, since: int = 0) -> list[Entry]:
        """All entries, in order of arrival, or those from number ``since`` on."""
        return [Entry(**json.loads(line)) for line in self._fetch(f"/_book?since={since}").splitlines()]

    def clear_book(self) -> None:
        """Empty the book: numbers and attempts start at 0 again. Not while requests are in flight."""
        self._fetch("/_book", method="DELETE")

    def forget_batches(self) -> None:
        """End and forget all batches and files."""
        self._fetch("/_batches", method="DELETE")

    def hurry_batches(self) -> None:
        """Let all running batches finish at once."""
        self._fetch("/_batches/hurry", method="POST")

    def summary(self) -> dict[str, Any]:
        """Totals of a long book: see ``Book.summary``."""
        found: dict[str, Any] = json.loads(self._fetch("/_book/summary"))
        return found

    def script(self, **changes: Any) -> Script:
        """Change fields of the script and return it. Storms start now.

        Raises ``ValueError`` for invalid fields; then nothing changes.
        """
        if not changes:
            return read_script(self._fetch("/_script"))
        try:
            return read_script(self._fetch("/_script", json.dumps(changes).encode(), "PUT"))
        except urllib.error.HTTPError as refused:
            with refused:
                raise ValueError(json.loads(refused.read())["error"]) from None

    def close(self) -> None:
        """End the process (SIGTERM, after 10 s SIGKILL). May be called twice."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _first_line(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline().strip() if ready else ""
        if not line.startswith("listening on "):
            raise RuntimeError(f"the endpoint did not start: {line or 'it said nothing'}")
        return line

    def _fetch(self, path: str, body: bytes | None = None, method: str = "GET") -> str:
        request = urllib.request.Request(self.root_url + path, data=body, method=method)
        # Ignore the environment's proxy: the endpoint is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=300) as response:
            text: str = response.read().decode()
            return text
