"""Evidence: each source alone, their combination, and missing sources."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from potstill.config import RelabelConfig
from potstill.labels import evidence
from potstill.labels.prototypes import describe_classes
from potstill.labels.questions import Embeddings, Questions
from potstill.rows import Response
from tests.support.made_up import TEACHER, WORDS, answer, answered, embed, make_seeds, make_task

TASK, SEEDS = make_task(), make_seeds()
TEXTS = [f"{word} number {i}" for i in range(4) for words in WORDS.values() for word in words]
TRUE = np.array([column for _ in range(4) for column, words in enumerate(WORDS.values()) for _ in words])
VECTORS = Embeddings(
    *(embed(part) for part in (TEXTS, [seed.text for seed in SEEDS], [row.text for row in describe_classes(TASK)]))
)
QUESTIONS = Questions(TASK, SEEDS, RelabelConfig(votes=2), TEACHER, 0)
REQUESTS = list(QUESTIONS.about_texts(TEXTS, VECTORS))
KNOWN = QUESTIONS.about_known(VECTORS)
NONE_KNOWN = np.empty((0, 2, 3))
SEED_COLUMNS = np.repeat(np.arange(3), 2)


def _weigh(votes: np.ndarray, targets: np.ndarray, share: float = 0.5) -> evidence.Evidence:
    relabel = RelabelConfig(target_prior=share, descriptions=0)
    return evidence.weigh(votes, NONE_KNOWN, VECTORS, SEED_COLUMNS, targets, relabel)


def teacher_probs(votes: np.ndarray, targets: np.ndarray = TRUE) -> np.ndarray:
    return evidence.teacher_probs(votes, targets, NONE_KNOWN)[0]


def test_votes_are_read_from_answers() -> None:
    votes = evidence.read_votes(TASK, answered(REQUESTS, answer(REQUESTS, lean="")), len(TEXTS))
    assert votes.shape == (48, 2, 3)
    assert (votes.argmax(2) == TRUE[:, None]).all()


def test_a_biased_teacher_is_calibrated() -> None:
    votes = evidence.read_votes(TASK, answered(REQUESTS, answer(REQUESTS, lean="tool")), len(TEXTS))
    assert (votes.argmax(2) == 2).all()  # uncalibrated, it always answers "tool"
    assert (teacher_probs(votes).argmax(1) == TRUE).all()


def test_failed_requests_are_missing_votes() -> None:
    responses = answer(REQUESTS)
    first, second = REQUESTS[:2]  # both about the first text
    responses[first.request_id] = replace(responses[first.request_id], error="timeout", choice_logprobs=())
    del responses[second.request_id]
    votes = evidence.read_votes(TASK, answered(REQUESTS, responses), len(TEXTS))
    teacher = teacher_probs(votes)
    assert np.isnan(teacher[0]).all()
    assert np.isfinite(teacher[1:]).all()
    found = _weigh(votes, TRUE)
    assert np.isfinite(found.posterior).all()
    assert found.posterior[0].argmax() == TRUE[0]


def votes_of(logprobs: tuple[float | None, ...], residual: float | None) -> np.ndarray:
    """One vote as read from its answer."""
    asked = [request for request in REQUESTS if request.choices == ("animal", "city name", "tool")][:1]
    said = Response(asked[0].request_id, choice_logprobs=logprobs, residual_mass=residual)
    votes: np.ndarray = evidence.read_votes(TASK, answered(asked, {said.request_id: said}), 1)[0, 0]
    return votes


def test_an_unnamed_class_is_less_likely_than_the_named_ones() -> None:
    votes = votes_of((np.log(0.98), np.log(0.0199), None), 0.0001)
    assert np.exp(votes) == pytest.approx([0.98, 0.0199, 0.0001])
    # The residual may belong to other words.
    assert np.exp(votes_of((np.log(0.6), np.log(0.01), None), 0.39)) == pytest.approx([0.6, 0.01, 0.01])
    assert np.exp(votes_of((np.log(0.9), None, None), 0.1)) == pytest.approx([0.9, 0.05, 0.05])
    assert np.exp(votes_of((np.log(0.9), np.log(0.09), None), None)) == pytest.approx([0.9, 0.09, 0.01])
    assert np.exp(votes_of((np.log(0.9), np.log(0.1), None), 0.0)) == pytest.approx([0.9, 0.1, 1e-6])


@pytest.mark.parametrize("residual", [0.0, None])
def test_an_answer_without_probabilities_leaves_some_mass_to_the_others(residual: float | None) -> None:
    assert np.exp(votes_of((0.0, None, None), residual)) == pytest.approx([1.0, 0.025, 0.025])


def test_wrong_targets_are_overruled() -> None:
    votes = evidence.read_votes(TASK, answered(REQUESTS, answer(REQUESTS)), len(TEXTS))
    targets = TRUE.copy()
    targets[::6] = (targets[::6] + 1) % 3
    found = _weigh(votes, targets)
    assert (targets == TRUE).mean() < 0.85
    assert (found.posterior.argmax(1) == TRUE).mean() > 0.95
    assert np.allclose(found.posterior.sum(1), 1)


def test_combine_is_a_product() -> None:
    one, other = np.array([[0.8, 0.2], [0.5, 0.5]]), np.array([[0.5, 0.5], [np.nan, np.nan]])
    assert np.allclose(evidence.combine(one, other), [[0.8, 0.2], [0.5, 0.5]])
    assert np.allclose(evidence.combine(one, one)[0], [0.64 / 0.68, 0.04 / 0.68])


def test_expected_shares_are_those_of_the_targets() -> None:
    assert evidence.expected_shares(np.array([0] * 10 + [1] * 9), 2) is None
    skewed = evidence.expected_shares(np.array([0] * 9 + [1]), 2)
    assert skewed is not None
    assert skewed.tolist() == [0.9, 0.1]


def test_the_leaning_is_found_on_texts_of_known_classes() -> None:
    """Nine in ten of the texts are animals: dividing the leaning out over them would divide out the animals too."""
    chosen = np.flatnonzero((TRUE == 0) | (np.arange(len(TRUE)) % 16 == 5))
    texts = [TEXTS[i] for i in chosen]
    vectors = replace(VECTORS, texts=VECTORS.texts[chosen])
    requests = list(QUESTIONS.about_texts(texts, vectors))
    votes, known = (
        evidence.read_votes(TASK, answered(asked, answer(asked, lean="tool", reliability=2.0)), count)
        for asked, count in ((requests, len(texts)), (KNOWN, len(VECTORS.known)))
    )
    unknown = np.full(len(texts), -1)
    found, _ = evidence.teacher_probs(votes, unknown, known)
    assert (found.argmax(1) == TRUE[chosen]).all()
    over_them, _ = evidence.teacher_probs(votes, unknown, NONE_KNOWN)
    assert (over_them.argmax(1) == TRUE[chosen]).mean() < 0.5


def test_seeds_and_descriptions_find_the_class_of_a_text() -> None:
    assert (evidence.known_probs(VECTORS, SEED_COLUMNS).argmax(1) == TRUE).mean() > 0.9
    votes = evidence.read_votes(TASK, answered(REQUESTS, answer(REQUESTS, reliability=0.0, lean="")), len(TEXTS))
    targets = TRUE.copy()
    targets[::6] = (targets[::6] + 1) % 3
    relabel = RelabelConfig(target_prior=0.5, descriptions=2.0)
    found = evidence.weigh(votes, NONE_KNOWN, VECTORS, SEED_COLUMNS, targets, relabel)
    assert (found.posterior.argmax(1) == TRUE).mean() > (targets == TRUE).mean()
    alone = evidence.weigh(np.full_like(votes, np.nan), NONE_KNOWN, VECTORS, SEED_COLUMNS, np.full(48, -1), relabel)
    assert (alone.posterior.argmax(1) == TRUE).mean() > 0.9


def test_the_phrasing_that_tells_most_comes_first() -> None:
    rng = np.random.default_rng(0)
    sure, blind = np.log(np.where(np.eye(3)[TRUE] > 0, 0.9, 0.05)), rng.normal(0, 0.1, (48, 3))
    leaning = sure * 0.5 + np.array([3.0, 0.0, 0.0])  # a leaning is calibrated away
    silent = np.full((48, 3), np.nan)
    ranked = evidence.rank_phrasings(np.stack([blind, silent, leaning, sure], axis=1))
    assert [column for column, _ in ranked[:3]] == [3, 2, 0]
    told = dict(ranked)
    even = -3 * np.log(1 / 3) / 3
    of_each = -(0.9 * np.log(0.9) + 0.1 * np.log(0.05))
    assert told[3] == pytest.approx(even - of_each, abs=1e-6)
    assert told[1] == 0.0
