"""A third-party OpenAI-compatible server: llama.cpp's, from the package xllamacpp, with the packaged GGUF."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from actors.backends.openai import OpenAIBackend, identify
from actors.backends.weights import locate
from potstill.config.teacher import EmbeddedTeacher, OpenAITeacher
from potstill.errors import TeacherError
from potstill.rows import Message, Request, Response, Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs `pip install xllamacpp`"),
]

KEY = "sk-of-the-llama-0123456789"
SERVER = Path(__file__).resolve().parents[2] / "support/llama_server.py"
QUESTION = "Classes:\n{}\n\nText: {}\n\nAnswer with the code of one class and nothing else."
Result = TypeVar("Result")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    weights = locate(EmbeddedTeacher())
    assert weights.gguf is not None
    command = [sys.executable, str(SERVER), str(weights.folder / weights.gguf), "--key", KEY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            lines = iter(server.stdout.readline, "")
            yield next(line for line in lines if line.startswith("listening")).split()[-1]
        finally:
            server.kill()


@pytest.fixture
def teacher(address: str, monkeypatch: pytest.MonkeyPatch) -> OpenAITeacher:
    monkeypatch.setenv("LLAMA_KEY", KEY)
    return OpenAITeacher(kind="openai", model="smollm2", base_url=address, api_key_env="LLAMA_KEY", timeout_s=300)


def drive(config: OpenAITeacher, use: Callable[[OpenAIBackend], Awaitable[Result]]) -> Result:
    """Return the result of ``use`` on a backend after its trial request."""

    async def run() -> Result:
        backend = OpenAIBackend(config)
        try:
            await backend.probe()
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(run())


def answer(config: OpenAITeacher, *requests: Request) -> list[Response]:
    """Send all requests concurrently and return the answers; none may fail."""

    async def use(backend: OpenAIBackend) -> list[Response]:
        sent = await asyncio.gather(*map(backend.send, requests))
        for one in sent:
            assert one.failure is None, one.failure
        return [one.response for one in sent if one.response is not None]

    return drive(config, use)


def make_request(config: OpenAITeacher, text: str, choices: tuple[str, ...] = (), tokens: int = 24) -> Request:
    identity = identify(config)
    sampling = Sampling(0.0 if choices else 0.8, 0.95, tokens, () if choices else ("\n",))
    messages = (Message("user", text),)
    return Request("s", "t", "s", "codes", identity.provider, identity.model, None, messages, sampling, choices)


def test_the_trial_finds_structured_output_and_log_probabilities(teacher: OpenAITeacher) -> None:
    async def abilities(backend: OpenAIBackend) -> tuple[bool, bool, bool]:
        return backend.abilities.schema, backend.abilities.logprobs, backend.abilities.temperature

    assert drive(teacher, abilities) == (True, True, True)


def test_it_writes_texts(teacher: OpenAITeacher) -> None:
    wanted = [make_request(teacher, f"Write one short question about {topic}.") for topic in ("cities", "cats")]
    for response in answer(teacher, *wanted):
        assert response.text.strip()
        assert "\n" not in response.text.strip()
        assert 0 < response.completion_tokens <= 24
        assert response.prompt_tokens > 0
        assert response.finish_reason in ("stop", "length")


def test_it_chooses_with_a_probability_for_every_class(teacher: OpenAITeacher) -> None:
    classes = ("asks about a number", "asks about a person", "asks about a place")
    listed = "\n".join(f"{code}. {name}" for code, name in zip("ABC", classes, strict=True))
    texts = ("Where is Paris?", "How many legs has a spider?")
    asked = [make_request(teacher, QUESTION.format(listed, text), classes, tokens=16) for text in texts]
    for response in answer(teacher, *asked):
        assert len(response.choice_logprobs) == 3
        assert None not in response.choice_logprobs
        mass = sum(math.exp(value) for value in response.choice_logprobs if value is not None)
        assert response.residual_mass is not None
        # The server reports the distribution before the grammar applies, so other tokens have some mass.
        assert mass + response.residual_mass == pytest.approx(1.0, abs=1e-3)
        assert mass > 0.05


def test_class_names_are_used_where_letters_run_out(teacher: OpenAITeacher) -> None:
    names = tuple(f"intent number {number}" for number in range(77))
    text = "Classes:\n" + "\n".join(names) + "\n\nText: My card was charged twice. Which class?"
    (response,) = answer(teacher, make_request(teacher, text, names, tokens=16))
    assert sum(value is not None for value in response.choice_logprobs) == 1
    assert response.finish_reason == "stop"


def test_a_prompt_that_is_too_long_is_a_final_failure(teacher: OpenAITeacher) -> None:
    async def use(backend: OpenAIBackend) -> None:
        sent = await backend.send(make_request(teacher, "word " * 6000))
        assert sent.failure is not None
        assert sent.failure.kind == "final"
        assert "context" in sent.failure.message

    drive(teacher, use)


def test_a_wrong_key_stops_at_the_trial(teacher: OpenAITeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_KEY", KEY[::-1])
    with pytest.raises(TeacherError, match=r"^teacher\.api_key_env = 'LLAMA_KEY': .* refuses its key") as caught:
        answer(teacher)
    assert KEY[::-1] not in str(caught.value)
