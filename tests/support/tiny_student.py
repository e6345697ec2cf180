"""A tiny BERT with its tokenizer, built on demand: real transformers code, 10 ms per step."""

from __future__ import annotations

import random
from pathlib import Path

from potstill.student.arms import TrainingRow

LABELS = ("fruit", "tool", "weather")
WORDS = {
    "fruit": ["apple", "pear", "plum", "cherry", "grape"],
    "tool": ["hammer", "saw", "drill", "wrench", "chisel"],
    "weather": ["rain", "snow", "wind", "hail", "fog"],
}
FILLER = ["the", "a", "some", "old", "new", "and", "with", "near", "very", "bright", "dull", "this", "that", "of"]


def make_student(folder: Path, dropout: float = 0.0) -> str:
    """Write a transformers folder with random weights; returns its path."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = [word for group in WORDS.values() for word in group]
    unused = [f"unused{number}" for number in range(60)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *unused, *FILLER, *words]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertForMaskedLM(config).bert.save_pretrained(folder)
    return str(folder)


def make_rows(count: int, seed: int = 0) -> tuple[TrainingRow, ...]:
    """Texts of 2 to 20 words with soft labels and uneven weights; the class is in one of the words."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = number % 3
        text = rng.choices(FILLER, k=rng.randint(1, 19))
        text.insert(rng.randrange(len(text) + 1), rng.choice(WORDS[LABELS[label]]))
        probs = [0.05, 0.05, 0.05]
        probs[label] = 0.9
        rows.append(TrainingRow(" ".join(text), tuple(probs), rng.choice([1.0, 1.0, 5.0])))
    return tuple(rows)
