"""Plans: prefixes, keyed draws, prompts of each strategy, and how many draws to ask for."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import Alpha, AugmentConfig
from potstill.prompts.contents import Context, percentages
from potstill.prompts.render import to_requests
from potstill.rows import Sampling
from potstill.strategies import STRATEGIES, next_counts, texts_wanted
from potstill.strategies.promptmix import draw_alpha
from potstill.teacher import Teacher
from tests.support.made_up import IDENTITY, WORDS, make_seeds, make_task, plan

TASK, SEEDS = make_task(), make_seeds()


def _ids(
    augment: AugmentConfig, counts: dict[str, tuple[int, int]], seed: int = 0, renderer: str = "chat"
) -> list[str]:
    drafts = plan(TASK, SEEDS, augment, seed, counts)
    requests = to_requests(drafts, Teacher(IDENTITY, renderer), Sampling(), "things", augment.strategy)
    return [request.request_id for request in requests]


ASKING = sorted(name for name, strategy in STRATEGIES.items() if strategy.collect is None)


def test_the_config_accepts_every_strategy() -> None:
    assert set(get_args(AugmentConfig.model_fields["strategy"].annotation)) == set(STRATEGIES)


@pytest.mark.parametrize("strategy", ASKING)
def test_ranges_add_up_to_the_plan(strategy: str) -> None:
    augment = AugmentConfig.model_validate({"strategy": strategy})
    whole = _ids(augment, {"animal": (0, 20)})
    assert whole == _ids(augment, {"animal": (0, 7)}) + _ids(augment, {"animal": (7, 20)})
    assert len(set(whole)) == 20


@pytest.mark.parametrize("strategy", ASKING)
@pytest.mark.parametrize("renderer", ["list", "chat"])
def test_no_two_draws_are_the_same_request(strategy: str, renderer: str) -> None:
    augment = AugmentConfig.model_validate({"strategy": strategy})
    ids = _ids(augment, dict.fromkeys(TASK.labels, (0, 60)), renderer=renderer)
    assert len(set(ids)) == len(ids) == 180


def test_other_alphas_share_requests() -> None:
    """Prompts are keyed by (class, partner, alpha, occurrence), so other settings make some of the same requests."""
    counts = {"animal": (0, 200)}
    first = set(_ids(AugmentConfig(), counts))
    second = set(_ids(AugmentConfig(alpha=Alpha(low=0.5, high=1.0, beta=(2.0, 2.0))), counts))
    assert 20 < len(first & second) < 200


def test_another_data_seed_is_another_plan() -> None:
    assert _ids(AugmentConfig(), {"animal": (0, 5)}) != _ids(AugmentConfig(), {"animal": (0, 5)}, seed=1)


def test_promptmix_shows_partner_and_target() -> None:
    for draft in plan(TASK, SEEDS, AugmentConfig(), 0, {"city_name": (0, 30)}):
        names = [card.name for card in draft.prompt.cards]
        assert names[-1] == "city name"
        assert len(names) == len(set(names)) == 3
        assert draft.mix_label in WORDS
        assert draft.mix_label != "city_name"
        assert draft.alpha is not None
        assert 0.5 <= draft.alpha <= 1.0
        assert (draft.prompt.mix is None) == (draft.alpha == 1.0)
        assert len(draft.exemplar_ids) == 6


def test_zero_shot_shows_no_seed() -> None:
    for draft in plan(TASK, SEEDS, AugmentConfig(strategy="zero_shot"), 0, {"tool": (0, 3)}):
        assert draft.prompt.target.examples == ()
        assert draft.exemplar_ids == ()


def test_contexts_come_from_the_task() -> None:
    task = make_task(contexts={"topics": ["war", "peace"], "class_topics": {"tool": ["wood"]}, "styles": ["terse"]})
    drafts = list(plan(task, SEEDS, AugmentConfig(), 0, {"tool": (0, 5), "animal": (0, 20)}))
    assert {draft.prompt.context.topic for draft in drafts if draft.target_label == "tool"} == {"wood"}
    assert {draft.prompt.context.topic for draft in drafts if draft.target_label == "animal"} == {"war", "peace"}
    for draft in plan(task, SEEDS, AugmentConfig(contexts=False), 0, {"tool": (0, 5)}):
        assert draft.prompt.context == Context()


@given(st.integers(0, 10_000), st.floats(0.5, 1.0), st.floats(0.5, 1.0))
def test_alpha_is_a_step_of_five_per_cent_or_a_bound(i: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    alpha = draw_alpha(Alpha(low=low, high=high), 0, "animal", i)
    assert low <= alpha <= high
    assert alpha in (low, high) or abs(alpha * 20 - round(alpha * 20)) < 1e-9


def test_mean_alpha_is_that_of_the_paper() -> None:
    alphas = [draw_alpha(Alpha(), 0, "animal", i) for i in range(2000)]
    assert sum(alphas) / 2000 == pytest.approx(0.857, abs=0.01)


@pytest.mark.parametrize(
    ("alpha", "shares"), [(0.55, (55, 45)), (0.8, (80, 20)), (0.9, (90, 10)), (0.57, (57, 43)), (1.0, (100, 0))]
)
def test_percentages_are_rounded_not_truncated(alpha: float, shares: tuple[int, int]) -> None:
    assert percentages(alpha) == shares


def test_next_counts() -> None:
    labels = ["a", "b", "c"]
    assert texts_wanted(AugmentConfig(per_class=10, over_generate=2.5)) == 25
    assert next_counts(labels, 9, {}, {}, 3) == {"a": (0, 3), "b": (0, 3), "c": (0, 3)}
    assert next_counts(labels, 9, {"a": 9, "b": 4, "c": 0}, {"a": 3, "b": 4, "c": 3}, 3) == {"b": (4, 9), "c": (3, 93)}
    assert next_counts(labels, 9, dict.fromkeys(labels, 9), dict.fromkeys(labels, 3), 3) == {}
