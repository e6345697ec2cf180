"""Optuna behind Ray Tune: what was tried is told again first, nothing is suggested twice, the objective is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import tuning
from jobs.runs import Run
from jobs.search_table import TrialTable
from potstill import search_points
from potstill.config import Config, parse

pytestmark = pytest.mark.slow  # the imports of Ray Tune and Optuna

SPACE = {"augment.shots": [1, 2], "augment.alpha.beta": [[5, 2], [1, 1]], "augment.alpha.low": [0.5, 0.6, 0.7]}


def config(**search: Any) -> Config:
    return parse({"task": "demo", "search": {"space": SPACE, "trials": 12, **search}})


def suggest_all(found: Any, wanted: Config, score: Any, most: int = 50) -> list[dict[str, Any]]:
    """Points in order of suggestion, each told its score, until there are no more."""
    from ray.tune.search import Searcher

    points = []
    for number in range(most):
        suggested = found.suggest(f"t{number}")
        if suggested == Searcher.FINISHED:
            break
        point = search_points.decode(wanted.search, suggested)
        points.append(point)
        found.on_trial_complete(f"t{number}", {name: score(point) for name in wanted.search.objective})
    return points


def test_a_finite_space_is_tried_whole_and_nothing_twice(tmp_path: Path) -> None:
    wanted = config()
    found = tuning._optuna(wanted, TrialTable(Run(str(tmp_path), "t")))
    points = suggest_all(found, wanted, lambda point: point["augment.alpha.low"])
    names = list(map(search_points.digest, points))
    assert len(names) == len(set(names)) == 12


def test_what_was_tried_comes_first_in_its_order(tmp_path: Path) -> None:
    wanted = config()
    table = TrialTable(Run(str(tmp_path), "t"))
    tried = list(search_points.grid(wanted.search))[5:9]
    for point in tried:
        table.begin(point)
    points = suggest_all(tuning._optuna(wanted, table), wanted, lambda point: 0.5)
    assert points[:4] == tried
    assert len(points) == 12


def test_it_learns_where_it_is_better_than_by_chance(tmp_path: Path) -> None:
    wanted = parse(
        {"task": "demo", "search": {"space": {"augment.temperature": {"uniform": [0.1, 2.0]}}, "trials": 30}}
    )
    found = tuning._optuna(wanted, TrialTable(Run(str(tmp_path), "t")))
    points = suggest_all(found, wanted, lambda point: -abs(point["augment.temperature"] - 1.7), most=30)
    late = [abs(point["augment.temperature"] - 1.7) for point in points[15:]]
    assert sum(late) / len(late) < 0.4  # 0.77 by chance


def test_several_objectives_are_asked_for_by_name(tmp_path: Path) -> None:
    wanted = config(objective=["macro_f1", "tokens"])
    found = tuning._optuna(wanted, TrialTable(Run(str(tmp_path), "t")))
    assert found.metric == ["macro_f1", "tokens"]
    assert len(suggest_all(found, wanted, lambda point: 0.5)) == 12


@pytest.mark.parametrize(
    "content",
    [
        {"choice": [1, 2]},
        {"uniform": [0.5, 0.9]},
        {"uniform": [0.5, 0.95], "step": 0.2},
        {"randint": [3, 10], "step": 2},
        {"loguniform": [1e-5, 1e-3]},
    ],
)
def test_optuna_draws_what_the_range_holds(content: dict[str, Any]) -> None:
    import optuna

    from potstill.search_space import Range

    one = Range(**content)
    distribution = tuning.distribution(one)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(30):
        value = study.ask({"x": distribution}).params["x"]
        listed = one.values()
        if listed is not None:
            assert min(abs(value - other) for other in listed) < 1e-9
        else:
            assert one.ends[0] <= value <= one.ends[1]
