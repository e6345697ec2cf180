"""Packed batches give the same logits and gradients as padded ones, for every packed architecture."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.training.kernels import packing

pytestmark = pytest.mark.slow

LENGTHS = [19, 19, 12, 12, 12, 5, 4, 2]
SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 3,
    "pad_token_id": 0,
    "max_position_embeddings": 40,
}
LOCAL = {"global_attn_every_n_layers": 2, "num_hidden_layers": 3, "local_attention": 8}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "electra": ("Electra", {"embedding_size": 32}),
    "roberta": ("Roberta", {"pad_token_id": 1}),
    "camembert": ("Camembert", {"pad_token_id": 1}),
    "xlm-roberta": ("XLMRoberta", {"pad_token_id": 1}),
    "distilbert": ("DistilBert", {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
    "modernbert": ("ModernBert", LOCAL),
    "modernbert, mean": ("ModernBert", {**LOCAL, "classifier_pooling": "mean"}),
}


def make(name: str) -> Any:
    """An untrained classifier without dropout."""
    import transformers

    family, changes = ARCHITECTURES[name]
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    return model.eval()


def padded(rows: list[list[int]], padding: int) -> dict[str, torch.Tensor]:
    ids, mask = torch.full((len(rows), max(map(len, rows))), padding), torch.zeros(len(rows), max(map(len, rows)))
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask.long()}


def results(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the logits, and the gradients of a loss that weights every logit differently."""
    model.zero_grad()
    logits = model(**inputs).logits
    (logits * torch.arange(1, logits.numel() + 1).reshape(logits.shape)).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("order", ["sorted", "mixed"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_padded(name: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "GROUP_OVERHEAD", 20)
    model = make(name)
    lengths = LENGTHS if order == "sorted" else LENGTHS[::2] + LENGTHS[1::2]
    draws = np.random.default_rng(0)
    rows = [draws.integers(3, 60, length).tolist() for length in lengths]
    logits, gradients = results(model, padded(rows, model.config.pad_token_id))
    assert packing.can_pack(model)
    packing.pack(model)
    inputs = packing.inputs(model, rows, "cpu")
    assert inputs["input_ids"].shape == (1, sum(lengths))
    assert len(inputs["packing"].groups) > 1
    found, found_gradients = results(model, inputs)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)
    assert found_gradients.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[key], gradient, rtol=1e-3, atol=1e-4, msg=key)


def test_the_varlen_kernel_equals_grouped_attention() -> None:
    layout = packing.Packing(LENGTHS, "cpu")
    torch.manual_seed(0)
    states = [torch.randn(sum(LENGTHS), 4, 8, requires_grad=True) for _ in range(3)]
    weights = torch.randn(sum(LENGTHS), 4, 8)
    found = []
    for attend in (packing.attend_grouped, packing.attend_nested):
        attended = attend(*states, layout, 0.3, 0.0)
        found.append((attended, *torch.autograd.grad((attended * weights).sum(), states)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_architecture_with_custom_attention_is_padded() -> None:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    assert not packing.can_pack(DebertaV2ForSequenceClassification(DebertaV2Config(**SHAPE)))


def cheapest(lengths: list[int], overhead: int) -> int:
    """The minimum cost over all partitions, by brute force."""
    if not lengths:
        return 0
    return min(
        size * max(lengths[:size]) ** 2 + overhead + cheapest(lengths[size:], overhead)
        for size in range(1, len(lengths) + 1)
    )


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), overhead=st.integers(0, 900))
def test_groups_are_the_cheapest(lengths: list[int], overhead: int) -> None:
    bounds = packing.cut(np.array(lengths), overhead)
    groups = [lengths[first:last] for first, last in itertools.pairwise(bounds)]
    assert [length for group in groups for length in group] == lengths
    assert sum(len(group) * max(group) ** 2 + overhead for group in groups) == cheapest(lengths, overhead)
