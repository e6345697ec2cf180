"""Training and prediction through real Ray and real DeepSpeed on two CPU workers, with a tiny BERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.stages import predict as evaluation
from jobs.stages import train as training
from jobs.stages.train import choose_workers, problems
from potstill.config.student import StudentConfig
from potstill.errors import InputError, StageError
from potstill.measures.scores import score
from potstill.student.arms import Arm
from potstill.task import LabelledText
from tests.support.tiny_student import LABELS, make_rows, make_student

ROWS = make_rows(75)


def test_worker_counts_follow_the_cluster() -> None:
    auto, four = StudentConfig(), StudentConfig(workers=4)
    assert choose_workers(auto, {"CPU": 16, "GPU": 3}) == (3, True)
    assert choose_workers(auto, {"CPU": 16}) == (2, False)
    assert choose_workers(auto, {"CPU": 1}) == (1, False)
    assert choose_workers(StudentConfig(threads=4), {"CPU": 6}) == (1, False)
    assert choose_workers(four, {"CPU": 2, "GPU": 8}) == (4, True)


def test_more_than_the_cluster_has_is_a_problem_not_a_wait() -> None:
    assert problems(StudentConfig(workers=2), {"CPU": 2.0}) == []
    (problem,) = problems(StudentConfig(workers=3), {"CPU": 2.0})
    assert str(problem).startswith("student.workers = 3: needs 3 CPUs and the cluster has 2")
    (problem,) = problems(StudentConfig(workers=5), {"CPU": 64.0, "GPU": 4.0})
    assert "needs 5 GPUs" in str(problem)
    wide = StudentConfig(workers=2, threads=8)
    assert problems(wide, {"CPU": 16.0}, [8.0, 8.0]) == []
    (problem,) = problems(wide, {"CPU": 16.0}, [4.0] * 4)
    assert "the nodes' CPUs have room for 0" in str(problem)
    assert "no such folder" in str(problems(StudentConfig(model="/nowhere"), {"CPU": 2.0})[0])


def settings(folder: Path, **changes: Any) -> StudentConfig:
    """At 5e-3 instead, a student of seed 1 in bfloat16 never leaves a plateau that merges two classes."""
    model = make_student(folder / "bert")
    base = {"model": model, "epochs": 1, "min_steps": 50, "batch_size": 16, "learning_rate": 2e-3, "max_failures": 1}
    return StudentConfig(**{**base, **changes})


@pytest.mark.slow
def test_two_arms_in_one_fit_then_reuse_then_prediction(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import pipeline

    config = settings(tmp_path, min_steps=300)
    arms = [Arm("seeds", ROWS[:12], seed=1), Arm("distilled", ROWS, seed=1, lineage={"run": "r1"})]
    first = training.train(arms, config, LABELS, str(tmp_path))
    assert (first.workers, first.trained) == (2, 2)
    one = first.students["distilled"]
    assert len(one.report.losses) == 300
    assert one.report.examples == 60 * 75
    assert one.report.losses[-1] < one.report.losses[0]
    assert first.log_dir is not None
    assert "vocabulary rows" in Path(first.log_dir, "worker-0.log").read_text()
    answers = pipeline("text-classification", model=one.export, device="cpu")(["the old hammer", "very dull fog"])
    assert [answer["label"] for answer in answers] == ["tool", "weather"]

    again = training.train([*reversed(arms)], config, LABELS, str(tmp_path))
    assert again.trained == 0
    assert again.students["distilled"].reused
    assert again.students["distilled"].report == one.report

    texts = [
        LabelledText(str(number), row.text, LABELS[int(np.argmax(row.label_probs))])
        for number, row in enumerate(make_rows(60, seed=5))
    ]
    folders = {name: student.export for name, student in first.students.items()}
    with pytest.raises(StageError, match="trained for classes"):
        evaluation.predict(folders, texts, LABELS[::-1])
    with pytest.raises(StageError, match="not a transformers folder"):
        evaluation.predict({"gone": str(tmp_path / "gone")}, texts, LABELS)
    monkeypatch.setattr(evaluation, "BATCH", 16)
    answered = evaluation.predict(folders, texts, LABELS)
    assert [row.example_id for row in answered["seeds"]] == [text.example_id for text in texts]
    assert score(answered["distilled"], LABELS).accuracy.value > 0.9
    assert score(answered["distilled"], LABELS).accuracy.value > score(answered["seeds"], LABELS).accuracy.value


@pytest.mark.slow
def test_errors_in_workers_are_one_line(ray_cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs 3 CPUs"):
        training.train([Arm("one", ROWS)], settings(tmp_path, workers=3), LABELS, str(tmp_path))
    with pytest.raises(InputError, match="no texts"):
        training.train([Arm("one", ())], settings(tmp_path), LABELS, str(tmp_path))
    assert not (tmp_path / "fits").exists()
