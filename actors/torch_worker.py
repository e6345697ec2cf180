"""A process that stays for a whole job or search and does what needs torch: embeds, predicts and, in a search, trains.

Starting a Ray Train fit takes 15-27 s on two cores, importing torch, DeepSpeed and the encoder most of it; here that
is paid once, and a student of a few texts takes as long as its steps. For students of one worker; those of several
are Ray Train's.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import psutil

from actors.inference.embedder import Embedder
from actors.quiet import chatter_to
from actors.training.job import TrainingJob
from actors.training.worker import log, train_arms

VARIABLES = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DS_LOG_LEVEL": "warning",
}
ON_CPU = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


class TorchWorker:
    """A job's own process, or one of a search's. Errors are raised as the functions behind it raise them."""

    def __init__(self, log_dir: str | None = None) -> None:
        self._log_dir = log_dir
        self._embedder: Embedder | None = None
        self._first_mb: float | None = None

    def ready(self) -> bool:
        """True once the process is there."""
        return True

    def embed(self, groups: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """For each group of texts an array (texts, width), float32, rows of unit length. On the CPU."""
        with chatter_to(self._log_dir, log):
            self._embedder = self._embedder or Embedder()
            return [self._embedder.embed(list(texts)) for texts in groups]

    def train(self, job: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Train and export the arms of ``TrainingJob.to_json``; their reports."""
        with chatter_to(self._log_dir, log):
            reports = [asdict(report) for report in train_arms(TrainingJob.from_json(job))]
        # Engines hold each other in circles, and what they held glibc keeps unless it is told to give it back.
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._first_mb = self._first_mb or _resident_mb()
        return reports

    def grown_mb(self) -> float:
        """Megabytes that this process has more than after its first student."""
        return _resident_mb() - self._first_mb if self._first_mb is not None else 0.0

    def predict(
        self, students: Mapping[str, str], texts: Sequence[str], labels: Sequence[str], max_length: int, device: str
    ) -> dict[str, np.ndarray]:
        """Class probabilities ``[texts, classes]`` of exported students by name."""
        from actors.inference.predictor import Predictor

        with chatter_to(self._log_dir, log):
            return Predictor(students, labels, device=device, max_length=max_length).predict(texts)

    def call(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """``function(**arguments)``, for what imports as much as the rest of this."""
        with chatter_to(self._log_dir, log):
            return function(**arguments)


def _resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20
