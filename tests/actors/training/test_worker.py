"""The training loop on a tiny BERT: equal losses however the work is split, and an export for plain transformers.

One worker is this process; two are subprocesses joined by gloo, without Ray (tests/jobs/stages/test_train.py has it).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import student_folder
from actors.student_folder import ArmReport
from actors.training import worker as student
from actors.training.encoder import Encoder
from potstill.errors import InputError, StageError
from potstill.student.arms import Arm
from potstill.student.encoders import problems
from tests.support.tiny_jobs import RATE, ROWS, STEPS, prepare, settings, train, two_workers, weights
from tests.support.tiny_student import LABELS, make_rows, make_student

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    patch = pytest.MonkeyPatch()
    patch.setenv("DS_ACCELERATOR", "cpu")
    patch.setenv("LOCAL_RANK", "0")
    yield make_student(tmp_path_factory.mktemp("tiny") / "bert")
    patch.undo()


@pytest.fixture(scope="module")
def reference(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> ArmReport:
    """ZeRO 0, one worker, one micro-batch a step where that is cheaper."""
    return train(tmp_path_factory.mktemp("reference"), settings(tiny))[0]


def test_it_learns(reference: ArmReport) -> None:
    assert reference.steps == len(reference.losses) == STEPS
    assert reference.losses[-1] < 0.8 * reference.losses[0]
    assert reference.examples == 75 * STEPS // 5


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_give_the_same_losses(tiny: str, reference: ArmReport, tmp_path: Path, stage: int) -> None:
    report = train(tmp_path, settings(tiny, zero_stage=stage))[0]
    np.testing.assert_allclose(report.losses, reference.losses, rtol=1e-4)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of rows of each micro-batch."""
    seen: list[int] = []
    collate = Encoder.collate

    def counting(encoder: Encoder, ids: Any, device: Any) -> Any:
        seen.append(len(ids))
        return collate(encoder, ids, device)

    monkeypatch.setattr(Encoder, "collate", counting)
    return seen


def test_accumulation_gives_the_same_losses(tiny: str, reference: ArmReport, tmp_path: Path, passes: list[int]) -> None:
    report = train(tmp_path, settings(tiny, micro_batch_tokens=64))[0]
    assert len(passes) >= 3 * STEPS
    assert sum(passes) == report.examples
    np.testing.assert_allclose(report.losses, reference.losses, rtol=1e-4)


def test_padded_batches_give_the_same_losses(tiny: str, reference: ArmReport, tmp_path: Path) -> None:
    report = train(tmp_path, settings(tiny, padding=True))[0]
    assert report.tokens == reference.tokens == reference.padded_tokens < report.padded_tokens
    np.testing.assert_allclose(report.losses, reference.losses, rtol=1e-4)


