"""Prices against the package they come from, token bounds against real tokenizers, times against a simulation."""

import heapq
import math
import socket
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from potstill.endpoint.cost import (
    FREE,
    Price,
    about_tokens,
    at_most_tokens,
    cost,
    expected_seconds,
    find_price,
    worst_case,
)
from potstill.rows import Message

OPENAI = "https://api.openai.com/v1"
MINI = Price(0.15, 0.6, cached_prompt=0.075)
tokens = st.integers(0, 10**6)
dollars = st.floats(0, 100)
flat_prices = st.builds(Price, dollars, dollars, st.none() | dollars, st.none() | dollars, st.floats(0, 1))
prices = flat_prices | st.builds(
    Price, dollars, dollars, st.none() | dollars, st.none() | dollars, st.floats(0, 1),
    st.tuples(st.integers(0, 10**6), flat_prices),
)  # fmt: skip
texts = st.text(st.characters(exclude_categories=()))
messages = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant", "prompt"]), texts), max_size=4)


@pytest.mark.parametrize("where", [OPENAI, "https://API.openai.com/v1/", "api.openai.com", "openai", " OpenAI "])
@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4o-mini-2024-07-18"])
def test_a_listed_model_is_found_by_url_host_or_provider(model, where):
    assert find_price(model, where) == MINI


def test_other_providers_have_other_prices():
    assert find_price("llama-3.1-8b-instant", "https://api.groq.com/openai/v1") == Price(0.05, 0.08)
    assert find_price("gpt-4o-mini", "https://mine.openai.azure.com/openai/v1") == MINI
    tuned = find_price("ft:gpt-4o-mini-2024-07-18:us::x", OPENAI)
    assert tuned is not None
    assert tuned.prompt > MINI.prompt


@pytest.mark.parametrize(
    ("model", "where"),
    [
        ("gpt-4o-mini", "http://localhost:8000/v1"),
        ("gpt-4o-mini", "localhost"),
        ("gpt-4o-mini", "10.0.0.3:8000"),
        ("gpt-4o-mini", "my-openai-proxy"),  # the package mistakes this for OpenAI
        ("gpt-4o-mini", "http://openai:8000/v1"),
        ("gpt-4o-mini", ""),
        ("no-such-model", OPENAI),
        ("", OPENAI),
        ("text-embedding-3-small", OPENAI),  # without a price for completions
    ],
)
def test_an_unlisted_model_has_no_price(model, where):
    assert find_price(model, where) is None


def test_an_override_always_wins():
    mine = Price(1.0, 2.0)
    assert find_price("gpt-4o-mini", OPENAI, mine) is mine
    assert find_price("qwen", "http://localhost:8000/v1", mine) is mine


def test_the_batch_price_is_half():
    batch = find_price("gpt-4o-mini", OPENAI, batch=True)
    assert batch is not None
    assert (batch.prompt, batch.completion) == (MINI.prompt / 2, MINI.completion / 2)


def test_hourly_prices_use_the_highest():
    by_night, by_day = (datetime(2025, 6, 1, hour, tzinfo=UTC) for hour in (20, 3))
    price = find_price("deepseek-chat", "deepseek", now=by_night)
    assert price is not None
    assert price == find_price("deepseek-chat", "deepseek", now=by_day)
    reference = listed_prices("deepseek-chat", "deepseek", [by_night, by_day])
    assert len(set(reference)) == 2
    assert price.prompt == pytest.approx(max(reference))


def listed_prices(model, provider, moments):
    from genai_prices import Usage, calc_price

    usage = Usage(input_tokens=10**6, output_tokens=0)
    return [
        float(calc_price(usage, model, provider_id=provider, genai_request_timestamp=moment).total_price)
        for moment in moments
    ]


def listed_models(now):
    """Every chat model of the package that its own id finds, with our price and the package's own provider."""
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import TimeOfDateConstraint

    for provider in get_snapshot().providers:
        for model in provider.models:
            conditions = model.prices if isinstance(model.prices, list) else []
            by_hour = any(isinstance(one.constraint, TimeOfDateConstraint) for one in conditions)
            price = find_price(model.id, provider.id, now=now)
            if price is not None and not by_hour and provider.find_model(model.id) is model:
                yield provider, model, price


def test_prices_of_listed_chat_models_equal_the_packages():
    from genai_prices import Usage

    now, compared, tiered = datetime.now(UTC), 0, 0
    for provider, model, price in listed_models(now):
        compared, tiered = compared + 1, tiered + (price.above is not None)
        for length in [2000, 190_000, 300_000] if price.above else [2000]:
            usage = Usage(input_tokens=length, output_tokens=300)
            listed = float(model.calc_price(usage, provider, genai_request_timestamp=now).total_price)
            assert cost(price, length, 300) == pytest.approx(listed), (provider.id, model.id)
            assert worst_case(price, length, 300) >= listed * (1 - 1e-12)
    assert compared > 1000
    assert tiered > 50


def test_a_look_up_needs_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a price look-up opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert find_price("gpt-4.1-nano", OPENAI) is not None


