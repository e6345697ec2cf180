"""How the endpoint's tests ask it: with the ``openai`` package on its aiohttp transport, and with bare aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import aiohttp
from openai import AsyncOpenAI, DefaultAioHttpClient

from tests.endpoint.client import Endpoint

Result = TypeVar("Result")
KEY = "sk-abcdefghijklmnop"
LABELS = ["A", "B", "C", "D", "E", "F"]


def chat(prompt: str = "Say something.", **changes: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "scripted-1", "messages": [{"role": "user", "content": prompt}], **changes}


def enum_format(values: Sequence[str]) -> dict[str, Any]:
    """A ``response_format`` that admits one of the values, under "label"."""
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(values)}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def with_client(
    endpoint: Endpoint, use: Callable[[AsyncOpenAI], Awaitable[Result]], *, key: str = KEY, timeout_s: float = 60
) -> Result:
    """What ``use`` returns for a client that never retries."""

    async def run() -> Result:
        http = DefaultAioHttpClient(trust_env=False, timeout=timeout_s)
        async with AsyncOpenAI(
            api_key=key, base_url=endpoint.base_url, max_retries=0, http_client=http, timeout=timeout_s
        ) as client:
            return await use(client)

    return asyncio.run(run())


def ask(endpoint: Endpoint, prompt: str = "Say something.", *, key: str = KEY, timeout_s: float = 60, **changes: Any):
    """One chat completion by the ``openai`` package, or the error it raises."""
    body = chat(prompt, **changes)
    return with_client(endpoint, lambda client: client.chat.completions.create(**body), key=key, timeout_s=timeout_s)


def ask_all(endpoint: Endpoint, prompts: Sequence[str], *, at_once: int = 1000, **changes: Any) -> list[Any]:
    """A completion or an exception for each prompt; ``at_once`` of them in flight at a time."""

    async def use(client: AsyncOpenAI) -> list[Any]:
        places = asyncio.Semaphore(at_once)

        async def one(prompt: str) -> Any:
            async with places:
                return await client.chat.completions.create(**chat(prompt, **changes))

        return await asyncio.gather(*map(one, prompts), return_exceptions=True)

    return with_client(endpoint, use)


def post(endpoint: Endpoint, body: Any, path: str = "/chat/completions", **headers: str):
    """(status, headers, body) of a POST of JSON, or of bytes as they are."""

    async def run():
        data = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with (
            aiohttp.ClientSession() as session,
            session.post(endpoint.base_url + path, headers=headers, **data) as response,
        ):
            return response.status, response.headers, await response.read()

    return asyncio.run(run())
