"""Votes, diagnoses, forecasts and advice, with a scripted teacher and hand-worked cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.labels.evidence import read_votes
from potstill.study import assessment
from potstill.study.advice import advise, by_hand, learning_curve
from potstill.study.forecast import FEWEST, FEWEST_FOR_TWO, Forecast, Studied, forecast, leave_one_out
from tests.support.made_up import TEACHER, WORDS, answer, answered, embed, make_seeds, make_task

TEXTS = [
    f"there is a {word} here, {time}" for time in ("now", "soon", "often") for words in WORDS.values() for word in words
]


def votes_of(reliability: float = 3.0):
    task = make_task()
    offered = [task.labels] * len(TEXTS)
    requests = list(assessment.VoteQuestions(task, make_seeds(), TEACHER, 0).about_texts(TEXTS, offered))
    found = answered(requests, answer_votes(requests, reliability))
    return requests, read_votes(task, found, len(TEXTS))


def answer_votes(requests, reliability):
    """The scripted teacher reads the text after "Sentence: "; here the heading may also be "Entry: "."""
    renamed = [
        replace(r, messages=(replace(r.messages[0], content=r.messages[0].content.replace("Entry: ", "Sentence: ")),))
        for r in requests
    ]
    responses = answer(renamed, reliability=reliability).values()
    return {r.request_id: replace(one, request_id=r.request_id) for r, one in zip(requests, responses, strict=True)}


def test_every_text_is_asked_about_in_four_different_ways():
    requests, _ = votes_of()
    assert len(requests) == len(TEXTS) * assessment.VOTES
    assert len({request.request_id for request in requests}) == len(requests)
    first = [request.messages[0].content for request in requests[: assessment.VOTES]]
    assert len(set(first)) == assessment.VOTES
    assert all(TEXTS[0] in prompt for prompt in first)
    one, other = first[:2]  # the same classes and examples in reverse order
    assert sorted(one.splitlines()) == sorted(other.splitlines())


def test_a_seed_is_not_shown_when_it_is_asked_about():
    task, seeds = make_task(), make_seeds()
    checks = assessment.VoteQuestions(task, seeds, TEACHER, 0).about_seeds([task.labels] * len(seeds))
    for i, request in enumerate(checks):
        seed = seeds[i // assessment.VOTES]
        assert request.messages[0].content.count(seed.text) == 1
        assert seed.example_id not in request.exemplar_ids


def test_a_biased_teacher_that_knows_the_classes_scores_full_marks():
    _, votes = votes_of()
    probs = assessment.calibrated(votes)
    found = assessment.diagnose(probs)
    columns = [column for column, words in enumerate(WORDS.values()) for _ in words] * 3
    assert assessment.accuracy(probs, columns) == 1.0
    assert (found.agreement, found.alpha, found.same_when_reordered) == (1.0, 1.0, 1.0)
    assert found.class_coverage == pytest.approx(1.0, abs=0.05)
    assert found.texts == len(TEXTS)


def test_a_diagnosis_by_hand():
    sure, doubt = [1.0, 0.0], [0.5, 0.5]
    probs = np.array([[sure] * 4, [sure, sure[::-1]] * 2, [doubt] * 4])
    probs[2, :, 0] += 1e-9  # the first class wins
    found = assessment.diagnose(probs)
    assert found.agreement == pytest.approx((1 + 0.5 + 1) / 3)
    assert found.sampled_agreement == pytest.approx((1 + 1 + 0.5) / 3)
    assert found.entropy == pytest.approx((0 + 1 + 1) / 3)
    assert found.same_when_reordered == pytest.approx(
        2 / 3
    )  # the second text's label changes with the order, never with the phrasing
    assert found.same_when_rephrased == 1.0


def test_texts_without_all_their_votes_are_left_out():
    probs = np.full((3, 4, 2), 0.5)
    probs[0, 2] = np.nan
    assert assessment.diagnose(probs).texts == 2
    assert assessment.accuracy(probs, [0, 0, 0]) == pytest.approx(2 / 3)
    probs[:] = np.nan
    assert assessment.diagnose(probs) is None


def studied(count, slope=-1.0, noise=0.0):
    rng = np.random.default_rng(1)
    alphas = np.linspace(0.1, 0.9, count)
    return [
        Studied(f"task {i}", slope * (1 - a) + noise * rng.normal(), {"alpha": a, "entropy": rng.random()})
        for i, a in enumerate(alphas)
    ]


def test_too_few_tasks_give_no_forecast():
    said = forecast(studied(FEWEST - 1), {"alpha": 0.5, "entropy": 0.5})
    assert said == f"{FEWEST - 1} tasks were both studied and assessed with this teacher; a forecast needs {FEWEST}"
    assert "alpha could not be measured" in forecast(studied(FEWEST), {"alpha": None})


def test_a_line_is_found_and_its_interval_holds_it():
    found = forecast(studied(FEWEST + 3, noise=0.01), {"alpha": 0.5})
    assert isinstance(found, Forecast)
    assert found.useful
    assert found.predictors == ("alpha",)
    assert found.gap.low < -0.5 < found.gap.high
    assert found.error < 0.05 < found.error_of_mean
    assert found.rank_correlation > 0.9


def test_two_predictors_only_from_many_tasks():
    assert forecast(studied(FEWEST_FOR_TWO, noise=0.01), {"alpha": 0.5, "entropy": 0.5}).predictors == (
        "alpha",
        "entropy",
    )


def test_uninformative_diagnostics_forecast_the_mean():
    rng = np.random.default_rng(0)
    found = forecast(
        [Studied(str(i), float(gap), {"alpha": float(a)}) for i, (gap, a) in enumerate(rng.normal(size=(9, 2)))],
        {"alpha": 50.0},
    )
    assert not found.useful
    assert found.predictors == ()
    assert abs(found.gap.value) < 1.5


@given(st.integers(3, 12), st.integers(1, 2), st.integers(0, 100))
def test_leave_one_out_equals_fitting_without_the_row(rows, width, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(rows, width)), rng.normal(size=rows)
    design = np.column_stack([np.ones(rows), x])
    if rows > width + 2:
        i = seed % rows
        rest = np.delete(np.arange(rows), i)
        expected = design[i] @ np.linalg.solve(design[rest].T @ design[rest], design[rest].T @ y[rest])
        assert leave_one_out(x, y)[i] == pytest.approx(expected, rel=1e-4, abs=1e-6)


GOOD = assessment.Diagnosis(100, 0.95, 0.9, 0.1, 0.9, 0.95, 0.95, 0.9)


@pytest.mark.parametrize(
    ("diagnosis", "seed_accuracy", "say"),
    [
        (GOOD, 1.0, "go"),
        (GOOD, 0.7, "go, with few-shot prompts and relabelling"),
        (replace(GOOD, alpha=0.4), 1.0, "go, with few-shot prompts and relabelling"),
        (GOOD, 0.2, "label by hand"),
        (replace(GOOD, alpha=0.05), 1.0, "label by hand"),
        (replace(GOOD, alpha=None), 1.0, "label by hand"),
        (None, 1.0, "label by hand"),
    ],
)
def test_advice(diagnosis, seed_accuracy, say):
    found = advise(diagnosis, seed_accuracy, 20, 4, {})
    assert found.say == say
    assert "of 20 labelled examples" in found.because[0]


def test_how_many_to_label_is_read_off_the_learning_curve():
    assert by_hand({2: 0.5, 4: 0.7, 8: 0.71, 16: 0.72}).startswith("About 4 labelled texts per class are enough")
    assert "still rises at 8" in by_hand({2: 0.5, 4: 0.6, 8: 0.7})
    assert "can't be told" in by_hand({})


def test_a_learning_curve_rises_and_needs_enough_texts():
    texts = [f"{word} number {i}" for i in range(12) for words in WORDS.values() for word in words]
    labels = [label for _ in range(12) for label, words in WORDS.items() for _ in words]
    curve = learning_curve(embed(texts), labels, list(WORDS))
    assert list(curve) == [2, 4, 8, 16]
    assert curve[16] > 0.9
    assert learning_curve(embed(texts[:6]), labels[:6], list(WORDS)) == {}
