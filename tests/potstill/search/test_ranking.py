"""Best trials and the Pareto front, compared with brute force."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from potstill.search import ranking as search_ranking

OBJECTIVE = ("macro_f1", "cost_usd", "training_s")
SCORES = st.fixed_dictionaries({name: st.integers(0, 3).map(float) for name in OBJECTIVE})


@given(st.lists(SCORES, min_size=1, max_size=12))
def test_the_front_is_not_dominated(trials):
    signs = {"macro_f1": 1, "cost_usd": -1, "training_s": -1}

    def beaten(one):
        return any(
            all(signs[m] * other[m] >= signs[m] * one[m] for m in OBJECTIVE) and other != one for other in trials
        )

    assert search_ranking.front(trials, OBJECTIVE) == [i for i, one in enumerate(trials) if not beaten(one)]


@given(st.lists(SCORES, min_size=1, max_size=8), st.integers(1, 8))
def test_the_best_by_one_objective_are_the_highest(trials, count):
    found = search_ranking.best(trials, ("macro_f1",), count)
    scores = sorted((one["macro_f1"] for one in trials), reverse=True)
    assert [trials[i]["macro_f1"] for i in found] == scores[:count]
    assert all(a < b for a, b in itertools.pairwise(found) if trials[a]["macro_f1"] == trials[b]["macro_f1"])


def test_with_several_objectives_the_front_comes_first():
    cheap = {"macro_f1": 0.5, "tokens": 1.0}
    good = {"macro_f1": 0.7, "tokens": 9.0}
    beaten = {"macro_f1": 0.6, "tokens": 10.0}
    assert search_ranking.best([beaten, cheap, good], ("macro_f1", "tokens"), 3) == [2, 1, 0]


def test_nan_is_worst():
    assert search_ranking.best([{"macro_f1": math.nan}, {"macro_f1": 0.1}], ("macro_f1",), 1) == [1]
