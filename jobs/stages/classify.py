"""The teacher classifies given texts directly (PromptMix's NN + LLM, steps 8 to 10): no student, no training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.teachers.pool import TeacherPool
from jobs.run.job import Job
from jobs.runtime.progress import Meter
from jobs.runtime.torch_worker import embed
from jobs.stages.ask import Usage, ask
from jobs.stages.generate import usage_metrics
from potstill.errors import StageError
from potstill.labels import evidence
from potstill.labels.calibration import normalise
from potstill.labels.prototypes import describe_classes
from potstill.labels.questions import Embeddings
from potstill.measures.baselines import as_predictions
from potstill.rows import Prediction
from potstill.task import LabelledText

PART = "classify"
RAW, CALIBRATED = "teacher_raw", "teacher_calibrated"


def classify(job: Job, pool: TeacherPool, texts: Sequence[LabelledText]) -> None:
    """Ask for the class of every text; writes ``prediction/teacher_raw``, ``prediction/teacher_calibrated`` and
    ``classify.json``. Raises ``StageError`` without any answer.

    Raw: class probabilities averaged over votes. Calibrated: votes are batch calibrated over the texts first (Zhou et al.
    2023). A text
    without an answer gets a uniform distribution, so it counts as the first class.
    """
    config, labels = job.config, job.labels
    with job.terminal.stage(PART) as line, job.tracker.stage(PART) as record:
        # Embeddings only matter if not all classes are offered.
        asked_about = [row.text for row in texts] if len(labels) > config.relabel.neighbours else []
        found, seeds, described = embed(
            asked_about, [seed.text for seed in job.data.seeds], [row.text for row in describe_classes(job.task)]
        )
        vectors = found if asked_about else np.zeros((len(texts), described.shape[1]), dtype=np.float32)
        requests = job.questions.about_texts([row.text for row in texts], Embeddings(vectors, seeds, described))
        meter = Meter(record.metrics)
        line.follow(meter.progress)
        answered, usage = ask(job, pool, PART, requests, config.relabel.votes * len(texts), meter)
        votes = evidence.read_votes(job.task, answered, len(texts))
        unanswered = int((~np.isfinite(votes).any((1, 2))).sum())
        if unanswered == len(texts):
            raise StageError(f"{PART}: the teacher answered no request; see {job.run.path}/response")
        for part, probs in ((RAW, raw_probs(votes)), (CALIBRATED, _batch_calibrated(votes))):
            even = np.where(np.isfinite(probs), probs, 1.0 / len(labels))
            job.run.write(Prediction, part, as_predictions(texts, even, labels))
        job.run.write_json(PART, {"usage": usage, "unanswered": unanswered})
        record.metrics(usage_metrics(usage))
        line.summary = f"{len(texts)} texts classified by the teacher" + (
            f", {unanswered} without an answer" if unanswered else ""
        )


def _batch_calibrated(votes: np.ndarray) -> np.ndarray:
    n_texts, n_votes, n_classes = votes.shape
    return evidence.teacher_probs(votes, np.full(n_texts, -1), np.empty((0, n_votes, n_classes)))[0]


def raw_probs(votes: np.ndarray) -> np.ndarray:
    """The teacher's class probabilities averaged over ``votes`` (n_texts, votes, n_classes): 0 for a class that was not
    offered, NaN for a text without an answer."""
    voted = np.isfinite(votes).any(2, keepdims=True)
    probs = np.where(voted, normalise(np.where(np.isfinite(votes), votes, -np.inf)), 0.0)
    counted = voted.sum(1)
    return np.where(counted > 0, probs.sum(1) / np.maximum(counted, 1), np.nan)


def usage_of(job: Job) -> Usage:
    """The usage stored in ``classify.json``."""
    return Usage(**job.run.read_json(PART)["usage"])
