"""Resolution with a good, a guessing and an adversarial teacher; and its parts."""

from dataclasses import replace

import numpy as np
import pytest

from potstill.config import RelabelConfig
from potstill.labels.prototypes import describe_classes
from potstill.labels.questions import Embeddings, Questions
from potstill.labels.resolution import (
    LOW_EVIDENCE,
    NOT_NEEDED,
    Guard,
    _apply_changes,
    _guard,
    check_on_seeds,
    resolve,
    select,
)
from potstill.rows import Example, Response
from tests.support.made_up import TEACHER, WORDS, answer, answered, embed, make_seeds, make_task

TASK, SEEDS = make_task(), make_seeds(4)
TEXTS = [f"{word} number {i}" for i in range(4) for words in WORDS.values() for word in words]
TRUE = [label for _ in range(4) for label, words in WORDS.items() for _ in words]
VECTORS = Embeddings(
    *(embed(part) for part in (TEXTS, [seed.text for seed in SEEDS], [row.text for row in describe_classes(TASK)]))
)
RELABEL = RelabelConfig()
QUESTIONS = Questions(TASK, SEEDS, RELABEL, TEACHER, 0)
REQUESTS = list(QUESTIONS.about_texts(TEXTS, VECTORS))
CHECKS = QUESTIONS.about_known(VECTORS)


def resolved(teach, targets=TRUE, per_class=8, relabel=RELABEL):
    """``resolve`` with a teacher that is a function from requests to responses."""
    examples = [
        Example(str(i), text, label, target_label=label)
        for i, (text, label) in enumerate(zip(TEXTS, targets, strict=True))
    ]
    responses = teach([*REQUESTS, *CHECKS]) if relabel.enabled else {}
    asked = [answered(requests if relabel.enabled else [], responses) for requests in (REQUESTS, CHECKS)]
    return resolve(replace(QUESTIONS, relabel=relabel), examples, *asked, VECTORS, per_class)


def guess(requests):
    draws = np.random.default_rng(0)
    return {
        request.request_id: Response(
            request.request_id, choice_logprobs=tuple(draws.normal(-3, 2, len(request.choices)))
        )
        for request in requests
    }


def be_wrong(requests):
    return {
        name: replace(response, choice_logprobs=tuple(-10 - value for value in response.choice_logprobs))
        for name, response in answer(requests, lean="").items()
    }


def accuracy(result):
    return np.mean([example.label == label for example, label in zip(result.examples, TRUE, strict=True)])


def mislabelled(every=6):
    labels = list(WORDS)
    return [labels[(labels.index(label) + 1) % 3] if i % every == 0 else label for i, label in enumerate(TRUE)]


def test_a_good_teacher_corrects_wrong_targets():
    result = resolved(answer, mislabelled())
    assert result.report.seed_accuracy > 0.8
    assert result.report.guard == Guard.PROVEN.value
    assert result.report.min_confidence == 0.0
    assert accuracy(result) > 0.95
    assert result.report.share_changed == pytest.approx(1 / 6, abs=0.05)


def test_the_most_confident_of_each_class_are_kept():
    result = resolved(answer, per_class=5)
    kept = [example for example in result.examples if example.kept]
    assert sorted(example.label for example in kept) == sorted(list(WORDS) * 5)
    assert {example.dropped_because for example in result.examples if not example.kept} == {LOW_EVIDENCE}
    for label in WORDS:
        lowest = min(example.confidence for example in kept if example.label == label)
        others = [e.confidence for e in result.examples if not e.kept and e.label == label]
        assert lowest >= max(others)


def test_a_guessing_teacher_does_little_harm():
    result = resolved(guess)
    assert result.report.min_confidence == 0.9
    assert accuracy(result) > 0.9


def test_a_teacher_worse_than_chance_is_not_used():
    result = resolved(be_wrong)
    assert result.report.seed_accuracy < 1 / 3
    assert result.report.guard == Guard.NOT_USED.value
    assert {example.dropped_because for example in result.examples if not example.kept} == {NOT_NEEDED}
    assert any("below chance" in warning for warning in result.report.warnings)
    assert accuracy(result) > 0.9
    assert result.report.share_contradicted > 0.9  # its answers are still counted
    assert {example.teacher_label for example in result.examples} == {None}  # but not used


@pytest.mark.parametrize(
    ("right", "seeds", "guard"),
    [(1, 4, Guard.UNPROVEN), (0, 4, Guard.UNPROVEN), (0, 5, Guard.NOT_USED), (2, 20, Guard.NOT_USED)],
)
def test_a_few_wrong_seeds_are_not_significant(right, seeds, guard):
    """Two classes: guessing gets four seeds wrong with probability 1/16, five with 1/32."""
    truth = np.arange(seeds) % 2
    said = np.where(np.arange(seeds) < right, truth, 1 - truth)
    check = check_on_seeds(answers([*np.where(np.eye(2)[said] > 0, 0.8, 0.2), *BALANCED]), truth)
    assert check.accuracy == pytest.approx(right / seeds)
    assert check.accuracy < check.chance
    assert _guard(RELABEL, check) is guard


