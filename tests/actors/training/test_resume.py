"""Interrupted training resumes from its checkpoint: same losses, every text once, at any number of workers."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.student_folder import ArmReport
from actors.training import worker as student
from actors.training.job import TrainingJob
from actors.training.loop import Loop
from actors.training.recovery import snapshot
from potstill.errors import StageError
from potstill.student.arms import Arm
from potstill.student.batches import plan_steps
from tests.support.tiny_jobs import ROWS, FolderCheckpoints, attempt, prepare, settings, train, two_workers, weights
from tests.support.tiny_student import make_rows, make_student

pytestmark = pytest.mark.slow
STEPS, EVERY, STOP = 20, 4, 8
GENTLE = {"min_steps": STEPS, "weight_decay": 1.0, "learning_rate": 2e-3}
"""Decay strong enough to show if a bias is decayed after resuming; steps small enough not to amplify rounding."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    patch = pytest.MonkeyPatch()
    patch.setenv("DS_ACCELERATOR", "cpu")
    patch.setenv("LOCAL_RANK", "0")
    yield make_student(tmp_path_factory.mktemp("tiny") / "bert")
    patch.undo()


@pytest.fixture(scope="module")
def uninterrupted(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> ArmReport:
    return train(tmp_path_factory.mktemp("reference"), settings(tiny, **GENTLE))[0]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Collects the rows of each step that the single worker computes."""
    seen: list[list[int]] = []
    plain = Loop._step

    def note(loop: Loop, rows: Any, micro_batches: list[list[int]], rate: float) -> None:
        seen.append(sorted(int(row) for positions in micro_batches for row in rows[positions]))
        plain(loop, rows, micro_batches, rate)

    monkeypatch.setattr(Loop, "_step", note)
    return seen


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_resumed_training_is_the_uninterrupted_one_even_with_dropout(tiny: str, tmp_path: Path, stage: int) -> None:
    config = settings(tiny, zero_stage=stage, dropout=0.2, min_steps=20, checkpoint_steps=EVERY)
    whole, broken = prepare(tmp_path / "whole", config), prepare(tmp_path / "broken", config)
    (reference,) = student.train_arms(whole)
    assert attempt(broken, str(tmp_path / "saved"), stop_at=EVERY) is None
    (report,) = attempt(broken, str(tmp_path / "saved"))
    assert report.resumed == [EVERY]
    np.testing.assert_allclose(report.losses, reference.losses, rtol=1e-5)
    changed = {"seconds", "resumed", "losses"}
    assert {k: v for k, v in asdict(report).items() if k not in changed} == {
        k: v for k, v in asdict(reference).items() if k not in changed
    }
    one, two = weights(whole), weights(broken)
    for name in one:
        if not name.endswith("key.bias"):
            np.testing.assert_allclose(two[name], one[name], atol=1e-4, err_msg=name)


def test_training_resumes_with_another_number_of_workers_in_every_stage(
    tiny: str, uninterrupted: ArmReport, tmp_path: Path
) -> None:
    """2 -> 1 and 1 -> 2 workers, ZeRO 0 to 3; steps between the checkpoint and the stop are lost."""
    configs = [settings(tiny, zero_stage=stage, checkpoint_steps=EVERY, **GENTLE) for stage in range(4)]

    def jobs(name: str) -> list[tuple[TrainingJob, str]]:
        return [
            (prepare(tmp_path / f"{name}{stage}", config), str(tmp_path / f"{name}{stage}-saved"))
            for stage, config in enumerate(configs)
        ]

    growing, shrinking = jobs("grow"), jobs("shrink")
    for job, folder in growing:
        assert attempt(job, folder, STOP) is None
    tasks: list[Any] = [(job, folder, None) for job, folder in growing]
    reports = two_workers(tmp_path / "work", tasks + [(job, folder, STOP) for job, folder in shrinking])
    assert reports[4:] == [None] * 4
    reports = reports[:4] + [asdict(attempt(job, folder)[0]) for job, folder in shrinking]
    for number, report in enumerate(reports):
        where = f"{'2 -> 1' if number >= 4 else '1 -> 2'}, ZeRO {number % 4}"
        assert report["workers"] == (1 if number >= 4 else 2)
        assert report["resumed"] == [STOP]
        assert report["examples"] == uninterrupted.examples
        # Tight enough to catch a skipped or repeated text, weight decay on biases, or a step counted twice.
        np.testing.assert_allclose(report["losses"], uninterrupted.losses, rtol=3e-5, err_msg=where)


def test_steps_after_the_checkpoint_are_recomputed(
    tiny: str, uninterrupted: ArmReport, tmp_path: Path, computed: list[list[int]]
) -> None:
    class Dies(FolderCheckpoints):
        """Dies at the fourth checkpoint, before accepting it."""

        def accept(self, name: str, step: int) -> None:
            if step == 4 * EVERY:
                raise KeyError("the process is gone")
            super().accept(name, step)

    job = prepare(tmp_path, settings(tiny, checkpoint_steps=EVERY, **GENTLE))
    with pytest.raises(KeyError):
        student.train_arms(job, Dies(str(tmp_path / "saved")))
    (report,) = attempt(job, str(tmp_path / "saved"))
    assert report.resumed == [3 * EVERY]
    np.testing.assert_allclose(report.losses, uninterrupted.losses, rtol=1e-5)
    plan = [sorted(step.rows) for step in plan_steps(len(ROWS), 16, 1, STEPS, seed=0)]
    assert computed == plan[: 4 * EVERY] + plan[3 * EVERY :]


def test_early_stopping_survives(tiny: str, tmp_path: Path) -> None:
    flipped = tuple(type(row)(row.text, row.label_probs[::-1]) for row in make_rows(30, seed=9))
    arm = Arm("one", ROWS, validation=flipped)
    config = settings(tiny, epochs=12, min_steps=1, patience=3, checkpoint_steps=1)
    reference = train(tmp_path / "whole", config, arm)[0]
    job = prepare(tmp_path / "broken", config, arm)
    assert attempt(job, str(tmp_path / "saved"), stop_at=reference.best_step + 6) is None
    (report,) = attempt(job, str(tmp_path / "saved"))
    assert (report.best_step, report.steps) == (reference.best_step, reference.steps)
    assert report.validation == reference.validation
    one, two = weights(prepare(tmp_path / "whole", config, arm)), weights(job)
    assert all((one[name] == two[name]).all() for name in one), "the best weights were before the stop"


def test_a_checkpoint_of_another_arm_is_ignored(tiny: str, tmp_path: Path) -> None:
    config = settings(tiny, min_steps=10, checkpoint_steps=5)
    one, two = prepare(tmp_path, config, Arm("a", ROWS)), prepare(tmp_path, config, Arm("b", ROWS, seed=1))
    assert attempt(one, str(tmp_path / "saved"), stop_at=5) is None
    assert attempt(two, str(tmp_path / "saved"))[0].resumed == []


class Cramped(FolderCheckpoints):
    """A file system that rejects files above 20 kB while ``full`` checkpoints are stored."""

    full: tuple[int, ...] = ()
    calls = 0

    def upload(self, scratch: str, name: str) -> None:
        self.calls += 1
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            if self.calls in self.full:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            super().upload(scratch, name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_and_the_last_good_checkpoint_stays(tiny: str, tmp_path: Path) -> None:
    config = settings(tiny, min_steps=20, checkpoint_steps=5)
    job = prepare(tmp_path, config)
    place = Cramped(str(tmp_path / "saved"))
    place.full = (2, 3)
    (report,) = student.train_arms(job, place)
    assert report.steps == 20
    assert len(report.warnings) == 2
    assert report.warnings[0].startswith("no checkpoint at step 10: ")
    assert "too large" in report.warnings[0]
    with place.fetch() as folder:
        found = snapshot.Snapshot.find(folder, job.arms[0].digest)
    assert found is not None
    assert found.progress.step == 5
    assert len(list((tmp_path / "saved").glob("checkpoint_*"))) == 1


def test_a_failed_write_by_deepspeed_is_handled_too(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = snapshot.write

    def cramped(*arguments: Any) -> str | None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            return plain(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(snapshot, "write", cramped)
    for stage in (0, 1):
        job = prepare(tmp_path / str(stage), settings(tiny, min_steps=6, checkpoint_steps=5, zero_stage=stage))
        (report,) = student.train_arms(job, FolderCheckpoints(str(tmp_path / f"saved{stage}")))
        assert report.warnings[0].startswith("no checkpoint at step 5: ")


def test_nan_weights_are_never_saved(tiny: str, tmp_path: Path) -> None:
    """At a checkpoint's step the loss can still be finite while the weights are not."""
    config = settings(tiny, learning_rate=1e30, clip_norm=0.0, warmup_ratio=0.0, checkpoint_steps=1)
    with pytest.raises(StageError, match=r"'one' stopped: the (loss is|weights are)"):
        student.train_arms(prepare(tmp_path, config), FolderCheckpoints(str(tmp_path / "saved")))
    for path in (tmp_path / "saved").glob("checkpoint_*/engine/*.pt"):
        import torch

        state = torch.load(path, weights_only=False)
        assert all(torch.isfinite(value).all() for value in state["module"].values())


def test_zero_checkpoint_steps_disable_checkpoints(tiny: str, tmp_path: Path) -> None:
    job = prepare(tmp_path, settings(tiny, min_steps=10, checkpoint_steps=0))
    student.train_arms(job, FolderCheckpoints(str(tmp_path / "saved")))
    assert list((tmp_path / "saved").iterdir()) == []


def test_a_preemption_notice_triggers_one_immediate_checkpoint(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.training import loop

    class Noticed(FolderCheckpoints):
        asked = 0
        accepted: tuple[int, ...] = ()

        def preempted(self) -> bool:
            self.asked += 1
            return self.asked >= 3

        def accept(self, name: str, step: int) -> None:
            super().accept(name, step)
            self.accepted = (*self.accepted, step)

    monkeypatch.setattr(loop, "NOTICE_SECONDS", 0.0)
    place = Noticed(str(tmp_path / "saved"))
    student.train_arms(prepare(tmp_path, settings(tiny)), place)
    assert place.asked > 3
    assert place.accepted == (15,), "looked at the end of each epoch of 5 steps"


def test_auto_goes_by_the_clock(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actors.training import loop

    for seconds, made in ((3600.0, False), (0.0, True)):
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
        folder = tmp_path / str(seconds)
        student.train_arms(prepare(folder, settings(tiny, min_steps=11)), FolderCheckpoints(str(folder / "saved")))
        assert (folder / "saved" / "last").exists() == made
