"""Our dropout matches torch's: drop rate, scale, gradients, and no effect outside training."""

from __future__ import annotations

import pytest
import torch

from actors.training.kernels import dropout

pytestmark = pytest.mark.slow

NUMBERS = 400_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_is_dropped_and_the_rest_scaled(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = torch.rand(NUMBERS).add(0.5).to(dtype).requires_grad_()
    found = dropout.drop(states, p)
    kept = found != 0
    share = kept.double().mean().item()
    assert abs(share - (1 - p)) < 5 * (p * (1 - p) / NUMBERS) ** 0.5 + 2**-15
    torch.testing.assert_close(found[kept], (states / (1 - p))[kept], rtol=1e-2, atol=0)
    # Adjacent elements are dropped independently, though one draw covers four of them.
    for apart in (1, 2, 3, 4):
        both = (kept[apart:] & kept[:-apart]).double().mean().item()
        assert abs(both - share**2) < 0.005
    found.sum().backward()
    assert states.grad is not None
    torch.testing.assert_close(states.grad != 0, kept)
    torch.testing.assert_close(states.grad[kept], torch.full_like(states.grad[kept], 1 / (1 - p)), rtol=1e-2, atol=0)


def test_the_seed_determines_the_mask_and_draws_differ() -> None:
    states = torch.ones(3, 7)
    torch.manual_seed(1)
    first, second = dropout.drop(states, 0.5), dropout.drop(states, 0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(dropout.drop(states, 0.5), first)
    assert not torch.equal(first, second)


def test_it_replaces_torchs_dropout_and_is_inactive_outside_training() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Dropout(0.3)))
    dropout.replace(model)
    replaced = model[1][0]
    assert isinstance(replaced, dropout.Dropout)
    assert replaced.p == 0.3
    states = torch.randn(2, 4)
    model.eval()
    torch.testing.assert_close(model(states), model[0](states))
    model.train()
    assert not torch.equal(model(states), model[0](states))


def test_other_precisions_and_layouts_are_dropped_too() -> None:
    states = torch.ones(6, 8, dtype=torch.float64)
    assert set(dropout.drop(states, 0.5).unique().tolist()) <= {0.0, 2.0}
    turned = torch.ones(6, 8).transpose(0, 1)
    assert dropout.drop(turned, 0.5).shape == (8, 6)
    torch.testing.assert_close(dropout.drop(turned, 0.0), turned)
