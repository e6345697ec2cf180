"""Requests and a teacher for batch tests."""

from __future__ import annotations

from typing import Any

from actors.backends.identity import identify
from potstill.config.teacher import OpenAITeacher
from potstill.rows import Message, Request, Sampling
from tests.endpoint.client import Endpoint

PRICE = {"prompt": 1.0, "completion": 2.0}


def teacher(endpoint: Endpoint, **changes: Any) -> OpenAITeacher:
    """A teacher in batch mode with frequent polling."""
    settings: dict[str, Any] = {
        "kind": "openai",
        "model": "scripted-1",
        "base_url": endpoint.base_url,
        "api_key_env": "",
        "mode": "batch",
        "batch_poll_s": 0.1,
        "price": PRICE,
    }
    return OpenAITeacher(**{**settings, **changes})


def requests(config: OpenAITeacher, count: int, choices: tuple[str, ...] = ()) -> list[Request]:
    """``count`` distinct requests."""
    identity = identify(config)
    sampling = Sampling(max_tokens=40)
    return [
        Request(
            "generate",
            "t",
            "s",
            "codes",
            identity.provider,
            identity.model,
            None,
            (Message("user", f"Write 2 examples. Number {i}."),),
            sampling,
            choices,
        )
        for i in range(count)
    ]
