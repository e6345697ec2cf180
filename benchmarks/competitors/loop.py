"""A bare asyncio loop around the ``openai`` client. ``transport``: "aiohttp" or "httpx"."""

from __future__ import annotations

import asyncio

from workload import MAX_TOKENS, MODEL, messages, options, serve


def main() -> None:
    """Run one client with a coroutine per request in flight; each takes the next number when done."""
    from openai import AsyncOpenAI, DefaultAioHttpClient, DefaultAsyncHttpxClient

    told = options()
    http = DefaultAioHttpClient if told["transport"] == "aiohttp" else DefaultAsyncHttpxClient

    async def work() -> dict[str, int]:
        numbers = iter(range(told["requests"]))
        texts: list[str | None] = []
        async with AsyncOpenAI(base_url=told["base_url"], api_key="none", max_retries=0, http_client=http()) as client:

            async def ask() -> None:
                for number in numbers:
                    answer = await client.chat.completions.create(
                        model=MODEL,
                        messages=messages("loop", number),  # type: ignore[arg-type]
                        temperature=1.0,
                        top_p=1.0,
                        max_tokens=MAX_TOKENS,
                    )
                    texts.append(answer.choices[0].message.content)

            await asyncio.gather(*(ask() for _ in range(told["in_flight"])))
        return {"answered": sum(text is not None for text in texts)}

    serve(lambda: asyncio.run(work()))


if __name__ == "__main__":
    main()