def test_the_steps_are_those_of_a_plain_pytorch_loop(tiny: str, reference: ArmReport) -> None:
    """One padded batch a step, torch's AdamW with no decay on biases and norms, clipping, linear schedule."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from potstill.student.batches import plan_steps

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=len(LABELS))
    named = dict(model.named_parameters())
    decayed = [p for name, p in named.items() if not name.endswith("bias") and "LayerNorm" not in name]
    others = [p for name, p in named.items() if name.endswith("bias") or "LayerNorm" in name]
    assert len(others) > len(decayed) > 0
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}])
    losses, clipped = [], 0
    for number, step in enumerate(plan_steps(len(ROWS), 16, 1, STEPS, 0)):
        rows = [ROWS[row] for row in step.rows]
        logits = model(**tokenizer([row.text for row in rows], padding=True, return_tensors="pt")).logits
        weight = torch.tensor([row.weight for row in rows])
        each = torch.nn.functional.cross_entropy(
            logits, torch.tensor([row.label_probs for row in rows]), reduction="none"
        )
        loss = (each * weight).sum() / weight.sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        clipped += float(torch.nn.utils.clip_grad_norm_(named.values(), 1.0)) > 1.0
        rate = RATE * ((number + 1) / 5 if number < 5 else (STEPS - number) / (STEPS - 5))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    assert clipped > 5, "clipping is put to the test"
    np.testing.assert_allclose(losses, reference.losses, rtol=1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_offload_gives_the_same_losses(tiny: str, reference: ArmReport, tmp_path: Path, stage: int) -> None:
    report = train(tmp_path, settings(tiny, zero_stage=stage, offload_optimizer=True))[0]
    np.testing.assert_allclose(report.losses, reference.losses, rtol=1e-4)


def test_deepspeed_settings_are_passed_on_and_deepspeed_rejects_invalid_ones(
    tiny: str, reference: ArmReport, tmp_path: Path
) -> None:
    passed = {"zero_optimization": {"reduce_bucket_size": 2000}}
    report = train(tmp_path / "small", settings(tiny, zero_stage=2, deepspeed=passed))[0]
    np.testing.assert_allclose(report.losses, reference.losses, rtol=1e-4)
    for number, wrong in enumerate(
        ({"zero_optimization": {"reduce_bucket_size": -1}}, {"zero_optimization": {"stge": 1}})
    ):
        with pytest.raises(InputError, match=r"student\.deepspeed: DeepSpeed refuses it: .*(bucket|stge)"):
            train(tmp_path / str(number), settings(tiny, zero_stage=1, deepspeed=wrong))


def test_two_workers_give_the_same_losses_in_every_stage(tiny: str, reference: ArmReport, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{"zero_stage": stage} for stage in range(4)] + [{"micro_batch_tokens": 48}]
    jobs = [prepare(tmp_path / str(i), settings(tiny, **change)) for i, change in enumerate(changes)]
    # A batch with fewer texts than workers: one worker computes only padding.
    lonely = prepare(tmp_path / "lonely", settings(tiny, batch_size=1, min_steps=20), Arm("two", ROWS[:2]))
    alone = train(tmp_path / "alone", settings(tiny, batch_size=1, min_steps=20), Arm("two", ROWS[:2]))[0]
    *reports, two = two_workers(tmp_path / "work", [(job, None, None) for job in (*jobs, lonely)])
    np.testing.assert_allclose(two["losses"], alone.losses, rtol=1e-4)
    for change, report in zip(changes, reports, strict=True):
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
    """A row of weight 3 counts as much as three rows of weight 1."""
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


def test_unused_vocabulary_is_restored_unchanged(tiny: str, tmp_path: Path) -> None:
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

    from actors.inference.predictor import Predictor

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


def test_a_nan_loss_stops_training_and_names_the_step(tiny: str, tmp_path: Path) -> None:
    config = settings(tiny, learning_rate=1e30, clip_norm=0.0, warmup_ratio=0.0)
    with pytest.raises(StageError, match=r"'one' stopped: the loss is (nan|inf) at step [2-9] "):
        train(tmp_path, config)
    assert student_folder.read_report(prepare(tmp_path, config).arms[0].folder) is None


def test_long_texts_are_truncated_counted_and_reported(
    tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = train(tmp_path, settings(tiny, max_length=8, min_steps=5))[0]
    # Each word is one token here; two special tokens enclose a text. One of exactly 8 tokens is not truncated.
    too_long = {row.text for row in ROWS if len(row.text.split()) + 2 > 8}
    assert any(len(row.text.split()) + 2 == 8 for row in ROWS)
    assert report.truncated == len(too_long)
    assert report.padded_tokens <= report.examples * 8
    assert f"{len(too_long)} texts are cut at 8 tokens" in caplog.text


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


def test_a_tokenizer_of_another_family_is_refused(tiny: str, tmp_path: Path) -> None:
    import shutil

    from transformers import BertTokenizer

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    BertTokenizer(vocab={"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}).save_pretrained(broken)
    with pytest.raises(InputError, match="pads with token 1 and its config says 0"):
        train(tmp_path / "a", settings(str(broken)))


def test_a_checkpoints_code_is_never_run(tiny: str, tmp_path: Path) -> None:
    import json
    import shutil

    theirs = tmp_path / "theirs"
    shutil.copytree(tiny, theirs)
    content = json.loads((theirs / "config.json").read_text())
    content |= {"model_type": "theirs", "auto_map": {name: f"code.{name}" for name in ("AutoConfig", "AutoModel")}}
    (theirs / "config.json").write_text(json.dumps(content))
    (theirs / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="can't be loaded"):
        train(tmp_path / "a", settings(str(theirs)))
    assert not (tmp_path / "ran").exists()
