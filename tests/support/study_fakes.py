"""A study without a cluster: small deterministic fakes of the teacher, the students and the embedder."""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass, field

import numpy as np

from actors.student_folder import ArmReport
from actors.teachers.answers import Answer, to_answer_table
from jobs.stages import train as training
from potstill import draws
from potstill.rows import Prediction, Request, Response, from_table
from potstill.student.arms import arm_digest

WORDS = ("lamp", "river", "stone", "cloud", "paper", "horse", "green", "early", "quiet", "seven", "market", "bridge")


@dataclass
class FakeStudy:
    """Records the fakes' calls. Fit number ``break_at`` raises ``broken``; requests of strategy ``silent`` get
    empty replies."""

    asked: list[Request] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    fits: int = 0
    break_at: int | None = None
    broken: BaseException = field(default_factory=KeyboardInterrupt)
    silent: str | None = None

    def install(self, monkeypatch) -> FakeStudy:
        from jobs import preflight
        from jobs.runtime import cluster, torch_worker
        from jobs.stages import classify
        from jobs.study import run as study

        monkeypatch.setattr(study, "TeacherPool", lambda *_: _Pool(self))
        monkeypatch.setattr(study, "Ledger", lambda uri: uri)
        monkeypatch.setattr(study.training, "train", self._train)
        monkeypatch.setattr(study.evaluation, "predict", _predict)
        monkeypatch.setattr(cluster, "connect", lambda verbose=False: contextlib.nullcontext())
        monkeypatch.setattr(preflight, "check_cluster", lambda job, stages: None)
        for module in (study, torch_worker, classify):
            monkeypatch.setattr(module, "embed", _embed)
        return self

    def _train(self, arms, student, labels, storage, verbose=False):
        self.fits += 1
        if self.fits == self.break_at:
            raise self.broken
        students = {}
        for arm in arms:
            self.trained.append(arm.name)
            students[arm.name] = training.TrainedStudent(
                name=arm.name,
                export=f"{storage}/{arm.name}",
                report=ArmReport(
                    digest=arm_digest(arm, student, labels, "w", {arm.name: arm.name for arm in arms}),
                    steps=1,
                    losses=[1.0],
                    learning_rates=[0.1],
                    examples=len(arm.rows),
                    tokens=1,
                    padded_tokens=1,
                    truncated=0,
                    seconds=1.5,
                    workers=1,
                    best_step=1,
                ),
                reused=False,
            )
        return training.TrainingResult(students, 1.0, 1, None)


class _Pool:
    def __init__(self, fake: FakeStudy) -> None:
        self._fake = fake

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def progress(self):
        return None

    def held_because(self):
        return None

    def wind_down(self, reason):
        return None

    def stream(self, tables, folder=None):
        for table in tables:
            requests = from_table(table, Request)
            self._fake.asked += requests
            yield to_answer_table(
                [
                    Answer(
                        Response(request.request_id) if request.strategy == self._fake.silent else _respond(request),
                        reused=False,
                    )
                    for request in requests
                ]
            )


def _respond(request: Request) -> Response:
    random = np.random.default_rng(zlib.crc32(request.request_id.encode()))
    common = {"prompt_tokens": 10, "completion_tokens": 5, "cost_usd": 0.5}
    if request.choices:
        logprobs = tuple(float(value) for value in np.log(random.dirichlet(np.ones(len(request.choices)))))
        return Response(request.request_id, choice_logprobs=logprobs, **common)
    return Response(request.request_id, " ".join(random.choice(WORDS, 8)), "stop", **common)


def _predict(students, texts, labels, **_):
    return {name: [_guess(name, row, labels) for row in texts] for name in students}


def _guess(name, row, labels) -> Prediction:
    """Predict the right label with probability 0.8."""
    right = draws.uniform(0, name, row.example_id) < 0.8
    label = row.label if right else draws.pick(labels, 1, name, row.example_id)
    return Prediction(row.example_id, row.label, tuple(float(label == other) for other in labels), label)


def _embed(*groups):
    found = []
    for texts in groups:
        rows = np.zeros((len(texts), 6), dtype=np.float32)
        for i, text in enumerate(texts):
            rows[i] = np.random.default_rng(zlib.crc32(text.encode())).normal(size=6)
        found.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))
    return found
