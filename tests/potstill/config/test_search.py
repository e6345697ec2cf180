"""The ranges of a space: what they hold, what is refused, and how rungs grow."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from potstill.config.search import Range, SearchConfig, rung_shares

SPACE = {"augment.shots": [1, 2]}


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ({"choice": [1, "a", [5, 2]]}, (1, "a", (5, 2))),
        ({"randint": [2, 5]}, (2, 3, 4, 5)),
        ({"randint": [2, 6], "step": 2}, (2, 4, 6)),
        ({"uniform": [0.5, 0.9], "step": 0.2}, (0.5, 0.7, 0.9)),
        ({"uniform": [0.5, 0.9]}, None),
        ({"loguniform": [1e-5, 1e-3]}, None),
    ],
)
def test_a_finite_range_lists_its_values_in_order(content, values):
    assert Range(**content).values() == values


@given(st.floats(0, 1, exclude_max=True), st.floats(1e-6, 10), st.floats(0.1, 5), st.sampled_from([None, 0.05, 0.3]))
def test_a_draw_lies_in_its_range(share, low, width, step):
    for content in ({"uniform": [low, low + width], "step": step}, {"loguniform": [low, low + width]}):
        one = Range(**content)
        value = one.at(share)
        assert low - 1e-9 <= value <= low + width + 1e-9
        if one.values() is not None:
            assert value in one.values()
    whole = Range(randint=[3, 9])
    assert whole.at(share) in range(3, 10)


def test_draws_of_a_logarithmic_range_are_even_in_the_logarithm():
    one = Range(loguniform=[1e-4, 1e-2])
    assert one.at(0.5) == pytest.approx(1e-3)
    assert one.at(0.0) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "exactly one of"),
        ({"choice": [1], "uniform": [0, 1]}, "exactly one of"),
        ({"choice": []}, "no values"),
        ({"choice": [1, 1]}, "repeats a value"),
        ({"uniform": [1, 1]}, "must be below"),
        ({"uniform": [0, math.inf]}, "must be below"),
        ({"loguniform": [0, 1]}, "above 0"),
        ({"choice": [1, 2], "step": 1}, "step works only with"),
        ({"randint": [1, 5], "step": 0.5}, "whole number"),
    ],
)
def test_an_invalid_range_is_refused(content, message):
    with pytest.raises(ValidationError, match=message):
        Range(**content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": SPACE, "objective": ["macro_f1", "tokens"], "scheduler": "asha"}, "one objective"),
        ({"space": SPACE, "objective": ["tokens"]}, "macro_f1 or accuracy"),
        ({"space": SPACE, "objective": ["macro_f1", "macro_f1"]}, "repeats"),
        ({"space": SPACE, "objective": "f1"}, "macro_f1"),
        ({"space": {"student.dropout": {"uniform": [0, 0.5]}}, "searcher": "grid"}, "finite ranges"),
    ],
)
def test_a_search_that_can_not_work_is_refused(content, message):
    with pytest.raises(ValidationError, match=message):
        SearchConfig(**content)


def test_a_single_objective_needs_no_list():
    assert SearchConfig(space=SPACE, objective="accuracy").objective == ("accuracy",)


@pytest.mark.parametrize(
    ("content", "halving"),
    [
        ({}, True),
        ({"rungs": 1}, False),
        ({"searcher": "grid"}, False),
        ({"searcher": "grid", "scheduler": "asha"}, True),
        ({"searcher": "random"}, True),
        ({"objective": ["macro_f1", "tokens"]}, False),
        ({"scheduler": "none"}, False),
    ],
)
def test_trials_are_stopped_early_unless_it_makes_no_sense(content, halving):
    search = SearchConfig(space=SPACE, **content)
    assert search.halving is halving
    assert (len(rung_shares(search)) > 1) is halving


@given(st.integers(1, 8), st.integers(0, 4), st.floats(1.5, 4))
def test_rungs_grow_in_texts_first_then_in_epochs(rungs, epoch_rungs, reduction):
    search = SearchConfig(space=SPACE, scheduler="asha", rungs=rungs, epoch_rungs=epoch_rungs, reduction=reduction)
    shares = rung_shares(search)
    assert len(shares) == rungs + epoch_rungs
    assert shares[-1] == (pytest.approx(1), pytest.approx(1))
    texts, epochs = zip(*shares, strict=True)
    assert list(texts) == sorted(texts)
    assert list(epochs) == sorted(epochs)
    assert all(a == 1 or b == epochs[0] for a, b in shares)  # epochs wait until all texts are there
