"""An interrupted fit resumes unless another process runs it; its checkpoints are deleted at its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from actors.student_folder import ArmReport
from actors.training.job import TrainingJob
from jobs.stages import fits
from jobs.stages import train as training
from potstill.config.student import StudentConfig
from potstill.errors import StageError
from potstill.student.arms import Arm, TrainingRow


def leave(folder: Path, step: int, version: str | None = None) -> None:
    """Write the files that a fit leaves when its driver is killed."""
    import ray

    (folder / f"checkpoint_{step}").mkdir(parents=True)
    told = [{"checkpoint_dir_name": path.name} for path in folder.glob("checkpoint_*")]
    snapshot = {"ray_version": version or ray.__version__, "checkpoint_results": told}
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("checkpoint_"))


def test_a_fit_finds_its_checkpoints_until_it_has_finished(tmp_path: Path) -> None:
    def break_off() -> None:
        with fits.claim(str(tmp_path), "abc") as name:
            leave(tmp_path / name, 1)
            raise StageError("a worker was lost")

    with pytest.raises(StageError):
        break_off()
    with fits.claim(str(tmp_path), "abc") as again:
        assert again == "abc"
        assert left(tmp_path / "abc") == ["checkpoint_1", "checkpoint_manager_snapshot.json"]
    assert left(tmp_path / "abc") == []


def test_two_jobs_do_not_train_into_one_folder(tmp_path: Path) -> None:
    """The second starts from the beginning, under its own name; a dead process holds no claim."""
    script = (
        "import sys; from jobs.stages import fits\nwith fits.claim(*sys.argv[1:]): print('mine', flush=True), input()"
    )
    command = [sys.executable, "-c", script, str(tmp_path), "abc"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        leave(tmp_path / "abc", 1)
        with fits.claim(str(tmp_path), "abc") as name:
            assert name.startswith("abc-")
        assert left(tmp_path / "abc") == ["checkpoint_1", "checkpoint_manager_snapshot.json"]
        other.kill()
    with fits.claim(str(tmp_path), "abc") as name:
        assert name == "abc"


@pytest.mark.parametrize("broken", ["a checkpoint is gone", "another Ray", "no JSON"])
def test_checkpoints_that_ray_cannot_resume_from_are_deleted(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "abc"
    leave(folder, 1)
    leave(folder, 2, version="0.1" if broken == "another Ray" else None)
    if broken == "a checkpoint is gone":
        os.rmdir(folder / "checkpoint_1")
    elif broken == "no JSON":
        (folder / "checkpoint_manager_snapshot.json").write_text("{")
    with fits.claim(str(tmp_path), "abc"):
        assert left(folder) == []


def test_without_locks_every_fit_has_its_own_name() -> None:
    with fits.claim("memory://potstill-fits", "abc") as one, fits.claim("memory://potstill-fits", "abc") as two:
        assert one != two


def test_the_rest_of_a_fit_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit fails after one arm has been exported."""
    import ray

    seen: list[tuple[str, list[str], list[str]]] = []

    def break_off(fit: TrainingJob, workers: int, place: str, *rest: object) -> None:
        folder = Path(place)
        seen.append((folder.name, [arm.name for arm in fit.arms], left(folder)))
        if not left(folder):
            leave(folder, len(seen))
        done = Path(fit.arms[0].folder)
        (done / "model").mkdir(parents=True)
        (done / "model/config.json").write_text("{}")
        (done / "complete.json").write_text(json.dumps(asdict(ArmReport("d", 1, [1.0], [0.1], 2, 4, 4, 0, 1.0, 1, 1))))
        raise StageError("a worker was lost")

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(training, "run_fit", break_off)
    rows = (TrainingRow("she purrs", (1.0, 0.0)), TrainingRow("she barks", (0.0, 1.0)))
    arms = [Arm("one", rows, seed=1), Arm("two", rows, seed=2)]
    for _ in range(2):
        with pytest.raises(StageError):
            training.train(arms, StudentConfig(), ["cat", "dog"], str(tmp_path))
    first, second = seen
    assert first[0] == second[0]
    assert [one[1] for one in seen] == [["one", "two"], ["two"]]
    assert [one[2] for one in seen] == [[], ["checkpoint_1", "checkpoint_manager_snapshot.json"]]


@pytest.mark.slow
def test_the_next_fit_of_the_same_name_resumes(ray_cluster: Any, tmp_path: Path) -> None:
    """After an interrupted fit, Ray Train passes its last checkpoint to the loop."""

    def loop(config: Mapping[str, Any]) -> dict[str, Any]:
        import tempfile

        from ray import train

        last = train.get_checkpoint()
        if last is None:
            with tempfile.TemporaryDirectory() as scratch:
                train.report({"step": 4}, checkpoint=train.Checkpoint.from_directory(scratch))
            raise RuntimeError("the process is gone")
        return {"from": Path(last.path).name}

    job = TrainingJob(("a", "b"), StudentConfig(max_failures=0), ())
    storage = str(tmp_path)
    with pytest.raises(StageError), fits.claim(storage, "abc") as name:
        training.run_fit(job, 1, f"{storage}/{name}", loop=loop)
    (stored,) = (tmp_path / "abc").glob("checkpoint_*[0-9]*")
    with fits.claim(storage, "abc") as name:
        assert training.run_fit(job, 1, f"{storage}/{name}", loop=loop) == {"from": stored.name}
    assert left(tmp_path / "abc") == []
