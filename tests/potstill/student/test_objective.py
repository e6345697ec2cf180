"""The student's training objective: targets, weights, schedule, loss."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config.student import StudentConfig
from potstill.errors import InputError
from potstill.rows import Example
from potstill.student.arms import (
    Arm,
    TrainingRow,
    arm_digest,
    from_examples,
    from_opinions,
    from_table,
    from_texts,
    problems,
    repeat,
    repeats_of,
    to_table,
)
from potstill.student.objective import learning_rate, peak_learning_rate, targets
from potstill.task import LabelledText

LABELS = ("a", "b", "c")
ROWS = [
    TrainingRow("x", (0.7, 0.2, 0.1)),
    TrainingRow("y", (0.0, 0.0, 1.0), 5.0),
    TrainingRow("z", (0.1, 0.8, 0.1), 2.0),
]


def test_targets_are_the_distributions_by_default() -> None:
    target, weights = targets(ROWS, StudentConfig())
    np.testing.assert_allclose(target, [row.label_probs for row in ROWS], atol=1e-6)
    np.testing.assert_allclose(weights, [1, 5, 2])


def test_soft_weight_zero_is_hard_labels() -> None:
    target, _ = targets(ROWS, StudentConfig(soft_weight=0.0))
    np.testing.assert_array_equal(target, np.eye(3)[[0, 2, 1]])


@given(temperature=st.floats(0.1, 20), mix=st.floats(0, 1), smoothing=st.floats(0, 0.5))
def test_targets_stay_distributions_with_the_same_winner(temperature: float, mix: float, smoothing: float) -> None:
    student = StudentConfig(soft_temperature=temperature, soft_weight=mix, label_smoothing=smoothing)
    target, _ = targets(ROWS, student)
    np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-5)
    assert (target.argmax(axis=1) == [0, 2, 1]).all()


def test_temperature_flattens_and_smoothing_spreads() -> None:
    hot, _ = targets(ROWS, StudentConfig(soft_temperature=100.0))
    assert hot[0].max() < 0.36
    smooth, _ = targets(ROWS, StudentConfig(label_smoothing=0.3))
    np.testing.assert_allclose(smooth[1], [0.1, 0.1, 0.8], atol=1e-6)


def test_balanced_class_weights_give_each_class_the_same_total() -> None:
    rows = [TrainingRow("x", (1.0, 0.0, 0.0))] * 9 + [TrainingRow("y", (0.0, 1.0, 0.0))]
    target, weights = targets(rows, StudentConfig(class_weights="balanced"))
    mass = (target * weights[:, None]).sum(axis=0)
    np.testing.assert_allclose(mass, [5, 5, 0], rtol=1e-5)


def test_schedule_warms_up_and_falls_to_zero() -> None:
    for schedule in ("linear", "cosine"):
        rates = [learning_rate(step, 100, 1.0, 0.1, schedule) for step in range(100)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == rates[9] == rates[10] == pytest.approx(1.0)
        assert rates[-1] < 0.02
        assert all(a >= b for a, b in pairwise(rates[10:]))
    assert learning_rate(55, 100, 1.0, 0.1, "cosine") == pytest.approx(0.5)
    assert math.isfinite(learning_rate(0, 1, 1.0, 1.0, "linear"))


def test_auto_learning_rate_depends_on_size() -> None:
    assert peak_learning_rate(StudentConfig(), 22_000_000) == 1e-4
    assert peak_learning_rate(StudentConfig(), 110_000_000) == 4e-5
    assert peak_learning_rate(StudentConfig(learning_rate=0.5), 1) == 0.5


def test_rows_from_examples_are_those_kept() -> None:
    examples = [
        Example("1", "soft", "a", (0.6, 0.4, 0.0)),
        Example("2", "plain", "b"),
        Example("3", "gone", "c", kept=False, dropped_because="duplicate"),
    ]
    assert from_examples(examples, LABELS) == [
        TrainingRow("soft", (0.6, 0.4, 0.0)),
        TrainingRow("plain", (0.0, 1.0, 0.0)),
    ]
    assert from_examples(examples, LABELS, soft=False)[0].label_probs == (1.0, 0.0, 0.0)
    assert from_texts([LabelledText("1", "t", "c")], LABELS, 5.0) == [TrainingRow("t", (0.0, 0.0, 1.0), 5.0)]


def test_opinions_are_rows_of_the_texts_asked_about() -> None:
    examples = [
        Example("1", "asked", "a", target_label="a", teacher_label="b"),
        Example("2", "dropped", "b", target_label="c", teacher_label="c", kept=False, dropped_because="low evidence"),
        Example("3", "not asked", "c"),
    ]
    assert from_opinions(examples, LABELS) == [
        TrainingRow("asked", (0.5, 0.5, 0.0)),
        TrainingRow("dropped", (0.0, 0.0, 1.0)),
    ]


def test_rows_survive_their_table() -> None:
    assert from_table(to_table(ROWS)) == ROWS


def test_the_digest_depends_only_on_what_changes_the_student() -> None:
    arm = Arm("one", tuple(ROWS), seed=1)
    base = arm_digest(arm, StudentConfig(), LABELS, "w")
    assert base == arm_digest(Arm("two", tuple(ROWS), 1, lineage={"run": "x"}), StudentConfig(workers=7), LABELS, "w")
    assert base != arm_digest(Arm("one", tuple(ROWS), seed=2), StudentConfig(), LABELS, "w")
    assert base != arm_digest(Arm("one", tuple(ROWS[:2]), seed=1), StudentConfig(), LABELS, "w")
    assert base != arm_digest(arm, StudentConfig(epochs=6), LABELS, "w")
    assert base != arm_digest(arm, StudentConfig(), LABELS, "v")
    assert base == arm_digest(arm, StudentConfig(blend=0.1), LABELS, "w"), "nothing to blend with"
    keys = {"s": "anchor"}
    following = Arm("one", tuple(ROWS), seed=1, anchor="s")
    anchored = arm_digest(following, StudentConfig(), LABELS, "w", keys)
    assert anchored != base
    assert anchored != arm_digest(following, StudentConfig(blend=0.1), LABELS, "w", keys)
    asked = Arm("one", tuple(ROWS), seed=1, anchor="s", asked=tuple(ROWS[:1]))
    assert anchored != arm_digest(asked, StudentConfig(), LABELS, "w", keys)
    contrastive = Arm("one", tuple(ROWS), seed=1, contrastive=True)
    starts = Arm("one", tuple(ROWS), seed=1, start="s")
    found = [arm_digest(one, StudentConfig(), LABELS, "w", keys) for one in (contrastive, starts)]
    assert len({base, anchored, *found}) == 4
    assert found[0] != arm_digest(contrastive, StudentConfig(contrastive_steps=9), LABELS, "w")
    assert found[1] == arm_digest(starts, StudentConfig(contrastive_steps=9), LABELS, "v", keys), "its start says both"


def test_repeats_vary_the_training_seed() -> None:
    arms = [Arm("s", tuple(ROWS), seed=4), Arm("d", tuple(ROWS), seed=4, anchor="s")]
    found = repeat(arms, 3)
    assert [(arm.name, arm.seed, arm.anchor) for arm in found] == [
        ("s", 4, None),
        ("d", 4, "s"),
        ("s-seed1", 5, None),
        ("d-seed1", 5, "s-seed1"),
        ("s-seed2", 6, None),
        ("d-seed2", 6, "s-seed2"),
    ]
    assert not problems(found, LABELS)
    assert repeats_of("d", [arm.name for arm in found]) == ["d", "d-seed1", "d-seed2"]
    assert repeats_of("regression", []) == ["regression"]


def test_problems_are_reported_together() -> None:
    one_class = Arm("same", (TrainingRow("x", (1.0, 0.0, 0.0)), TrainingRow("y", (0.9, 0.1, 0.0))))
    bad = [
        Arm("none", ()),
        Arm("none", (TrainingRow("  ", (1.0, 0.0, 0.0)),)),
        Arm("short", (TrainingRow("x", (1.0, 0.0)),)),
        Arm("sum", (TrainingRow("x", (0.5, 0.0, 0.0)),)),
        Arm("weight", (TrainingRow("x", (1.0, 0.0, 0.0), 0.0),)),
        one_class,
    ]
    text = "\n".join(map(str, problems(bad, LABELS)))
    for part in ("twice", "no texts", "non-empty", "2 probabilities", "not a distribution", "above 0", "one class"):
        assert part in text
    assert problems([Arm("fine", tuple(ROWS))], LABELS) == []
    assert "1 class" in str(problems([], ("a",))[0])


def test_labels_not_in_the_task_are_named() -> None:
    with pytest.raises(InputError, match=r"'d' \(2\), 'e' \(1\) not among the task's classes a, b, c"):
        from_texts([LabelledText("1", "t", label) for label in "addec"], LABELS)
    with pytest.raises(InputError, match="'z'"):
        from_examples([Example("1", "t", "z"), Example("2", "t", "y", kept=False)], LABELS)


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        ({"optimizer": {}}, "optimizer is decided by student's learning_rate"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage is decided by student's zero_stage"),
        ({"zero_optimization": {"offload_optimizer": {}}}, "student's offload_optimizer"),
        ({"zero_optimization": True}, "zero_optimization must be a mapping, not True"),
        ({"checkpoint": {"load_universal": True}}, "checkpoint.load_universal is decided"),
        ({"fp16": {}, "gradient_clipping": 1}, "gradient_clipping is decided .* clip_norm.*; fp16 is decided"),
    ],
)
def test_deepspeed_settings_that_potstill_owns_are_refused(passed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StudentConfig(deepspeed=passed)


def test_other_deepspeed_settings_pass() -> None:
    passed = {"zero_optimization": {"reduce_bucket_size": 10**6}, "checkpoint": {"use_node_local_storage": True}}
    assert StudentConfig(deepspeed=passed, zero_stage=2).deepspeed == passed


def test_settings_that_depend_on_others_are_checked() -> None:
    with pytest.raises(ValueError, match="zero_stage"):
        StudentConfig(offload_optimizer=True)
    with pytest.raises(ValueError, match=r"min_workers \(3\) must not be above workers \(2\)"):
        StudentConfig(workers=2, min_workers=3)


@given(temperature=st.floats(0.2, 20), mix=st.floats(0, 1), smoothing=st.floats(0, 0.9))
def test_the_loss_equals_torchs(temperature: float, mix: float, smoothing: float) -> None:
    """One soft target gives the mix of a distillation loss at a temperature and a hard loss, both smoothed."""
    import torch
    from torch.nn import functional

    student = StudentConfig(soft_temperature=temperature, soft_weight=mix, label_smoothing=smoothing)
    target, weights = targets(ROWS, student)
    logits = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.0, -0.5], [0.1, 0.2, 0.3]], dtype=torch.float64)
    ours = -(torch.from_numpy(target).double() * torch.log_softmax(logits, -1)).sum(-1) * torch.from_numpy(weights)
    teacher = torch.tensor([row.label_probs for row in ROWS], dtype=torch.float64)
    softened = torch.softmax(torch.log(teacher) / temperature, -1)

    def loss(aim: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, aim, label_smoothing=smoothing, reduction="none")

    plain = mix * loss(softened) + (1 - mix) * loss(teacher.argmax(-1))
    np.testing.assert_allclose(ours, plain * torch.tensor([row.weight for row in ROWS]), rtol=1e-4)


def test_balanced_weights_equal_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_sample_weight

    labels = [0] * 7 + [1] * 2 + [2] * 3
    rows = [TrainingRow("x", tuple(np.eye(3)[label])) for label in labels]
    _, weights = targets(rows, StudentConfig(class_weights="balanced"))
    np.testing.assert_allclose(weights, compute_sample_weight("balanced", labels), rtol=1e-6)