def test_a_teacher_without_answers_about_the_seeds_is_unproven():
    def forget_the_seeds(requests):
        checks = {request.request_id for request in CHECKS}
        return {name: said for name, said in guess(requests).items() if name not in checks}

    result = resolved(forget_the_seeds)
    assert result.report.guard == Guard.UNPROVEN.value
    assert any("no answer about the labelled seeds" in warning for warning in result.report.warnings)
    assert accuracy(result) > 0.9


def test_without_a_teacher_the_first_texts_of_each_class_are_kept():
    result = resolved(answer, per_class=3, relabel=RelabelConfig(enabled=False))
    for label in WORDS:
        own = [example for example in result.examples if example.label == label]
        assert [example.kept for example in own] == [True] * 3 + [False] * (len(own) - 3)


def test_without_relabelling_texts_keep_their_class():
    result = resolved(answer, mislabelled(), relabel=RelabelConfig(enabled=False))
    assert [example.label for example in result.examples] == mislabelled()
    assert all(max(example.label_probs) == 1.0 for example in result.examples)
    assert result.report.seed_accuracy is None
    assert result.report.share_changed == 0.0
    assert result.report.share_contradicted == 0.0


def answers(probs: np.ndarray) -> np.ndarray:
    return np.log(np.asarray(probs, dtype=float))[:, None, :]


BALANCED = np.array([[0.8, 0.2], [0.2, 0.8]] * 20)


def test_the_seed_check_compares_with_guessing():
    check = check_on_seeds(answers([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], *BALANCED]), np.array([0, 1, 1]))
    assert check.accuracy == pytest.approx(2 / 3)
    assert check.p_value == pytest.approx(0.5)  # two or three heads in three throws
    silent = np.full_like(answers(BALANCED), np.nan)
    assert check_on_seeds(silent, np.zeros(40, dtype=int)) is None


def test_chance_depends_on_the_classes_offered():
    """77 classes, six offered: guessing scores 1/6, which is not significant."""
    draws = np.random.default_rng(0)
    truth = np.arange(154) % 77
    votes = np.full((154, 1, 77), np.nan)
    for row, label in enumerate(truth):
        others = draws.choice(np.delete(np.arange(77), label), 5, replace=False)
        votes[row, 0, [label, *others]] = draws.normal(-3, 2, 6)
    check = check_on_seeds(votes, truth)
    assert check.chance == pytest.approx(1 / 6)
    assert check.p_value > 0.01


def test_only_confident_changes_are_applied():
    posterior = np.array([[0.9, 0.1], [0.3, 0.7], [0.05, 0.95]])
    applied = _apply_changes(posterior, np.array([0, 0, 0]), threshold=0.8)
    assert applied.labels.tolist() == [0, 0, 1]
    assert applied.share == pytest.approx(0.5)
    assert applied.probs.argmax(1).tolist() == [0, 0, 1]
    np.testing.assert_allclose(applied.probs.sum(1), 1)
    assert applied.confidence.tolist() == pytest.approx([0.9, 0.3, 0.95])


def test_applying_to_no_text():
    assert _apply_changes(np.zeros((0, 3)), np.zeros(0, dtype=int), 0.5).share == 1.0


def test_select_takes_the_most_confident_of_each_class():
    columns = np.array([0, 0, 0, 1, 1])
    confidence = np.array([0.9, 0.5, 0.8, 0.4, 0.6])
    none, all_of_them = np.zeros(5, dtype=bool), np.ones(5, dtype=bool)
    assert select(columns, confidence, 2, 3, none).tolist() == [True, False, True, True, True]
    assert select(columns, confidence, 1, 3, all_of_them).tolist() == [True, False, True, False, True]


def test_written_texts_fill_the_classes_that_lack_real_ones():
    columns = np.array([0, 0, 0, 0, 1, 1, 1])
    confidence = np.array([0.2, 0.3, 0.9, 0.8, 0.7, 0.9, 0.8])
    real = np.array([True, True, False, False, False, False, False])
    assert select(columns, confidence, 2, 2, real).tolist() == [False, True, True, False, False, True, True]
    assert select(columns, confidence, 3, 2, real).tolist() == [False, True, True, True, True, True, True]


def test_select_takes_the_first_of_equally_confident_texts():
    assert (
        select(np.zeros(30, dtype=int), np.ones(30), 10, 1, np.zeros(30, dtype=bool)).tolist()
        == [True] * 10 + [False] * 20
    )
