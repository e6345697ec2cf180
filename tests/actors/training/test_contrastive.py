"""Contrastive training: the same at any number of workers and ZeRO stage, and a start for other students."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors import student_folder
from actors.inference.predictor import Predictor
from actors.training import worker
from actors.training.job import ArmJob, TrainingJob
from potstill.config.student import StudentConfig
from potstill.student.arms import Arm
from tests.support.tiny_jobs import prepare, settings, train, two_workers
from tests.support.tiny_student import LABELS, make_rows, make_student

pytestmark = pytest.mark.slow

FEW, OTHERS = make_rows(45), make_rows(90, seed=1)
STEPS = 120


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_student(tmp_path_factory.mktemp("tiny") / "bert")


def contrastive(tiny: str, **changes: object) -> StudentConfig:
    return settings(tiny, contrastive_steps=STEPS, dropout=0.0, **changes)


def predict(*folders: str) -> list[np.ndarray]:
    """Class probabilities of the other texts, by student."""
    students = {folder: student_folder.model_folder(folder) for folder in folders}
    answers = Predictor(students, LABELS).predict([row.text for row in OTHERS])
    return [answers[folder] for folder in folders]


def accuracy(probs: np.ndarray) -> float:
    truth = np.array([row.label_probs for row in OTHERS]).argmax(axis=1)
    return float((probs.argmax(axis=1) == truth).mean())


def test_two_workers_give_the_same_student_in_every_stage(tiny: str, tmp_path: Path) -> None:
    arm = Arm("start", FEW, contrastive=True)
    (alone,) = train(tmp_path / "alone", contrastive(tiny), arm)
    assert alone.steps == STEPS
    assert np.mean(alone.losses[-5:]) < 0.8 * np.mean(alone.losses[:5])
    reference = prepare(tmp_path / "alone", contrastive(tiny), arm).arms[0].folder
    jobs = [prepare(tmp_path / f"stage{stage}", contrastive(tiny, zero_stage=stage), arm) for stage in range(4)]
    for report in two_workers(tmp_path / "work", [(job, None, None) for job in jobs]):
        np.testing.assert_allclose(report["losses"], alone.losses, rtol=1e-2)
    first, *others = predict(reference, *(job.arms[0].folder for job in jobs))
    assert accuracy(first) > 0.5
    for probs in others:
        np.testing.assert_allclose(probs, first, atol=0.05)


def test_a_student_goes_on_from_the_encoder_of_another(tiny: str, tmp_path: Path) -> None:
    job = prepare(tmp_path, contrastive(tiny), Arm("start", FEW, contrastive=True))
    worker.train_arms(job)
    start = job.arms[0].folder
    # At no learning rate worth mentioning, only the encoder that each starts from tells them apart.
    still = settings(tiny, min_steps=1, learning_rate=1e-9)
    arms = [
        ArmJob(name=name, digest=name, seed=0, folder=str(tmp_path / name), start=given)
        for name, given in (("on", start), ("plain", None))
    ]
    for arm in arms:
        student_folder.write_rows(arm.folder, rows=FEW)
    worker.train_arms(TrainingJob(LABELS, still, tuple(arms)))
    of_start, on, plain = map(accuracy, predict(start, *(arm.folder for arm in arms)))
    assert on == pytest.approx(of_start, abs=0.1)
    assert on > plain + 0.1
