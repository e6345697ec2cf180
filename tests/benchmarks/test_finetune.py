"""The arithmetic of benchmarks/finetune.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import finetune
from finetune import Speed


def test_the_ratios_are_best_against_best() -> None:
    found = [
        Speed("potstill_1 batch 32", 20.0, 1000, 10_000),
        Speed("potstill_2 batch 32", 12.5, 1000, 10_000),
        Speed("potstill_2 batch 64", 10.0, 1000, 10_000),
        Speed("potstill_threads batch 32", 8.0, 1000, 10_000),
        Speed("trainer batch 32 float32", 25.0, 1000, 10_000),
        Speed("trainer batch 32 bfloat16", 12.5, 1000, 10_000),
        Speed("promptmix", 50.0, 1000, 10_000),
    ]
    assert finetune.speed_ratios(found) == {
        "vs_promptmix_recipe": 6.25,
        "vs_trainer_best": 1.5625,
        "two_workers_vs_one": 2.0,
    }


def test_made_up_texts_have_the_lengths_of_questions() -> None:
    data = finetune.made_up(2000)
    words = [len(text.split()) for text in data.texts]
    assert 3 <= min(words) <= max(words) <= 33
    assert 9 < sum(words) / len(words) < 11
    assert set(data.labels) == set(range(6))
