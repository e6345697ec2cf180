"""The seeds-only student as the anchor of another student, on a tiny BERT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import student_folder
from actors.training import worker as student
from actors.training.job import ArmJob, TrainingJob
from potstill.config.student import StudentConfig
from tests.support.tiny_student import LABELS, make_rows, make_student

pytestmark = pytest.mark.slow
SEEDS = make_rows(75, seed=3)
ROWS = make_rows(45)
ASKED = tuple(replace(row, weight=1.0) for row in make_rows(60, seed=5))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_student(tmp_path_factory.mktemp("tiny") / "bert")


def train(
    folder: Path, tiny: str, rows: Any = ROWS, asked: Any = ASKED, **changes: Any
) -> tuple[Path, Path, dict[str, float]]:
    """Train a seeds-only student, and one on ``rows`` anchored to it; return both exports and the anchor's weight."""
    settings = {"model": tiny, "epochs": 1, "min_steps": 300, "batch_size": 16, "learning_rate": 2e-3}
    config = StudentConfig(**{**settings, "precision": "float32", **changes})
    student_folder.write_rows(str(folder / "seeds"), rows=SEEDS)
    student_folder.write_rows(str(folder / "all"), rows=rows, asked=asked)
    arms = (
        ArmJob(name="seeds", digest="a", seed=0, folder=str(folder / "seeds")),
        ArmJob(name="all", digest="b", seed=0, folder=str(folder / "all"), anchor=str(folder / "seeds")),
    )
    reports = student.train_arms(TrainingJob(LABELS, config, arms))
    assert reports[0].anchor_weight == {}
    return folder / "seeds/model", folder / "all/model", reports[1].anchor_weight


def weights(model: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(str(model / "model.safetensors"))


def test_the_export_is_the_weighted_mean_of_both_students(tiny: str, tmp_path: Path) -> None:
    seeds, alone, _ = train(tmp_path / "alone", tiny, second_opinion=0, blend=0)
    _, blended, weight = train(tmp_path / "blended", tiny, second_opinion=0, blend=0.25)
    assert weight["blend"] == 0.25
    one, own, mixed = weights(seeds), weights(alone), weights(blended)
    assert any((own[name] != one[name]).any() for name in own)
    for name in own:
        np.testing.assert_allclose(mixed[name], 0.75 * own[name] + 0.25 * one[name], atol=1e-5, err_msg=name)


def test_the_anchor_corrects_wrong_labels(tiny: str, tmp_path: Path) -> None:
    """Half of the fruit has an uncertain label, tool; the anchor corrects it."""
    from actors.inference.predictor import Predictor

    def spoil(number: int, row: Any) -> Any:
        return replace(row, label_probs=(0.4, 0.6, 0.0)) if number % 6 == 0 else row

    spoilt = tuple(spoil(number, row) for number, row in enumerate(ROWS))
    fruit = [row.text for row in make_rows(90, seed=8) if np.argmax(row.label_probs) == 0]
    probs = {}
    for opinion in (0, 1):
        _, model, _ = train(tmp_path / str(opinion), tiny, spoilt, second_opinion=opinion, blend=0)
        probs[opinion] = Predictor({"one": str(model)}, LABELS).predict(fruit)["one"][:, 0].mean()
    assert probs[1] > probs[0] + 0.05


def test_auto_weights_only_an_anchor_that_agrees_with_the_teacher(tiny: str, tmp_path: Path) -> None:
    _, _, agreed = train(tmp_path / "agreed", tiny)
    assert agreed["agreement"] > 0.45
    assert agreed["opinion"] == pytest.approx(1.0)
    contrary = tuple(replace(row, label_probs=row.label_probs[1:] + row.label_probs[:1]) for row in ASKED)
    _, _, opposed = train(tmp_path / "opposed", tiny, asked=contrary)
    assert opposed["opinion"] == opposed["blend"] == 0
    _, _, unasked = train(tmp_path / "unasked", tiny, asked=())
    assert unasked["opinion"] == 0
