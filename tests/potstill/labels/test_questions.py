"""Requests for a text's class: votes in two orders, neighbours, seeds left out of their own prompts."""

from __future__ import annotations

import numpy as np

from potstill.config import RelabelConfig
from potstill.labels.prototypes import describe_classes
from potstill.labels.questions import PHRASINGS, VOTE, Embeddings, Questions
from potstill.rows import Request
from potstill.task import LabelledText
from tests.support.made_up import TEACHER, WORDS, embed, make_seeds, make_task

TASK, SEEDS = make_task(), make_seeds()
TEXTS = ["a cat sat", "oslo is far", "the axe fell"]


def _plan(relabel: RelabelConfig, seeds: list[LabelledText] = SEEDS) -> list[Request]:
    vectors = Embeddings(
        *(embed(part) for part in (TEXTS, [seed.text for seed in seeds], [row.text for row in describe_classes(TASK)]))
    )
    return list(Questions(TASK, seeds, relabel, TEACHER, 0).about_texts(TEXTS, vectors))


def test_every_text_gets_its_votes() -> None:
    requests = _plan(RelabelConfig(votes=2))
    assert [request.messages[0].content.count(text) for text in TEXTS for request in requests[:2]] == [1, 1, 0, 0, 0, 0]
    assert {request.choices for request in requests} == {("animal", "city name", "tool")}
    assert {request.strategy for request in requests} == {VOTE}
    assert len({request.request_id for request in requests}) == 6


def test_the_second_vote_reverses_the_seeds() -> None:
    first, second = _plan(RelabelConfig(votes=2))[:2]
    assert first.exemplar_ids == second.exemplar_ids[::-1]
    assert set(first.exemplar_ids) == {seed.example_id for seed in SEEDS}


def test_only_the_nearest_classes_are_offered() -> None:
    for text, request in zip(TEXTS, _plan(RelabelConfig(votes=1, neighbours=2)), strict=True):
        true = next(label for label, words in WORDS.items() if any(word in text for word in words))
        assert TASK.prompt_name(true) in request.choices
        assert len(request.choices) == 2
        assert len(request.exemplar_ids) == 4


def test_a_seed_is_left_out_of_its_own_check() -> None:
    vectors = Embeddings(
        np.zeros((0, 8)), embed([seed.text for seed in SEEDS]), embed([row.text for row in describe_classes(TASK)])
    )
    requests = Questions(TASK, SEEDS, RelabelConfig(votes=2), TEACHER, 0).about_known(vectors)
    described = describe_classes(TASK)
    assert len(requests) == 2 * (len(SEEDS) + len(described))
    for text, request in zip(np.repeat(np.array(described, dtype=object), 2), requests[2 * len(SEEDS) :], strict=True):
        assert request.messages[0].content.count(f"Sentence: {text.text}\n") == 1
        assert len(request.exemplar_ids) == len(SEEDS)
    for seed, request in zip(np.repeat(np.array(SEEDS, dtype=object), 2), requests, strict=False):
        assert seed.example_id not in request.exemplar_ids
        # The prompt stays balanced: one example of each of the three classes.
        assert sorted(name.rsplit("-", 1)[0] for name in request.exemplar_ids) == sorted(TASK.labels)
        assert request.messages[0].content.count(seed.text) == 1


def test_each_vote_shows_its_own_seeds_up_to_the_limit_per_class() -> None:
    seeds = make_seeds(per_class=4)
    votes = _plan(RelabelConfig(votes=4, shots=2), seeds)
    for request in votes:
        shown = [name.rsplit("-", 1)[0] for name in request.exemplar_ids]
        assert sorted(shown) == sorted([*TASK.labels] * 2)
    assert len({frozenset(request.exemplar_ids) for request in votes}) > 1
    # With fewer seeds than the limit, requests are the same as without one.
    assert _plan(RelabelConfig(votes=4, shots=2)) == _plan(RelabelConfig(votes=4, shots=100))


def test_phrasings_differ_in_what_they_tell() -> None:
    vectors = Embeddings(
        *(
            embed(part)
            for part in (TEXTS[:1], [seed.text for seed in SEEDS], [row.text for row in describe_classes(TASK)])
        )
    )
    task = make_task(attribute="Thing")
    questions = Questions(task, SEEDS, RelabelConfig(), TEACHER, 0)
    prompts = [request.messages[0].content for request in questions.about_texts(TEXTS[:1], vectors, PHRASINGS)]
    assert len(set(prompts)) == len(PHRASINGS) == 6
    for phrasing, prompt in zip(PHRASINGS, prompts, strict=True):
        assert ("The sentence names a tool." in prompt) == phrasing.described
        assert (SEEDS[0].text in prompt) == phrasing.shown
        assert prompt.endswith("Sentence: a cat sat\n" + ("Class:" if phrasing.described else "Thing:"))
    assert "Thing of each sentence: animal, city name or tool." in prompts[4]
    assert "Thing of each sentence: tool, city name or animal." in prompts[5]


def test_the_plan_counts_at_least_what_is_asked() -> None:
    relabel = RelabelConfig(votes=2, trial=20)
    questions = Questions(TASK, SEEDS, relabel, TEACHER, 0)
    known = len(SEEDS) + len(describe_classes(TASK))
    assert questions.times(100) * len(questions.sample()) == 2 * 100 + 2 * known + 16 * 6
    assert questions.times(1000) * len(questions.sample()) == 2 * 1000 + 2 * known + 20 * 6
    assert questions.times(95) == 95 + known  # too few texts for a trial
    assert Questions(TASK, SEEDS, RelabelConfig(trial=0), TEACHER, 0).times(100) == 100 + known
