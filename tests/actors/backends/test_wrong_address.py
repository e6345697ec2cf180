"""The trial request's errors for wrong addresses, with real sockets and real TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from actors.backends.openai import OpenAIBackend
from potstill.config.teacher import OpenAITeacher
from potstill.errors import TeacherError
from tests.support.certificate import make_certificate


class Nothing(BaseHTTPRequestHandler):
    """Answers 404 on every path."""

    def do_POST(self) -> None:
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


def serve(context: ssl.SSLContext | None = None) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def plain() -> Iterator[ThreadingHTTPServer]:
    server = serve()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[ThreadingHTTPServer, Path]]:
    certificate, context = make_certificate(tmp_path)
    server = serve(context)
    yield server, certificate
    server.shutdown()
    server.server_close()


def complaint(base_url: str, timeout_s: float = 20.0) -> str:
    """Return the probe's one-line error."""

    async def work() -> None:
        config = OpenAITeacher(kind="openai", model="m", base_url=base_url, api_key_env="", timeout_s=timeout_s)
        backend = OpenAIBackend(config)
        try:
            await backend.probe()
        finally:
            await backend.close()

    with pytest.raises(TeacherError) as caught:
        asyncio.run(work())
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"teacher.base_url = {base_url!r}: ")


def test_an_untrusted_certificate(secure: tuple[ThreadingHTTPServer, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    server, certificate = secure
    url = f"https://127.0.0.1:{server.server_port}/v1"
    said = complaint(url)
    assert said.startswith("can't be reached: [SSL: CERTIFICATE_VERIFY_FAILED]")
    assert said.endswith("set the environment variable SSL_CERT_FILE to its certificate's file (PEM) on every node")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # the advice works
    assert complaint(url).startswith("it does not serve chat completions (HTTP 404")


def test_https_address_of_a_plain_server(plain: ThreadingHTTPServer) -> None:
    said = complaint(f"https://127.0.0.1:{plain.server_port}/v1")
    assert said.startswith("can't be reached: [SSL")
    assert said.endswith("it does not use TLS; change https:// to http://")


def test_http_address_of_a_tls_server(secure: tuple[ThreadingHTTPServer, Path]) -> None:
    # The system's error depends on which side closes first.
    assert complaint(f"http://127.0.0.1:{secure[0].server_port}/v1").startswith("can't be reached: ")


def test_no_such_host() -> None:
    said = complaint("http://no-such-host.invalid/v1")
    assert said.startswith("can't be reached: ")
    assert "correct the name" in said or "check the network" in said


def test_nothing_listens_there() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        said = complaint(f"http://127.0.0.1:{reserved.getsockname()[1]}/v1")
    assert said.startswith("can't be reached: ")
    assert said.endswith("nothing listens there; start the server, or correct host and port")


def test_something_listens_and_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        said = complaint(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout_s=0.5)
    assert "teacher.timeout_s" in said
    assert "CancelledError" not in said


def test_an_address_without_v1(plain: ThreadingHTTPServer) -> None:
    said = complaint(f"http://127.0.0.1:{plain.server_port}")
    assert said.startswith("it does not serve chat completions (HTTP 404")
    assert said.endswith("; for most endpoints it ends in /v1")
