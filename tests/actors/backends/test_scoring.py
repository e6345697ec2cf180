"""Scoring choices as a tree equals scoring each choice alone; grouping loses no question."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from actors.backends.attention import use_grouped_attention
from actors.backends.scoring import Question, common_length, cut_batches, group_by_prefix, score

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(tuple)


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
        max_position_embeddings=256,
    )
    made = LlamaForCausalLM(config).eval()
    use_grouped_attention(made)
    return made


def _naive(model: LlamaForCausalLM, prompt: tuple[int, ...], choice: tuple[int, ...]) -> float:
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([prompt + choice])).logits[0], -1)
    return sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(choice))


def test_tree_equals_one_pass_per_choice(model: LlamaForCausalLM) -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 64, (n,), generator=generator).tolist())

    shared = draw(30)
    questions = [Question(shared + draw(n), (draw(1), draw(3), draw(2))) for n in (1, 4, 9, 5, 2)]
    questions.append(Question(draw(7), (draw(6),)))  # shares nothing
    questions.append(Question(shared, (draw(2), draw(2))))  # only the shared prefix
    for question, values in zip(questions, score(model, questions, batch_size=3), strict=True):
        assert values == pytest.approx(
            [_naive(model, question.prompt, choice) for choice in question.choices], abs=1e-4
        )


@given(st.lists(st.integers(0, 2000)), st.integers(1, 40))
def test_batches_hold_every_row_once_and_few_long_ones(widths: list[int], batch_size: int) -> None:
    widths.sort()
    batches = cut_batches(widths, batch_size)
    assert [i for rows in batches for i in rows] == list(range(len(widths)))
    for rows in batches:
        assert 1 <= len(rows) <= batch_size
        assert len(rows) == 1 or len(rows) * widths[rows[-1]] <= 64 * batch_size
    for rows, after in itertools.pairwise(batches):  # no batch had room for another row
        more = len(rows) + 1
        assert more > batch_size or more * widths[after.start] > 64 * batch_size


def test_long_rows_among_short_ones_score_as_alone(model: LlamaForCausalLM) -> None:
    generator = torch.Generator().manual_seed(2)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 64, (n,), generator=generator).tolist())

    shared = draw(20)
    questions = [Question(shared + draw(n), (draw(2), draw(1))) for n in (3, 90, 5, 120, 70, 8)]
    for question, values in zip(questions, score(model, questions, batch_size=2), strict=True):
        assert values == pytest.approx(
            [_naive(model, question.prompt, choice) for choice in question.choices], abs=1e-4
        )


@given(st.lists(TOKENS, min_size=1, max_size=12))
def test_every_question_is_in_exactly_one_group(prompts: list[tuple[int, ...]]) -> None:
    groups = group_by_prefix([Question(prompt, ((1,),)) for prompt in prompts])
    assert sorted(i for group in groups for i in group) == list(range(len(prompts)))
    for group in groups:
        assert len(group) == 1 or common_length([prompts[i] for i in group]) >= 16


@given(st.lists(st.integers(0, 4), min_size=2, max_size=5), st.data())
def test_a_few_odd_questions_cost_the_others_nothing(odd: list[int], data: st.DataObject) -> None:
    """Near-identical prompts, and some that share half of them: reading must cost as much as two groups, not one."""
    beginning = tuple(range(100))
    usual = [Question((*beginning, *range(200, 300), 300 + i), ((1,),)) for i in range(30)]
    others = [Question((*beginning, *range(500, 500 + 40), 600 + i), ((1,),)) for i in odd]
    questions = data.draw(st.permutations([*usual, *others]))
    read = 0
    for group in group_by_prefix(questions):
        prompts = [questions[i].prompt for i in group]
        shared = common_length(prompts) if len(prompts) > 1 else 0
        read += shared + sum(len(prompt) - shared for prompt in prompts)
    assert read <= 200 + len(usual) + 140 + 140 * len(odd)


@given(TOKENS, TOKENS, TOKENS)
def test_common_length(first: tuple[int, ...], second: tuple[int, ...], beginning: tuple[int, ...]) -> None:
    length = common_length([beginning + first, beginning + second])
    assert length >= len(beginning)
    assert (beginning + first)[:length] == (beginning + second)[:length]
