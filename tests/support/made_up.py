"""A tiny task, its seeds and a teacher without a model, for tests of the method."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from potstill.config import AugmentConfig
from potstill.labels.answered import PLANNED, Answered
from potstill.prompts.contents import Draft
from potstill.rows import Request, Response, to_table
from potstill.strategies import STRATEGIES
from potstill.task import LabelledText, Task
from potstill.teacher import Teacher, TeacherIdentity

IDENTITY = TeacherIdentity("embedded", "made-up-135m", "0")
TEACHER = Teacher(IDENTITY, "list")
WORDS = {
    "animal": ("cat", "dog", "cow", "hen"),
    "city_name": ("bonn", "rome", "oslo", "lima"),
    "tool": ("saw", "axe", "file", "vice"),
}


def make_task(**changes: object) -> Task:
    content = {
        "name": "things",
        "description": "What kind of thing a sentence names.",
        "text_kind": "sentence",
        "source": "plain sentences",
        "classes": {name: f"The sentence names a {name.replace('_', ' ')}." for name in WORDS},
        "data": {"files": {"train": "train.parquet"}},
    }
    return Task.model_validate({**content, **changes})


def make_seeds(per_class: int = 2) -> list[LabelledText]:
    return [
        LabelledText(f"{label}-{i}", f"here is a {word}", label)
        for label, words in WORDS.items()
        for i, word in enumerate(words[:per_class])
    ]


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """The drafts of the configured strategy."""
    return STRATEGIES[augment.strategy].plan(task, seeds, augment, seed, counts)


def embed(texts: Sequence[str]) -> np.ndarray:
    """Embed each class in its own direction, plus a little noise keyed by the text; rows have unit length."""
    rows = np.zeros((len(texts), 8), dtype=np.float32)
    for i, text in enumerate(texts):
        rows[i] = 0.3 * np.random.default_rng(zlib.crc32(text.encode())).normal(size=8)
        for column, (label, words) in enumerate(WORDS.items()):
            rows[i, column] += sum(word in text for word in (*words, label.replace("_", " ")))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def answer(requests: Sequence[Request], lean: str = "tool", reliability: float = 3.0) -> dict[str, Response]:
    """A teacher that knows the words, prefers one class name regardless of the text, and never fails."""
    responses = {}
    for request in requests:
        asked = request.messages[-1].content.rsplit("Sentence: ", 1)[-1]
        values = []
        for choice in request.choices:
            label = choice.replace(" ", "_")
            known = any(word in asked for word in WORDS[label])
            values.append(-5.0 + reliability * known + (4.0 if label == lean else 0.0))
        responses[request.request_id] = Response(request.request_id, choice_logprobs=tuple(values))
    return responses


def answered(requests: Sequence[Request], responses: Mapping[str, Response], row_group: int = 100) -> Answered:
    """Pair requests with their responses, as a stage does."""
    file = pa.BufferOutputStream()
    pq.write_table(to_table(responses.values(), Response), file, row_group_size=row_group)
    return Answered(to_table(requests, Request).select(PLANNED), pq.ParquetFile(pa.BufferReader(file.getvalue())))
