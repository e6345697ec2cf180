"""Compare speed and accuracy of potstill's training loop with the Hugging Face Trainer.

    python benchmarks/finetune.py --data-dir DIR --json FILE
    python benchmarks/finetune.py --parts speed            # made-up questions, no data needed

All competitors train the same model (MiniLM with the architecture's own head) on the same 3,000 texts for one epoch,
with AdamW and the same schedule, in separate processes on the same two cores:

- ``potstill_1``, ``potstill_2``: the loop that Ray Train runs, on one and two workers, each bound to one core;
- ``potstill_threads``: one worker with a thread on each core (``student.threads``);
- ``promptmix``: the Trainer as PromptMix's released code runs it (batch 8, every text padded to 50 tokens, float32);
- ``trainer``: the Trainer at its best: dynamic padding, ``group_by_length``, fused AdamW, on all cores, the fastest of
  several batch sizes in float32 and, where the processor has it, bfloat16.

The competitors take turns for ``--rounds`` rounds and the fastest run of each counts, so a brief slowdown of the machine
does not bias one of them. Times cover the training loop only, not start-up, loading, tokenising or export.
``accuracy``: full training data, test split. On a GPU they train a model of BERT-base's shape in bfloat16, and
``gpu.mfu`` excludes padding tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors import student_folder
from actors.precision import pick_precision
from actors.training.job import ArmJob, TrainingJob
from potstill.config.student import StudentConfig
from potstill.student import encoders
from potstill.student.arms import Arm, TrainingRow, arm_digest

SIDES = Path(__file__).resolve().parent / "competitors"
ROWS = 3000
PROMPTMIX_ROWS = 1000
BATCHES = (32, 64, 128)
PEAK_TFLOPS = 989.0
"""Dense bfloat16 of an H100 or H200 (NVIDIA's data sheet)."""
ACCURACY: Mapping[str, Mapping[str, Any]] = {
    "trec6": {"epochs": 5},
    "subj": {"epochs": 3},
    "banking77": {"epochs": 10, "batch_size": 64},
}


@dataclass(frozen=True)
class Data:
    """Texts with class indices, and the names of the classes."""

    texts: list[str]
    labels: list[int]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Speed:
    """One competitor's training seconds, examples and tokens (without padding)."""

    competitor: str
    seconds: float
    examples: int
    tokens: int

    @property
    def per_s(self) -> float:
        """Examples per second."""
        return self.examples / self.seconds


def read(folder: Path, split: str, most: int | None = None) -> Data:
    """Read a split of a task from ``<folder>/<split>.parquet``."""
    table = pq.read_table(folder / f"{split}.parquet", columns=["text", "label"])
    classes = tuple(sorted({str(label) for label in pq.read_table(folder / "train.parquet")["label"].to_pylist()}))
    index = {label: number for number, label in enumerate(classes)}
    texts, labels = table["text"].to_pylist()[:most], table["label"].to_pylist()[:most]
    return Data(texts, [index[str(label)] for label in labels], classes)


def made_up(rows: int, classes: int = 6) -> Data:
    """Return synthetic texts as long as TREC's questions (3 to 33 words, mean 10); all words are in the vocabulary."""
    draws = np.random.default_rng(0)
    words = (
        "what",
        "who",
        "where",
        "when",
        "how",
        "is",
        "the",
        "of",
        "a",
        "in",
        "first",
        "city",
        "river",
        "year",
        "man",
    )
    lengths = np.clip(draws.gamma(6.0, 1.7, rows).astype(int), 3, 33)
    texts = [" ".join(draws.choice(words, length)) for length in lengths]
    return Data(
        texts, [int(label) for label in draws.integers(0, classes, rows)], tuple(f"class {i}" for i in range(classes))
    )


def run_potstill(
    data: Data, student: StudentConfig, cores: Sequence[str], folder: Path, device: str = "cpu"
) -> dict[str, Any]:
    """Train one arm with one process per entry of ``cores`` (core numbers or ``-``); return its report."""
    one_hot = np.eye(len(data.classes))
    rows = [
        TrainingRow(text, tuple(one_hot[label].tolist())) for text, label in zip(data.texts, data.labels, strict=True)
    ]
    key = arm_digest(Arm("one", rows, seed=student.seed), student, data.classes, encoders.weights_digest(student.model))
    arm = ArmJob(name="one", digest=key, seed=student.seed, folder=str(folder / key))
    student_folder.write_rows(arm.folder, rows=rows)
    threads = len(cores[0].split(","))
    job = TrainingJob(data.classes, student, (arm,), device, threads=threads).to_json()
    (folder / "job.json").write_text(json.dumps({**job, "workers": len(cores), "meet": str(folder / "meet")}))
    commands = [
        [sys.executable, str(SIDES / "train_potstill.py"), str(folder / "job.json"), str(rank), core]
        for rank, core in enumerate(cores)
    ]
    environment = {"OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu"} if device == "cpu" else {}
    return {**_last_line(_run(commands, environment)[0]), "folder": arm.folder}


def run_trainer(data: Data, cores: str, folder: Path, **settings: Any) -> dict[str, Any]:
    """Run the Trainer and return its report; ``settings`` as in ``competitors/train_trainer.py``."""
    defaults = {
        "texts": data.texts,
        "labels": data.labels,
        "n_classes": len(data.classes),
        "epochs": 1,
        "max_length": 128,
        "pad_to": None,
        "bf16": False,
        "group_by_length": False,
        "optimiser": "adamw_torch_fused",
        "learning_rate": 4e-5,
        "weight_decay": 0.01,
        "warmup_ratio": 0.1,
        "folder": str(folder),
    }
    (folder / "settings.json").write_text(json.dumps({**defaults, **settings}))
    command = [sys.executable, str(SIDES / "train_trainer.py"), str(folder / "settings.json"), cores]
    return _last_line(_run([command], {})[0])


def _run(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> list[str]:
    """Run the commands in parallel; return their output. Raises ``RuntimeError`` with the tail of stderr."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "DS_LOG_LEVEL": "error"}
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [Path(scratch, str(number)) for number in range(len(commands))]
        running = []
        for command, output in zip(commands, outputs, strict=True):
            with output.open("wb") as out, output.with_suffix(".err").open("wb") as errors:
                running.append(
                    subprocess.Popen(command, stdout=out, stderr=errors, env={**os.environ, **quiet, **environment})
                )
        try:
            for process, output in zip(running, outputs, strict=True):
                if process.wait() != 0:
                    raise RuntimeError(output.with_suffix(".err").read_text()[-2000:])
        finally:
            for process in running:
                process.kill()
        return [output.read_text() for output in outputs]


def _last_line(printed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return found


def measure_speed(data: Data, model: str, cores: Sequence[str], batches: Sequence[int]) -> list[Speed]:
    """Run one round of all competitors on the CPU, one after another."""
    both = ",".join(cores)
    precisions = dict.fromkeys(("float32", pick_precision("auto", "cpu")))
    found: list[Speed] = []

    def note(competitor: str, took: Mapping[str, Any]) -> None:
        found.append(Speed(competitor, took["seconds"], took["examples"], took["tokens"]))
        print(
            f"{competitor:32s} {found[-1].per_s:8.1f} examples/s {found[-1].tokens / found[-1].seconds:9.0f} tokens/s",
            flush=True,
        )

    for batch in batches:
        student = StudentConfig(model=model, epochs=1, min_steps=1, batch_size=batch, pooling="native")
        for name, each in (("2", list(cores)), ("1", [cores[0]]), ("threads", [both])):
            with tempfile.TemporaryDirectory() as scratch:
                note(f"potstill_{name} batch {batch}", run_potstill(data, student, each, Path(scratch)))
        for precision in precisions:
            with tempfile.TemporaryDirectory() as scratch:
                settings = {"batch_size": batch, "bf16": precision == "bfloat16", "group_by_length": True}
                took = run_trainer(data, both, Path(scratch), model=encoders.locate(model), **settings)
                note(f"trainer batch {batch} {precision}", took)
    # By far the slowest competitor: a third of the texts is enough to measure its rate.
    part = Data(data.texts[:PROMPTMIX_ROWS], data.labels[:PROMPTMIX_ROWS], data.classes)
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"batch_size": 8, "pad_to": 50, "optimiser": "adamw_torch"}
        took = run_trainer(part, both, Path(scratch), model=encoders.locate(model), **settings)
        note("promptmix", took)
    return found


def speed_ratios(found: Sequence[Speed]) -> dict[str, float]:
    """Return ratios of the best runs, by examples per second."""

    def best(competitor: str) -> float:
        return max(one.per_s for one in found if one.competitor.split()[0] == competitor)

    ours = max(best("potstill_2"), best("potstill_threads"))
    return {
        "vs_promptmix_recipe": ours / best("promptmix"),
        "vs_trainer_best": ours / best("trainer"),
        "two_workers_vs_one": best("potstill_2") / best("potstill_1"),
    }


def measure_start(rows: int = 64) -> dict[str, float]:
    """Return seconds from calling ``train`` to the first step on two workers, with Ray running.

    ``fit_s``: a complete one-step fit.
    """
    from jobs.runtime import cluster
    from jobs.stages.train import train

    data, one_hot = made_up(rows), np.eye(6)
    arm_rows = tuple(
        TrainingRow(text, tuple(one_hot[label])) for text, label in zip(data.texts, data.labels, strict=True)
    )
    student = StudentConfig(epochs=1, min_steps=1, batch_size=rows, workers=2)
    with tempfile.TemporaryDirectory() as scratch, cluster.connect():
        called = datetime.now()
        result = train([Arm("one", arm_rows)], student, data.classes, scratch)
        lines = Path(str(result.log_dir), "worker-0.log").read_text().splitlines()
        first = next(line for line in lines if "starts at step" in line)
        first_step = datetime.strptime(first[:23], "%Y-%m-%d %H:%M:%S,%f") - called
    return {"first_step_s": first_step.total_seconds(), "fit_s": result.seconds}


def measure_accuracy(folder: Path, task: str, seeds: Sequence[int], cores: Sequence[str]) -> dict[str, Any]:
    """Test accuracy of a student of the whole training split, by training seed."""
    from actors.inference.predictor import Predictor

    train, test = read(folder / task, "train"), read(folder / task, "test")
    scores = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            student = StudentConfig(seed=seed, **ACCURACY[task])
            report = run_potstill(train, student, [",".join(cores)], Path(scratch))
            predictor = Predictor({"one": f"{report['folder']}/model"}, train.classes, threads=len(cores))
            predicted = predictor.predict(test.texts)["one"].argmax(1)
        scores.append(float((predicted == np.array(test.labels)).mean()))
        print(f"{task} seed {seed}: accuracy {scores[-1]:.4f} after {report['seconds']:.0f} s", flush=True)
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return {"mean": statistics.fmean(scores), "deviation": deviation, "seeds": scores}


def measure_gpu(batch: int = 256, rows: int = 20_000) -> dict[str, float]:
    """Compare potstill's loop and the Trainer on one GPU: BERT-base's shape, bfloat16, realistic text lengths."""
    data = made_up(rows)
    with tempfile.TemporaryDirectory() as scratch:
        model = _bert_base(Path(scratch, "bert"), data.classes)
        student = StudentConfig(
            model=model, epochs=1, min_steps=1, batch_size=batch, pooling="native", precision="bfloat16"
        )
        ours = run_potstill(data, student, ["-"], Path(scratch), "cuda")
        settings = {"bf16": True, "group_by_length": True, "batch_size": batch, "model": model}
        trainer = run_trainer(data, "-", Path(scratch), **settings)
    # Forward and backward: 6 operations per weight and token (Kaplan et al. 2020), without embeddings.
    weights = 12 * (12 * 768**2)
    mfu = 6 * weights * ours["tokens"] / ours["seconds"] / (PEAK_TFLOPS * 1e12)
    ratio = (ours["examples"] / ours["seconds"]) / (trainer["examples"] / trainer["seconds"])
    return {"mfu": mfu, "vs_trainer_best": ratio, "peak_tflops_assumed": PEAK_TFLOPS}


def _bert_base(folder: Path, classes: Sequence[str]) -> str:
    """Save an untrained BERT-base with MiniLM's tokenizer (the same as BERT's); return its folder."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(encoders.locate("embedded"))
    BertForSequenceClassification(BertConfig(num_labels=len(classes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Measure the requested parts, print and write the figures."""
    options = _options()
    folder = Path(options.data_dir) if options.data_dir else None
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))[:2]]
    result: dict[str, Any] = {}

    def keep() -> None:  # after every part, since the next one may fail
        if options.json:
            Path(options.json).write_text(json.dumps(result, indent=2))

    if "speed" in options.parts:
        rows = 64 if options.quick else ROWS
        data = read(folder / "trec6", "train", rows) if folder else made_up(rows)
        found: list[Speed] = []
        for _ in range(options.rounds):
            found += measure_speed(data, "embedded", cores, BATCHES[:1] if options.quick else BATCHES)
            found.sort(key=lambda one: one.per_s)  # the last entry of a name (the fastest) wins below
            result |= speed_ratios(found)
            result["examples_per_s"] = {one.competitor: one.per_s for one in found}
            result["tokens_per_s"] = {one.competitor: one.tokens / one.seconds for one in found}
            print("  ".join(f"{name} {result[name]:.2f}" for name in speed_ratios(found)), flush=True)
            keep()
    if "start" in options.parts:
        result |= measure_start()
        print(
            f"first step {result['first_step_s']:.1f} s after the call, complete fit {result['fit_s']:.1f} s",
            flush=True,
        )
        keep()
    if "accuracy" in options.parts and folder:
        for task in options.tasks.split(","):
            result.setdefault("accuracy_by_seed", {})[task] = scores = measure_accuracy(
                folder, task, options.seeds, cores
            )
            result.setdefault("accuracy", {})[task] = scores["mean"]
            keep()
    if "gpu" in options.parts:
        result["gpu"] = measure_gpu()
        print("  ".join(f"gpu.{name} {value:.3f}" for name, value in result["gpu"].items()))
        keep()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of tasks, DIR/<task>/{train,test}.parquet; required for accuracy")
    parser.add_argument(
        "--parts",
        default="speed,start,accuracy",
        help="comma-separated: speed, start, accuracy, gpu",
        type=lambda text: text.split(","),
    )
    parser.add_argument("--tasks", default=",".join(ACCURACY), help="tasks of the accuracy part")
    parser.add_argument(
        "--seeds", default=[0, 1, 2], help="training seeds", type=lambda text: [int(s) for s in text.split(",")]
    )
    parser.add_argument("--rounds", default=2, type=int, help="rounds of the speed part")
    parser.add_argument("--quick", action="store_true", help="smoke run: few texts, one batch size")
    parser.add_argument("--json", help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
