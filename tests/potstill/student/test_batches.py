"""Laws of batch planning."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.student.batches import padded_tokens, plan_steps, shard, share

LENGTHS = st.lists(st.integers(2, 200), min_size=1, max_size=80)


@given(
    rows=st.integers(1, 300),
    batch_size=st.integers(1, 64),
    epochs=st.integers(1, 4),
    min_steps=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_every_example_once_an_epoch(rows: int, batch_size: int, epochs: int, min_steps: int, seed: int) -> None:
    steps = plan_steps(rows, batch_size, epochs, min_steps, seed)
    per_epoch = -(-rows // batch_size)
    assert len(steps) == max(epochs * per_epoch, min_steps)
    for epoch in range(steps[-1].epoch + 1):
        seen = [int(row) for step in steps if step.epoch == epoch for row in step.rows]
        complete = any(step.ends_epoch for step in steps if step.epoch == epoch)
        assert len(seen) == len(set(seen))
        assert complete == (sorted(seen) == list(range(rows)))
        assert complete or epoch == steps[-1].epoch
    sizes = [len(step.rows) for step in steps]
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_the_plan_depends_only_on_rows_and_seed() -> None:
    one, two = plan_steps(100, 8, 2, 1, seed=3), plan_steps(100, 8, 5, 90, seed=3)
    assert all((a.rows == b.rows).all() for a, b in zip(one, two, strict=False))
    other = plan_steps(100, 8, 2, 1, seed=4)
    assert any((a.rows != b.rows).any() for a, b in zip(one, other, strict=True))


def test_epochs_differ() -> None:
    first, second = plan_steps(50, 50, 2, 1, seed=0)
    assert (first.rows != second.rows).any()


def test_tiny_data_gets_its_floor_of_steps_and_may_stop_early() -> None:
    steps = plan_steps(12, 8, 5, 151, seed=0)
    assert len(steps) == 151
    assert not steps[-1].ends_epoch


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        plan_steps(0, 8, 1, 1, seed=0)


@given(lengths=LENGTHS, workers=st.integers(1, 9), budget=st.integers(1, 2000), overhead=st.integers(0, 500))
def test_sharding_covers_the_batch_within_the_budget(
    lengths: list[int], workers: int, budget: int, overhead: int
) -> None:
    shards = shard(lengths, workers, budget, overhead)
    assert len(shards) == workers
    assert len({len(hand) for hand in shards}) == 1, "every worker takes part in every exchange of gradients"
    positions = Counter(position for hand in shards for rows in hand for position in rows)
    assert positions == Counter(range(len(lengths)))
    for hand in shards:
        for rows in hand:
            if len(rows) > 1:
                assert len(rows) * max(lengths[row] for row in rows) <= max(budget, max(lengths))


@given(lengths=LENGTHS, workers=st.integers(1, 5))
def test_sharding_never_pads_more_than_one_batch_would(lengths: list[int], workers: int) -> None:
    shards = shard(lengths, workers, budget=10**6)
    cost = sum(padded_tokens(lengths, hand) for hand in shards)
    assert sum(lengths) <= cost <= len(lengths) * max(lengths)


@given(lengths=LENGTHS, workers=st.integers(2, 5))
def test_work_is_spread(lengths: list[int], workers: int) -> None:
    """No worker exceeds its fair share of tokens by more than one text and the padding."""
    shards = shard(lengths, workers, budget=10**6)
    loads = [padded_tokens(lengths, hand) for hand in shards]
    alone = padded_tokens(lengths, shard(lengths, 1, budget=10**6)[0])
    assert max(loads) <= -(-alone // workers) + max(lengths)


def test_sharding_is_the_same_each_time_and_ignores_the_container() -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 64)
    assert shard(lengths, 2, 300) == shard(lengths.tolist(), 2, 300)


def test_more_workers_than_rows_gives_empty_micro_batches() -> None:
    shards = shard([5, 9], 4, 100)
    assert sorted(len(hand[0]) for hand in shards) == [0, 0, 1, 1]


def test_an_empty_batch_is_one_empty_micro_batch_each() -> None:
    assert shard([], 3, 10) == [[[]], [[]], [[]]]


def test_padding_shrinks_where_passes_are_cheap() -> None:
    lengths = [4] * 30 + [60, 64]
    cheap, dear = shard(lengths, 1, 4096, overhead=10)[0], shard(lengths, 1, 4096, overhead=100_000)[0]
    assert len(dear) == 1
    assert padded_tokens(lengths, cheap) < padded_tokens(lengths, dear) / 5


@given(lengths=LENGTHS, workers=st.integers(1, 9), budget=st.integers(1, 2000))
def test_shares_without_padding_cover_the_batch_within_the_budget(
    lengths: list[int], workers: int, budget: int
) -> None:
    shares = share(lengths, workers, budget)
    assert len(shares) == workers
    assert len({len(hand) for hand in shares}) == 1, "every worker takes part in every exchange of gradients"
    assert Counter(row for hand in shares for rows in hand for row in rows) == Counter(range(len(lengths)))
    for rows in (rows for hand in shares for rows in hand):
        assert len(rows) <= 1 or sum(lengths[row] for row in rows) <= budget
        assert [lengths[row] for row in rows] == sorted((lengths[row] for row in rows), reverse=True)


@given(lengths=LENGTHS, workers=st.integers(2, 5))
def test_shares_without_padding_are_alike(lengths: list[int], workers: int) -> None:
    loads = [sum(lengths[row] for rows in hand for row in rows) for hand in share(lengths, workers, 10**6)]
    assert max(loads) - min(loads) <= max(lengths)
