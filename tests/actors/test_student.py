"""The training loop on a tiny BERT: the same losses however the work is divided, and an export anyone can load.

One worker is this process; two are subprocesses joined by gloo, without Ray (tests/jobs/test_training.py has it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_student import LABELS, make_rows, make_student

from actors import export, student
from actors.student import ArmJob, ArmReport, TrainingJob
from potstill.arms import Arm, arm_digest
from potstill.config import StudentConfig
from potstill.encoders import problems, weights_digest
from potstill.errors import InputError, StageError

pytestmark = pytest.mark.slow
STEPS = 50
ROWS = make_rows(75)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    patch = pytest.MonkeyPatch()
    patch.setenv("DS_ACCELERATOR", "cpu")
    patch.setenv("LOCAL_RANK", "0")
    yield make_student(tmp_path_factory.mktemp("tiny") / "bert")
    patch.undo()


def settings(tiny: str, **changes: Any) -> StudentConfig:
    base = {
        "model": tiny,
        "epochs": 1,
        "min_steps": STEPS,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "precision": "float32",
    }
    return StudentConfig(**{**base, **changes})


def prepare(folder: Path, config: StudentConfig, *arms: Arm) -> TrainingJob:
    jobs = []
    for arm in arms or (Arm("one", ROWS),):
        key = arm_digest(arm, config, LABELS, weights_digest(config.model))
        jobs.append(
            ArmJob(name=arm.name, digest=key, seed=arm.seed, folder=str(folder / key), lineage=dict(arm.lineage))
        )
        export.write_rows(jobs[-1].folder, rows=arm.rows, validation=arm.validation, asked=arm.asked)
    return TrainingJob(LABELS, config, tuple(jobs))


def train(folder: Path, config: StudentConfig, *arms: Arm) -> list[ArmReport]:
    return student.train_arms(prepare(folder, config, *arms))


def weights(job: TrainingJob, number: int = 0) -> Mapping[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(str(Path(job.arms[number].folder) / "model" / "model.safetensors"))


@pytest.fixture(scope="module")
def reference(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> ArmReport:
    """ZeRO 0, one worker, one micro-batch a step as far as cheaper."""
    return train(tmp_path_factory.mktemp("reference"), settings(tiny))[0]


def test_it_learns(reference: ArmReport) -> None:
    assert reference.steps == len(reference.losses) == STEPS
    assert reference.losses[-1] < 0.8 * reference.losses[0]
    assert reference.examples == 75 * STEPS // 5


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_give_the_same_losses(tiny: str, reference: ArmReport, tmp_path: Path, stage: int) -> None:
    report = train(tmp_path, settings(tiny, zero_stage=stage))[0]
    np.testing.assert_allclose(report.losses, reference.losses, rtol=1e-4)


def test_accumulation_gives_the_same_losses(tiny: str, reference: ArmReport, tmp_path: Path) -> None:
    report = train(tmp_path, settings(tiny, micro_batch_tokens=64))[0]
    assert report.padded_tokens < reference.padded_tokens
    np.testing.assert_allclose(report.losses, reference.losses, rtol=1e-4)


_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
_WORKER = """
import json, sys
from datetime import timedelta
import torch.distributed as dist
from actors.student import TrainingJob, train_arms
from dataclasses import asdict
rank, store, jobs = int(sys.argv[1]), sys.argv[2], json.load(open(sys.argv[3]))
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
reports = [asdict(train_arms(TrainingJob.from_json(job))[0]) for job in jobs]
json.dump(reports, open(sys.argv[4], "w"))
"""


def test_two_workers_give_the_same_losses_in_every_stage(tiny: str, reference: ArmReport, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{"zero_stage": stage} for stage in range(4)] + [{"micro_batch_tokens": 48}]
    jobs = [prepare(tmp_path / str(i), settings(tiny, **change)) for i, change in enumerate(changes)]
    (tmp_path / "jobs.json").write_text(json.dumps([job.to_json() for job in jobs]))
    workers = []
    for rank in range(2):
        arguments = [str(rank), str(tmp_path / "store"), str(tmp_path / "jobs.json"), str(tmp_path / f"{rank}.json")]
        command = [sys.executable, "-c", _WORKER, *arguments]
        environment = {**os.environ, **_ENVIRONMENT, "LOCAL_RANK": str(rank)}
        workers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors.decode()[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second, "every rank returns the same reports"
    for change, report in zip(changes, first, strict=True):
        assert report["workers"] == 2
        assert report["examples"] == reference.examples
        np.testing.assert_allclose(report["losses"], reference.losses, rtol=1e-4, err_msg=str(change))
    one = weights(jobs[0])
    for job in jobs[1:]:
        for name, value in weights(job).items():
            if name.endswith("key.bias"):
                continue  # has no effect on attention: its gradient is rounding, which Adam makes large
            np.testing.assert_allclose(value, one[name], atol=1e-3, err_msg=name)


def test_the_same_seed_gives_the_same_student_with_dropout(tiny: str, tmp_path: Path) -> None:
    config = settings(tiny, dropout=0.2, min_steps=12)
    arms = [Arm("a", ROWS, seed=3), Arm("b", ROWS, seed=4)]
    one, two = (prepare(tmp_path / name, config, *arms) for name in ("one", "two"))
    reports = [student.train_arms(job) for job in (one, two)]
    assert reports[0][0].losses == reports[1][0].losses
    for number in range(2):
        first, again = weights(one, number), weights(two, number)
        assert all((first[name] == again[name]).all() for name in first)
    assert reports[0][0].losses != reports[0][1].losses, "another training seed is another student"
    plain = train(tmp_path / "plain", settings(tiny, min_steps=12), Arm("a", ROWS, seed=3))
    assert plain[0].losses != reports[0][0].losses, "dropout does something"


def test_loss_is_normalised_by_the_weights(tiny: str, tmp_path: Path) -> None:
    """A row of weight 3 counts as three rows of weight 1 do."""
    from dataclasses import replace

    config = settings(tiny, batch_size=64, epochs=3, min_steps=1)
    heavy = [replace(row, weight=3.0 if number == 0 else 1.0) for number, row in enumerate(ROWS[:6])]
    thrice = [replace(ROWS[0], weight=1.0)] * 2 + [replace(row, weight=1.0) for row in ROWS[:6]]
    one = train(tmp_path / "one", config, Arm("one", tuple(heavy)))[0]
    two = train(tmp_path / "two", config, Arm("two", tuple(thrice)))[0]
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-4)


def test_the_export_loads_from_plain_transformers(tiny: str, tmp_path: Path) -> None:
    from transformers import pipeline

    job = prepare(tmp_path, settings(tiny, min_steps=150), Arm("one", ROWS, lineage={"teacher": "a careful one"}))
    student.train_arms(job)
    folder = Path(job.arms[0].folder) / "model"
    assert sorted(path.suffix for path in folder.iterdir() if path.suffix == ".bin") == []
    card = (folder / "README.md").read_text()
    assert "a careful one" in card
    assert job.arms[0].digest in card
    classify = pipeline("text-classification", model=str(folder), device="cpu")
    answers = classify(["the old hammer", "some plum near a pear", "very dull fog"])
    assert [answer["label"] for answer in answers] == ["tool", "fruit", "weather"]


def test_unused_vocabulary_is_put_back_untouched(tiny: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    job = prepare(tmp_path, settings(tiny, min_steps=5))
    student.train_arms(job)
    before = load_file(f"{tiny}/model.safetensors")["embeddings.word_embeddings.weight"]
    after = weights(job)["bert.embeddings.word_embeddings.weight"]
    assert before.shape == after.shape
    assert (before[5:65] == after[5:65]).all(), "tokens that no text uses"
    assert (before[65:] != after[65:]).any()


def test_predictor_agrees_with_transformers_and_serves_several_students(tiny: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from actors.predictor import Predictor

    job = prepare(tmp_path, settings(tiny, min_steps=10), Arm("a", ROWS), Arm("b", ROWS, seed=1))
    student.train_arms(job)
    folders = {arm.name: f"{arm.folder}/model" for arm in job.arms}
    texts = [row.text for row in ROWS[:20]]
    probs = Predictor(folders, LABELS, micro_batch_tokens=64).predict(texts)
    for name, folder in folders.items():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            plain = torch.softmax(model(**tokenizer(texts, padding=True, return_tensors="pt")).logits, -1).numpy()
        np.testing.assert_allclose(probs[name], plain, atol=1e-5)
    assert not np.allclose(probs["a"], probs["b"])
    assert Predictor(folders, LABELS).predict([])["a"].shape[0] == 0
    with pytest.raises(StageError, match="trained for classes"):
        Predictor(folders, LABELS[::-1])


def test_arms_with_an_export_are_not_trained_again(tiny: str, tmp_path: Path) -> None:
    job = prepare(tmp_path, settings(tiny, min_steps=5))
    first = student.train_arms(job)
    marker = Path(job.arms[0].folder) / "complete.json"
    before = marker.stat().st_mtime_ns
    assert student.train_arms(job) == first
    assert marker.stat().st_mtime_ns == before


def test_early_stopping_keeps_the_best_weights(tiny: str, tmp_path: Path) -> None:
    noise = tuple(row for row in make_rows(30, seed=9))
    flipped = tuple(type(row)(row.text, row.label_probs[::-1]) for row in noise)
    config = settings(tiny, epochs=12, min_steps=1, patience=2)
    report = train(tmp_path, config, Arm("one", ROWS, validation=flipped))[0]
    assert report.steps < 12 * 5
    best = min(report.validation, key=lambda row: row["loss"])
    assert report.best_step == best["step"] < report.steps


def test_a_loss_that_is_not_a_number_stops_with_the_step(tiny: str, tmp_path: Path) -> None:
    config = settings(tiny, learning_rate=1e30, clip_norm=0.0, warmup_ratio=0.0)
    with pytest.raises(StageError, match=r"'one' stopped: the loss is (nan|inf) at step [2-9] "):
        train(tmp_path, config)
    assert export.read_report(prepare(tmp_path, config).arms[0].folder) is None


def test_long_texts_are_cut_and_counted(tiny: str, tmp_path: Path) -> None:
    report = train(tmp_path, settings(tiny, max_length=8, min_steps=5))[0]
    assert 0 < report.truncated < 75
    assert report.padded_tokens <= report.examples * 8


def test_checkpoints_without_an_encoder_are_refused(tiny: str, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    tensors = load_file(broken / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layer.1" not in k}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 16 of \d+ encoder weights"):
        train(tmp_path / "a", settings(str(broken)))
    save_file({"classifier.bias": np.zeros(3, np.float32)}, broken / "model.safetensors", {"format": "pt"})
    assert "no encoder layers" in str(problems(str(broken))[0])
    (broken / "model.safetensors").unlink()
    assert "no safetensors" in str(problems(str(broken))[0])
    with pytest.raises(InputError, match="no safetensors"):
        train(tmp_path / "b", settings(str(broken)))
    assert "no such folder" in str(problems(str(tmp_path / "nowhere"))[0])


def test_a_foreign_tokenizer_is_refused(tiny: str, tmp_path: Path) -> None:
    import shutil

    from transformers import BertTokenizer

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    large = {
        word: number
        for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(500))])
    }
    BertTokenizer(vocab=large).save_pretrained(broken)
    with pytest.raises(InputError, match="don't belong together"):
        train(tmp_path / "a", settings(str(broken)))
