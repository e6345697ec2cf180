"""Estimate a teacher's costs, the tokens of a prompt and the duration of a stage. No network, no tokenizer.

Prices are bundled with the package ``genai-prices``, which fetches nothing unless told to. It is imported on the first
look-up, since the import takes 0.2 to 0.7 s (it includes an HTTP client).

Most teachers' tokenizers are not available, so there are two counts: ``about_tokens`` for plans, within 20 % for
English, and ``at_most_tokens`` for budgets, about four times as high for English and never too low.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from potstill.config.teacher import OpenAITeacher
from potstill.rows import Message

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

PER_MILLION = 1e-6
CHARACTERS_PER_TOKEN = 4.2
CHAT_MESSAGE_TOKENS = 4  # role and separators in most chat templates

# Upper bounds: some templates add more per message, and some put a long default prompt before the first.
MOST_MESSAGE_TOKENS = 16
MOST_TEMPLATE_TOKENS = 128

# Scripts without spaces: Thai, Lao, Tibetan, Burmese, Khmer, kana, CJK and Hangul, half- and full-width forms.
_DENSE = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\ua4cf\ua960-\ua97f\uaa60-\uaa7f"
    "\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U0001b000-\U0001b2ff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True, slots=True)
class Price:
    """A model's prices in dollars per million tokens; ``request`` in dollars per request.

    ``cached_prompt`` and ``cache_write`` apply to prompt tokens read from or written to the server's cache (None: same
    as ``prompt``). ``above``: for prompts with more than that many tokens, the other price applies to the whole request.
    """

    prompt: float
    completion: float
    cached_prompt: float | None = None
    cache_write: float | None = None
    request: float = 0.0
    above: tuple[int, Price] | None = None


FREE = Price(0.0, 0.0)


def find_price(
    model: str, where: str, override: Price | None = None, *, batch: bool = False, now: datetime | None = None
) -> Price | None:
    """The price of a chat model at a provider; None if unknown, as for a private server.

    ``where`` is a base URL (``https://api.groq.com/openai/v1``), its host, or a provider id (``groq``). An ``override``
    takes precedence. ``batch``: the price of batch processing if listed. If prices vary by hour, returns the highest on
    the day of ``now`` (default: today). Listed prices can be outdated, and a new model may get the price of the model
    whose name is a prefix of its own.
    """
    if override is not None:
        return override
    found = _find_model(model, where)
    if found is None:
        return None
    provider, listed = found
    # A model priced by prefix match has no batch price of its own.
    own = any(listed is one for one in provider.models)
    context = {"processing": "batch"} if batch and own else None
    day = (now or datetime.now(UTC)).astimezone(UTC)
    hours = {day, *(day.replace(hour=hour, minute=59) for hour in range(24))} if _by_the_hour(listed) else {day}
    prices = [price for hour in sorted(hours) if (price := _to_price(listed.get_prices(hour, context))) is not None]
    return _dearest(prices)


def own_price(teacher: OpenAITeacher) -> Price | None:
    """The price in the config, if any."""
    return Price(teacher.price.prompt, teacher.price.completion) if teacher.price is not None else None


def teacher_price(teacher: OpenAITeacher) -> Price | None:
    """The teacher's price in its mode; None if unknown. Without a listed batch price, the realtime price is assumed."""
    return find_price(teacher.model, teacher.base_url, own_price(teacher), batch=teacher.mode == "batch")


def cost(
    price: Price, prompt_tokens: int, completion_tokens: int, *, cached_tokens: int = 0, written_tokens: int = 0
) -> float:
    """Cost of one request in dollars. ``prompt_tokens`` includes the ``cached_tokens`` read from the server's cache and
    the ``written_tokens`` written to it. Raises ``ValueError`` if they exceed it or a count is negative."""
    while price.above is not None and prompt_tokens > price.above[0]:
        price = price.above[1]
    plain = prompt_tokens - cached_tokens - written_tokens
    if min(plain, cached_tokens, written_tokens, completion_tokens) < 0:
        raise ValueError(
            f"impossible token counts: {prompt_tokens} prompt tokens, {cached_tokens} of them cached and "
            f"{written_tokens} written, and {completion_tokens} completion tokens"
        )
    cached = price.prompt if price.cached_prompt is None else price.cached_prompt
    written = price.prompt if price.cache_write is None else price.cache_write
    prompt = plain * price.prompt + cached_tokens * cached + written_tokens * written
    return (prompt + completion_tokens * price.completion) * PER_MILLION + price.request


def worst_case(price: Price, prompt_tokens: int, max_completion_tokens: int) -> float:
    """Upper bound on the cost of one request, in dollars, to reserve from the budget before sending it.

    ``prompt_tokens`` is an upper bound (``at_most_tokens``); price tiers that make a shorter prompt dearer are covered.
    """
    worst, tokens, step = 0.0, prompt_tokens, price
    while True:
        # The longest prompt in this price tier; then the next tier.
        longest = tokens if step.above is None else min(tokens, step.above[0])
        dearest = max(step.prompt, step.cached_prompt or 0.0, step.cache_write or 0.0)
        worst = max(worst, (longest * dearest + max_completion_tokens * step.completion) * PER_MILLION + step.request)
        if step.above is None or tokens <= step.above[0]:
            return worst
        step = step.above[1]


def about_tokens(messages: Sequence[Message]) -> int:
    """Estimated tokens of a prompt: one per character in scripts without spaces, one per 4.2 characters in others."""
    characters = dense = around = 0
    for message in messages:
        characters += len(message.content)
        if not message.content.isascii():
            dense += sum(1 for _ in _DENSE.finditer(message.content))
        around += CHAT_MESSAGE_TOKENS * (message.role != "prompt")
    return around + dense + round((characters - dense) / CHARACTERS_PER_TOKEN)


def at_most_tokens(messages: Sequence[Message], schema: str = "") -> int:
    """Upper bound on a prompt's tokens for any byte-level BPE: one per UTF-8 byte, plus the chat template's.

    ``schema`` is the JSON schema of structured output, which servers prepend to the prompt.
    """
    texts = [schema, *(message.content for message in messages)]
    written = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return written + MOST_MESSAGE_TOKENS * len(messages) + MOST_TEMPLATE_TOKENS


def expected_seconds(
    requests: int,
    tokens: int,
    concurrency: int,
    latency_s: float,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
) -> float:
    """Expected seconds for ``requests`` with ``tokens`` in total: the tightest of three limits.

    The limits are ``concurrency`` parallel requests of ``latency_s`` each, requests per minute and tokens per minute
    (None: no limit).
    """
    if requests <= 0:
        return 0.0
    return max(
        math.ceil(requests / concurrency) * latency_s,
        60 * requests / requests_per_minute if requests_per_minute else 0.0,
        60 * tokens / tokens_per_minute if tokens_per_minute else 0.0,
    )


def _find_model(model: str, where: str) -> tuple[Provider, ModelInfo] | None:
    from genai_prices.data_snapshot import get_snapshot

    snapshot, place = get_snapshot(), where.strip().lower()
    url = place if "://" in place else f"https://{place}" if re.search(r"[.:/]", place) else None
    # The package matches any id that *contains* a provider's name, but "my-openai-proxy" is not OpenAI.
    if url is None and all(provider.id != place for provider in snapshot.providers):
        return None
    try:
        return snapshot.find_provider_model(model, None, None if url else place, url)
    except LookupError:
        return None


def _by_the_hour(listed: ModelInfo) -> bool:
    from genai_prices.types import TimeOfDateConstraint

    prices = listed.prices if isinstance(listed.prices, list) else []
    return any(isinstance(one.constraint, TimeOfDateConstraint) for one in prices)


def _to_price(listed: ModelPrice) -> Price | None:
    """Convert a listed price; None if it isn't a chat model's (embeddings, images, speech)."""
    if listed.input_mtok is None or listed.output_mtok is None:
        return None
    values = (listed.input_mtok, listed.output_mtok, listed.cache_read_mtok, listed.cache_write_mtok)
    starts = sorted({tier.start for value in values for tier in getattr(value, "tiers", ())}, reverse=True)
    per_thousand = _at(listed.requests_kcount, 0)
    above: tuple[int, Price] | None = None
    for start in [*starts, -1]:
        prompt, completion, cached, written = (_at(value, start + 1) for value in values)
        if prompt is None or completion is None:
            return None
        price = Price(prompt, completion, cached, written, (per_thousand or 0.0) / 1000, above)
        above = (start, price)
    return price


def _at(value: object, prompt_tokens: int) -> float | None:
    """A listed price for prompts of this length."""
    from genai_prices.types import TieredPrices

    if isinstance(value, TieredPrices):
        passed = [tier.price for tier in value.tiers if prompt_tokens > tier.start]
        value = passed[-1] if passed else value.base
    return float(value) if isinstance(value, Decimal) else None


def _dearest(prices: Sequence[Price]) -> Price | None:
    """The maximum of each number, for every prompt length."""
    if not prices:
        return None
    starts = [price.above[0] for price in prices if price.above is not None]
    following = _dearest([price.above[1] if price.above else price for price in prices]) if starts else None
    return Price(
        max(price.prompt for price in prices),
        max(price.completion for price in prices),
        _greatest(prices, lambda price: price.cached_prompt),
        _greatest(prices, lambda price: price.cache_write),
        max(price.request for price in prices),
        None if following is None else (min(starts), following),
    )


def _greatest(prices: Iterable[Price], number: Callable[[Price], float | None]) -> float | None:
    values = [number(price) for price in prices]
    return None if any(value is None for value in values) else max(value for value in values if value is not None)
