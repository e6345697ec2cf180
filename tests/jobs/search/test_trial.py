"""A rung's students without Ray: claims, since rungs with equal rows share students and each deletes them; and the
arguments of the training process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.search import trial
from jobs.stages.finetune import DISTILLED, START
from potstill.config.student import StudentConfig
from potstill.student.arms import Arm, TrainingRow

ROWS = (TrainingRow("a", (1.0, 0.0)), TrainingRow("b", (0.0, 1.0)))
ARMS = [Arm(START, ROWS), Arm(DISTILLED, ROWS, anchor=START), Arm("fold0", ROWS[:1])]
KEYS = {START: "b", DISTILLED: "c", "fold0": "a"}


class CallRecorder:
    """Search workers that record their calls."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.words.append(" ".join([name, *map(str, arguments)])))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> CallRecorder:
    def train_with(run: Any, arms: list[Arm], *rest: Any) -> Any:
        run({"arms": [{"name": arm.name, "digest": KEYS[arm.name]} for arm in arms]})
        return SimpleNamespace(students={arm.name: SimpleNamespace(digest=KEYS[arm.name]) for arm in arms})

    found = CallRecorder()

    def predict(*arguments: Any) -> dict[str, list[Any]]:
        found.words.append("predict")
        return {DISTILLED: [], "fold0": []}

    monkeypatch.setattr(trial, "_ask", lambda answer: answer)
    monkeypatch.setattr(trial, "_arms", lambda scene, job: ARMS)
    monkeypatch.setattr(trial, "_predict", predict)
    monkeypatch.setattr(trial.training, "name_students", lambda arms, config, labels: KEYS)
    monkeypatch.setattr(trial.training, "train_with", train_with)
    monkeypatch.setattr(trial.student_folder, "discard", lambda folder: found.words.append(f"discard {folder[-1]}"))
    return found


def rung(recorder: CallRecorder, folder: Path, keep: bool = False) -> None:
    run = SimpleNamespace(path=str(folder), write_json=lambda name, value: None)
    scene: Any = SimpleNamespace(search_workers=recorder, run=run, placement=SimpleNamespace(workers=1, device="cpu"))
    job: Any = SimpleNamespace(config=SimpleNamespace(student=None, storage=str(folder)), labels=("x", "y"), run=run)
    trial._students(scene, job, "me", keep)


def test_a_student_is_claimed_until_it_has_predicted_and_is_deleted(recorder: CallRecorder, tmp_path: Path) -> None:
    rung(recorder, tmp_path)
    arms = {name: {"name": name, "digest": key} for name, key in KEYS.items()}
    assert recorder.words == [
        "claim student a me asks",
        "claim student c me asks",
        "claim student b me trains",
        f"train {{'arms': [{arms[START]}]}}",
        "release me trains",  # kept: an anchor, which other trials need now
        f"train {{'arms': [{arms[DISTILLED]}, {arms['fold0']}]}}",
        "predict",
        "discard c",
        "discard a",
        "release me asks",
    ]


def test_claims_are_released_after_an_error(
    recorder: CallRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*arguments: Any) -> None:
        raise ValueError("no answers")

    monkeypatch.setattr(trial, "_predict", predict)
    with pytest.raises(ValueError, match="no answers"):
        rung(recorder, tmp_path, keep=True)
    assert recorder.words[-1] == "release me asks"
    assert set(trial.owners("me")) == {"me", "me asks", "me trains"}


def test_the_training_process_gets_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(trial.training, "_collect", lambda job, reused: None)
    trial.training.train_with(told.append, ARMS[:1], StudentConfig(threads=3), ("x", "y"), str(tmp_path))
    assert [job["threads"] for job in told] == [3]
