"""Measure the endpoint's own capacity: handwritten HTTP over 32 connections, no latency."""

from __future__ import annotations

import asyncio
import json
import time
from urllib.parse import urlsplit

import psutil
from workload import MAX_TOKENS, MODEL, messages

from tests.endpoint.client import Endpoint

CONNECTIONS = 32


def measure_endpoint(requests: int = 4000) -> dict[str, float]:
    """Return requests per second and requests per CPU second of the endpoint."""
    with Endpoint(book_characters=80) as endpoint:
        address = urlsplit(endpoint.base_url)
        assert address.hostname is not None
        assert address.port is not None
        process = psutil.Process(endpoint.pid)
        asyncio.run(_ask_all(address.hostname, address.port, "warm-up", CONNECTIONS))
        cpu, begun = sum(process.cpu_times()[:2]), time.perf_counter()
        asyncio.run(_ask_all(address.hostname, address.port, "capacity", requests))
        seconds, cpu = time.perf_counter() - begun, sum(process.cpu_times()[:2]) - cpu
    return {"endpoint_per_s": requests / seconds, "endpoint_per_cpu_s": requests / cpu}


async def _ask_all(host: str, port: int, tag: str, count: int) -> None:
    numbers = iter(range(count))

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for number in numbers:
            body = json.dumps(
                {"model": MODEL, "messages": messages(tag, number), "temperature": 1.0, "max_tokens": MAX_TOKENS}
            ).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not answer.startswith(b"http/1.1 200"):
                raise RuntimeError(f"the endpoint answers {answer[:40]!r}")
            await reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
