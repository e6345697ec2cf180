"""Run the Hugging Face Trainer on the same texts, as PromptMix's released code does or tuned for speed.

    python benchmarks/competitors/train_trainer.py SETTINGS.json CORES

``SETTINGS.json``: model, texts, labels (class indices), n_classes, batch_size, epochs, max_length, pad_to (a fixed
length, or null for dynamic padding), bf16, group_by_length, optimiser, learning_rate, weight_decay, warmup_ratio, folder.
Prints a JSON line: ``seconds`` of the training loop alone, ``examples``, ``tokens`` (without padding), ``losses``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(settings_file: str, cores: str) -> None:
    """Train with the given settings and print the report."""
    threads = len(cores.split(",")) if cores != "-" else 0
    if threads:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    settings = json.loads(Path(settings_file).read_text())
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
    )

    if threads:
        torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForSequenceClassification.from_pretrained(
        settings["model"], num_labels=settings["n_classes"], dtype=torch.float32
    )
    fixed = settings["pad_to"]
    tokens = tokenizer(
        settings["texts"],
        truncation=True,
        max_length=fixed or settings["max_length"],
        padding="max_length" if fixed else False,
    )
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(tokens["input_ids"], tokens["attention_mask"], settings["labels"], strict=True)
    ]

    class Clock(TrainerCallback):
        started = ended = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

    clock = Clock()
    trainer = Trainer(
        model=model,
        args=_arguments(settings),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if torch.cuda.is_available() else None),
        callbacks=[clock],
    )
    trainer.train()
    result = {
        "seconds": clock.ended - clock.started,
        "examples": len(rows) * settings["epochs"],
        "tokens": sum(sum(row["attention_mask"]) for row in rows) * settings["epochs"],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    print(json.dumps(result))


def _arguments(settings: dict[str, Any]) -> Any:
    import torch
    from transformers import TrainingArguments

    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=settings["folder"],
        per_device_train_batch_size=settings["batch_size"],
        num_train_epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        warmup_steps=settings["warmup_ratio"],
        lr_scheduler_type="linear",
        optim=settings["optimiser"],
        bf16=settings["bf16"],
        train_sampling_strategy="group_by_length" if settings["group_by_length"] else "random",
        use_cpu=not on_gpu,
        dataloader_num_workers=2 if on_gpu else 0,
        dataloader_pin_memory=on_gpu,
        save_strategy="no",
        logging_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
