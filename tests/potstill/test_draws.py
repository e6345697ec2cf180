from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill import draws


@given(st.integers(0, 2**40), st.text(max_size=20), st.integers(0, 1000))
def test_a_draw_depends_only_on_its_key(seed, purpose, index):
    before = draws.uniform(seed, purpose, index)
    draws.uniform(seed, "something else")
    assert draws.uniform(seed, purpose, index) == before
    assert 0 <= before < 1


def test_keys_do_not_run_into_each_other():
    assert draws.uniform(0, "ab", "c") != draws.uniform(0, "a", "bc")
    assert draws.uniform(0, 1) != draws.uniform(0, "1")
    assert draws.uniform(1, 0) != draws.uniform(0, 1)


def test_known_values_do_not_change():
    # A change here would invalidate every ledger: request ids depend on these draws.
    assert draws.uniform(0, "partner", "human", 3) == pytest.approx(0.5724911, abs=1e-6)
    assert draws.digest({"b": 1, "a": ["ä"]}, size=4) == "4b6d0565"


@given(st.lists(st.integers(), max_size=30), st.integers(0, 40))
def test_a_smaller_sample_is_a_prefix(items, count):
    larger = draws.sample(items, count + 5, 7, "x")
    assert draws.sample(items, count, 7, "x") == larger[:count]
    assert Counter(larger) <= Counter(items)


def test_uniform_is_uniform():
    values = [draws.uniform(0, i) for i in range(4000)]
    counts = Counter(int(value * 10) for value in values)
    # chi-square with 9 degrees of freedom: 27.9 is the 99.9 % point
    assert sum((count - 400) ** 2 / 400 for count in counts.values()) < 27.9