def test_the_package_is_imported_with_the_first_look_up():
    script = (
        "import sys, potstill.endpoint.cost as cost; assert 'genai_prices' not in sys.modules;"
        "cost.find_price('gpt-4o-mini', 'openai'); assert 'genai_prices' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


def test_costs_by_hand():
    assert cost(MINI, 1_000_000, 1_000_000) == pytest.approx(0.75)
    assert cost(MINI, 1_000_000, 0, cached_tokens=400_000) == pytest.approx(0.6 * 0.15 + 0.4 * 0.075)
    assert cost(Price(1, 2, cache_write=1.25, request=0.01), 100, 10, written_tokens=40) == pytest.approx(
        (60 + 40 * 1.25 + 10 * 2) / 1e6 + 0.01
    )
    long = Price(1, 2, above=(1000, Price(2, 3)))
    assert cost(long, 1000, 10) == pytest.approx(1020e-6)
    assert cost(long, 1001, 10) == pytest.approx(2032e-6)
    assert cost(FREE, 10**6, 10**6) == worst_case(FREE, 10**6, 10**6) == 0


@pytest.mark.parametrize("used", [(10, 5, 11, 0), (10, 5, 6, 5), (10, 5, -1, 0), (10, -1, 0, 0)])
def test_impossible_token_counts_are_refused(used):
    with pytest.raises(ValueError, match="impossible token counts"):
        cost(MINI, used[0], used[1], cached_tokens=used[2], written_tokens=used[3])


@given(prices, tokens, tokens, st.data())
def test_no_request_costs_more_than_its_worst_case(price, at_most, max_completion, data):
    prompt = data.draw(st.integers(0, at_most))
    completion = data.draw(st.integers(0, max_completion))
    cached = data.draw(st.integers(0, prompt))
    written = data.draw(st.integers(0, prompt - cached))
    spent = cost(price, prompt, completion, cached_tokens=cached, written_tokens=written)
    assert spent <= worst_case(price, at_most, max_completion) * (1 + 1e-12)


@given(flat_prices, tokens, tokens)
def test_the_worst_case_is_no_worse_than_it_can_be(price, prompt, completion):
    candidates = [
        cost(price, prompt, completion),
        cost(price, prompt, completion, cached_tokens=prompt),
        cost(price, prompt, completion, written_tokens=prompt),
    ]
    assert worst_case(price, prompt, completion) == pytest.approx(max(candidates))


CORPUS = [
    "the cat sat on the mat",
    "wo ist der Bahnhof?",
    "\n\n  indented text  ",
    "日本語のテキスト",
    "🦊 fox",
    "a\tb",
]


def byte_level(vocabulary: int) -> Tokenizer:
    """A BPE over bytes, as OpenAI's, Llama 3's and Qwen's are; the smallest vocabulary has bytes only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS * 5, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def byte_fallback() -> Tokenizer:
    """A SentencePiece kind of BPE, as Llama 2's and Gemma's are: unknown characters become bytes."""
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "ab": 4, **{f"<0x{byte:02X}>": byte + 5 for byte in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


@pytest.mark.parametrize("tokenizer", [byte_level(256), byte_level(400), byte_fallback()], ids=["bytes", "bpe", "spm"])
def test_no_tokenizer_exceeds_the_bound(tokenizer):
    @given(st.lists(st.builds(Message, st.just("user"), st.text()), max_size=3))
    def check(prompt):
        counted = sum(len(tokenizer.encode(message.content).ids) for message in prompt)
        assert counted <= at_most_tokens(prompt)

    check()


@given(messages, texts)
def test_the_bound_holds_the_bytes_the_schema_and_the_estimate(prompt, schema):
    bound = at_most_tokens(prompt, schema)
    raw = sum(len(one.encode("utf-8", "surrogatepass")) for one in [schema, *(each.content for each in prompt)])
    assert raw < bound <= raw + 128 + 16 * len(prompt)
    assert about_tokens(prompt) <= at_most_tokens(prompt)


def test_estimates_by_hand():
    assert about_tokens([Message("prompt", "a" * 42)]) == 10
    assert about_tokens([Message("user", "a" * 42)]) == 14
    assert about_tokens([Message("prompt", "地址在哪里")]) == 5
    assert about_tokens([Message("prompt", "주소는" + "a" * 21)]) == 3 + 5
    assert about_tokens([Message("prompt", "où êtes-vous déjà")]) == 4  # accents are no script of their own
    assert about_tokens([]) == 0


@given(
    st.integers(0, 400), st.integers(1, 64), st.floats(0.1, 10), st.none() | st.floats(1, 1e4),
    st.none() | st.floats(1, 1e6), tokens,
)  # fmt: skip
def test_times_match_a_simulation(requests, concurrency, latency_s, per_minute, tokens_per_minute, asked):
    slots = [0.0] * concurrency
    for _ in range(requests):
        heapq.heapreplace(slots, slots[0] + latency_s)
    bounds = [max(slots), 60 * requests / (per_minute or math.inf)]
    if requests:
        bounds.append(60 * asked / (tokens_per_minute or math.inf))
    seconds = expected_seconds(requests, asked, concurrency, latency_s, per_minute, tokens_per_minute)
    assert math.isclose(seconds, max(bounds), rel_tol=1e-9, abs_tol=1e-9)
