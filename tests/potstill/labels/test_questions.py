"""What is asked about the texts: votes in two orders, the channel, neighbours, seeds left out of their own prompts."""

from __future__ import annotations

import numpy as np

from potstill.config import RelabelConfig
from potstill.labels.questions import CHANNEL, VOTE, class_texts, plan_relabel, plan_seed_check
from potstill.rows import Request
from potstill.teacher import TeacherIdentity
from tests.support.made_up import IDENTITY, WORDS, embed, make_seeds, make_task

TASK, SEEDS = make_task(), make_seeds()
TEXTS = ["a cat sat", "oslo is far", "the axe fell"]


def _plan(
    relabel: RelabelConfig, texts: list[str] = TEXTS, identity: TeacherIdentity = IDENTITY, renderer: str = "list"
) -> list[Request]:
    embeddings = [embed(list(part)) for part in (texts, [seed.text for seed in SEEDS], class_texts(TASK))]
    return list(plan_relabel(TASK, SEEDS, texts, *embeddings, relabel, identity, renderer, 0))


def test_votes_and_channel_text_by_text() -> None:
    requests = _plan(RelabelConfig(votes=2, channel="on"))
    assert [request.strategy for request in requests] == [VOTE, VOTE, CHANNEL, CHANNEL, CHANNEL] * 3
    assert all(request.choices == ("animal", "city name", "tool") for request in requests if request.strategy == VOTE)
    assert [request.choices for request in requests[7:10]] == [("oslo is far",)] * 3
    assert [request.target_label for request in requests[2:5]] == list(TASK.labels)
    assert len({request.request_id for request in requests}) == 15


def test_second_vote_shows_the_seeds_backwards() -> None:
    first, second = _plan(RelabelConfig(votes=2, channel="off"))[:2]
    assert first.exemplar_ids == second.exemplar_ids[::-1]
    assert set(first.exemplar_ids) == {seed.example_id for seed in SEEDS}


def test_channel_is_for_local_lists_with_few_classes() -> None:
    assert any(request.strategy == CHANNEL for request in _plan(RelabelConfig(channel="auto")))
    for options in ({"identity": TeacherIdentity("openai", "gpt")}, {"renderer": "chat"}):
        assert all(request.strategy == VOTE for request in _plan(RelabelConfig(channel="auto"), **options))  # type: ignore[arg-type]


def test_only_the_nearest_classes_are_offered() -> None:
    for text, request in zip(TEXTS, _plan(RelabelConfig(votes=1, channel="off", neighbours=2)), strict=True):
        true = next(label for label, words in WORDS.items() if any(word in text for word in words))
        assert TASK.prompt_name(true) in request.choices
        assert len(request.choices) == 2
        assert len(request.exemplar_ids) == 4


def test_a_seed_is_left_out_of_its_own_check() -> None:
    embeddings = [embed([seed.text for seed in SEEDS]), embed(class_texts(TASK))]
    requests = plan_seed_check(TASK, SEEDS, *embeddings, RelabelConfig(votes=2, channel="off"), IDENTITY, "list", 0)
    assert len(requests) == 2 * len(SEEDS)
    for seed, request in zip(np.repeat(np.array(SEEDS, dtype=object), 2), requests, strict=True):
        assert seed.example_id not in request.exemplar_ids
        # The prompt stays balanced: one example of each of the three classes.
        assert sorted(name.rsplit("-", 1)[0] for name in request.exemplar_ids) == sorted(TASK.labels)
        assert request.messages[0].content.count(seed.text) == 1


def test_a_question_shows_so_many_seeds_a_class_and_each_vote_its_own() -> None:
    seeds = make_seeds(per_class=4)
    embeddings = [embed(list(part)) for part in (TEXTS, [seed.text for seed in seeds], class_texts(TASK))]
    relabel = RelabelConfig(votes=4, channel="on", shots=2)
    requests = list(plan_relabel(TASK, seeds, TEXTS, *embeddings, relabel, IDENTITY, "list", 0))
    votes = [request for request in requests if request.strategy == VOTE]
    for request in votes:
        shown = [name.rsplit("-", 1)[0] for name in request.exemplar_ids]
        assert sorted(shown) == sorted([*TASK.labels] * 2)
    assert all(len(request.exemplar_ids) == 2 for request in requests if request.strategy == CHANNEL)
    assert len({frozenset(request.exemplar_ids) for request in votes}) > 1
    # Fewer seeds than that: all are shown, and the questions are the same as without a limit.
    assert _plan(RelabelConfig(votes=4, shots=2)) == _plan(RelabelConfig(votes=4, shots=100))
