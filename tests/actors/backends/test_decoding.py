"""Sampling: the right distribution, the nucleus, stops, and no influence of batch mates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.backends.attention import use_grouped_attention
from actors.backends.decoding import TRIES, Row, decode, finish, sample_tokens


class Letters:
    """A tokenizer of 64 one-letter tokens; token 0 is the end."""

    pad_token_id = 0

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(64 + token) for token in tokens)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    made = LlamaForCausalLM(config).eval()
    use_grouped_attention(made)
    return made


def _row(
    seed: int, prompt: tuple[int, ...] = (5, 6, 7), max_tokens: int = 12, stop: tuple[str, ...] = (), **sampling: float
) -> Row:
    uniforms = np.random.default_rng(seed).random((max_tokens, TRIES))
    return Row(prompt, uniforms, sampling.get("temperature", 1.0), sampling.get("top_p", 0.95), stop)


def test_a_reply_does_not_depend_on_its_batch_mates(model: LlamaForCausalLM) -> None:
    prompts = [(5, 6, 7), (9,), (3, 3, 3, 3, 3, 3), (5, 6, 7)]
    together = [_row(seed, prompt) for seed, prompt in enumerate(prompts)]
    decode(model, Letters(), together, frozenset({0}))
    for seed, prompt in enumerate(prompts):
        alone = _row(seed, prompt)
        decode(model, Letters(), [alone], frozenset({0}))
        assert alone.tokens == together[seed].tokens
        assert alone.finish_reason == together[seed].finish_reason


def test_rows_end_at_stop_end_token_or_length(model: LlamaForCausalLM) -> None:
    free = _row(1, max_tokens=30)
    decode(model, Letters(), [free], frozenset())
    text = finish(free, Letters())
    assert (len(text), free.finish_reason) == (30, "length")
    stopped = _row(1, max_tokens=30, stop=(text[4:6],))
    ended = _row(1, max_tokens=30)
    decode(model, Letters(), [stopped], frozenset())
    decode(model, Letters(), [ended], frozenset({ord(text[3]) - 64}))
    assert (finish(stopped, Letters()), stopped.finish_reason) == (text[: text.find(text[4:6])], "stop")
    assert (finish(ended, Letters()), ended.finish_reason) == (text[: text.find(text[3])], "stop")


def test_greedy_takes_the_likeliest(model: LlamaForCausalLM) -> None:
    row = _row(0, temperature=0.0, max_tokens=3)
    decode(model, Letters(), [row], frozenset())
    tokens = list(row.prompt)
    for token in row.tokens:
        assert token == int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        tokens.append(token)


def test_draws_follow_the_nucleus() -> None:
    probs = torch.tensor([0.5, 0.25, 0.15, 0.06, 0.04] + [0.0] * 700)
    rows = [_row(seed, max_tokens=1, top_p=0.8) for seed in range(4000)]
    counts = Counter(sample_tokens(torch.log(probs).expand(4000, -1), rows))
    assert set(counts) == {0, 1, 2}  # 0.5 + 0.25 < 0.8, so the third is the last included
    assert counts[0] / 4000 == pytest.approx(0.5 / 0.9, abs=0.03)
    assert counts[2] / 4000 == pytest.approx(0.15 / 0.9, abs=0.03)


def test_a_tiny_nucleus_is_the_likeliest_token() -> None:
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    rows = [_row(seed, max_tokens=1, top_p=1e-6) for seed in range(50)]
    assert sample_tokens(logits, rows) == logits.argmax(-1).tolist()
