"""The plan of a search against brute force over the requests of its trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.run.job import Job, prepare
from jobs.runtime.terminal import Terminal
from jobs.search import plan as search_plan
from jobs.stages import generate
from potstill.config import parse
from potstill.search import points as search_points

SPACE = {"augment.shots": [1, 2], "augment.alpha.low": [0.5, 0.7], "augment.per_class": [5, 10, 20]}


@pytest.fixture
def job(tmp_path: Path) -> Any:
    def make(**search: Any) -> Job:
        content = {
            "task": "demo",
            "relabel": {"enabled": False},
            "storage": str(tmp_path),
            "ledger": {"uri": f"sqlite:///{tmp_path}/ledger.db"},
            "teacher": {"kind": "openai", "model": "m", "api_key_env": "", "price": {"prompt": 1, "completion": 2}},
            "search": {"space": SPACE, **search},
        }
        return prepare(parse(content), Terminal())

    return make


def test_held_back_texts_are_planned_if_the_task_has_no_real_ones(job: Any) -> None:
    real = job()
    assert search_plan.plan_search(real).held_back is None
    made = replace(job(held_back=8), data=replace(real.data, train=(), validation=()))
    planned = search_plan.plan_search(made)
    assert planned.held_back is not None
    assert planned.held_back.requests == len(requests_of(made, {"augment.per_class": 8}))
    assert planned.held_back in planned.most
    fits = planned.cheapest.cost_usd + planned.finals.cost_usd
    config = made.config.model_copy(update={"search": made.config.search.model_copy(update={"budget_usd": fits})})
    (problem,) = search_plan.budget_problems(config, planned)
    assert "texts held back $" in problem.message


def requests_of(job: Job, point: search_points.Point) -> list[str]:
    one = replace(job, config=search_points.apply(job.config, point))
    return [request.request_id for request in generate.plan_requests(one, generate.next_counts(one, [], {}))]


def test_the_plan_of_a_grid_is_exact(job: Any) -> None:
    made = job(searcher="grid")
    planned = search_plan.plan_search(made)
    asked = [requests_of(made, point) for point in search_points.grid(made.config.search)]
    assert planned.exact
    assert planned.naive.requests == sum(map(len, asked))
    assert planned.shared.requests == len(set().union(*asked))
    assert planned.shared.requests < 0.8 * planned.naive.requests


def test_more_texts_include_fewer_and_other_shots_share_nothing(job: Any) -> None:
    made = job(searcher="grid")
    few, many, other = (
        set(requests_of(made, {"augment.shots": shots, "augment.per_class": texts}))
        for shots, texts in ((1, 5), (1, 20), (2, 20))
    )
    assert few < many
    assert not many & other


def test_another_beta_shares_common_alphas(job: Any) -> None:
    made = job(searcher="grid")
    one = set(requests_of(made, {"augment.per_class": 20, "augment.alpha.beta": (5, 2)}))
    two = set(requests_of(made, {"augment.per_class": 20, "augment.alpha.beta": (4, 2)}))
    assert 0 < len(one & two) < len(one)


def test_the_bounds_hold_for_any_suggestions_of_tpe(job: Any) -> None:
    made = job(trials=5, scheduler="none")
    planned = search_plan.plan_search(made)
    assert not planned.exact
    points = list(search_points.grid(made.config.search))
    for start in range(0, len(points), 3):
        chosen = (points[start:] + points[:start])[:5]
        asked = set().union(*(requests_of(made, point) for point in chosen))
        assert planned.least.requests <= len(asked) <= planned.shared.requests <= planned.naive.requests
