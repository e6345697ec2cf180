"""Evidence: each source alone, their combination, and missing sources."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from potstill.config import RelabelConfig
from potstill.labels import evidence
from potstill.labels.prototypes import class_texts
from potstill.labels.questions import Embeddings, Questions
from potstill.rows import Response
from tests.support.made_up import TEACHER, WORDS, answer, answered, embed, make_seeds, make_task

TASK, SEEDS = make_task(), make_seeds()
TEXTS = [f"{word} number {i}" for i in range(4) for words in WORDS.values() for word in words]
TRUE = np.array([column for _ in range(4) for column, words in enumerate(WORDS.values()) for _ in words])
VECTORS = Embeddings(*(embed(part) for part in (TEXTS, [seed.text for seed in SEEDS], class_texts(TASK))))
REQUESTS = list(Questions(TASK, SEEDS, RelabelConfig(), TEACHER, 0).about_texts(TEXTS, VECTORS))
SEED_COLUMNS = np.repeat(np.arange(3), 2)


def _weigh(votes: np.ndarray, targets: np.ndarray, share: float = 0.5) -> evidence.Evidence:
    relabel = RelabelConfig(target_prior=share, descriptions=0)
    return evidence.weigh(votes, VECTORS, SEED_COLUMNS, targets, relabel)


def test_votes_are_read_from_answers() -> None:
    votes = evidence.read_votes(TASK, answered(REQUESTS, answer(REQUESTS, lean="")), len(TEXTS))
    assert votes.shape == (48, 2, 3)
    assert (votes.argmax(2) == TRUE[:, None]).all()


def test_a_biased_teacher_is_calibrated() -> None:
    votes = evidence.read_votes(TASK, answered(REQUESTS, answer(REQUESTS, lean="tool")), len(TEXTS))
    assert (votes.argmax(2) == 2).all()  # uncalibrated, it always answers "tool"
    assert (evidence.teacher_probs(votes)[0].argmax(1) == TRUE).all()


def test_failed_requests_are_missing_votes() -> None:
    responses = answer(REQUESTS)
    first, second = REQUESTS[:2]  # both about the first text
    responses[first.request_id] = replace(responses[first.request_id], error="timeout", choice_logprobs=())
    del responses[second.request_id]
    votes = evidence.read_votes(TASK, answered(REQUESTS, responses), len(TEXTS))
    teacher, _ = evidence.teacher_probs(votes)
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


def _noisy(right: float, seed: int = 0) -> np.ndarray:
    """One-hot rows for 600 texts of 3 balanced classes: the true class for a share of them, else a random one."""
    rng = np.random.default_rng(seed)
    columns = np.where(rng.random(600) < right, np.arange(600) % 3, rng.integers(0, 3, 600))
    rows: np.ndarray = np.eye(3)[columns]
    return rows


def test_the_weight_of_descriptions_grows_with_agreement() -> None:
    targets = np.arange(600) % 3
    weights = [
        evidence.weigh_descriptions(_noisy(right), _noisy(0.6, 1), targets, "auto").weight for right in (0.0, 0.15, 0.9)
    ]
    assert weights[0] == pytest.approx(0.0, abs=0.3)
    assert 0 < weights[1] < weights[2] == 1.5
    opposed = np.roll(np.eye(3)[targets], 1, axis=1)
    assert evidence.weigh_descriptions(opposed, opposed, targets, "auto").weight == 1.5  # it also follows the teacher
    assert evidence.weigh_descriptions(opposed, np.eye(3)[targets], targets, "auto").weight == 0.0


def test_a_reliable_teacher_needs_no_descriptions() -> None:
    targets = np.arange(600) % 3
    found = evidence.weigh_descriptions(_noisy(0.6), np.eye(3)[targets], targets, "auto")
    assert found.weight == 0.0
    assert found.agreement == pytest.approx(0.6, abs=0.1)
    assert evidence.weigh_descriptions(_noisy(0.6), np.eye(3)[targets], targets, 0.7).weight == 0.7


def test_without_answers_descriptions_only_count_if_configured() -> None:
    silent = np.full((600, 3), np.nan)
    assert evidence.weigh_descriptions(_noisy(0.6), silent, np.arange(600) % 3, "auto") == evidence.DescriptionWeight()
    assert evidence.weigh_descriptions(_noisy(0.6), silent, np.arange(600) % 3, 1.0).weight == 1.0


def test_descriptions_find_the_class_of_a_text() -> None:
    votes = evidence.read_votes(TASK, answered(REQUESTS, answer(REQUESTS, reliability=0.0, lean="")), len(TEXTS))
    targets = TRUE.copy()
    targets[::6] = (targets[::6] + 1) % 3
    assert (evidence.description_probs(VECTORS.texts, VECTORS.classes).argmax(1) == TRUE).mean() > 0.9
    relabel = RelabelConfig(target_prior=0.5, descriptions=1.5)
    found = evidence.weigh(votes, VECTORS, SEED_COLUMNS, targets, relabel)
    assert (found.posterior.argmax(1) == TRUE).mean() > (targets == TRUE).mean()
