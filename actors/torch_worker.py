"""A process that runs a whole job's or search's torch work: embedding, prediction and, in a search, training.

Starting a Ray Train fit takes 15-27 s on two cores, mostly for importing torch and DeepSpeed and loading the encoder.
This process pays that once, so training a student of a few texts takes only as long as its steps. It trains with one
worker; Ray Train is for more.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from actors.inference.embedder import Embedder
from actors.quiet import redirect_output
from actors.training.job import TrainingJob
from actors.training.worker import log, train_arms

VARIABLES = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DS_LOG_LEVEL": "warning",
}
ON_CPU = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


class TorchWorker:
    """The process of a job, or one of a search's processes."""

    def __init__(self, log_dir: str | None = None) -> None:
        self._log_dir = log_dir
        self._embedder: Embedder | None = None
        self._first_mb: float | None = None

    def ready(self) -> bool:
        """True once the process runs."""
        return True

    def embed(self, groups: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """For each group of texts an array (texts, width), float32, rows of unit length. On the CPU."""
        with redirect_output(self._log_dir, log):
            self._embedder = self._embedder or Embedder()
            return [self._embedder.embed(list(texts)) for texts in groups]

    def train(self, job: Mapping[str, Any]) -> None:
        """Train and export the arms of ``TrainingJob.to_json``. Raises as ``train_arms`` does."""
        with redirect_output(self._log_dir, log):
            train_arms(TrainingJob.from_json(job))
        # Engines are part of reference cycles, and glibc keeps freed memory unless told to return it.
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._first_mb = self._first_mb or _resident_mb()

    def grown_mb(self) -> float:
        """Growth of this process's memory since its first student, in MiB."""
        return _resident_mb() - self._first_mb if self._first_mb is not None else 0.0

    def predict(
        self, students: Mapping[str, str], texts: Sequence[str], labels: Sequence[str], max_length: int, device: str
    ) -> dict[str, np.ndarray]:
        """Class probabilities ``[texts, classes]`` of exported students by name."""
        from actors.inference.predictor import Predictor

        with redirect_output(self._log_dir, log):
            return Predictor(students, labels, device=device, max_length=max_length).predict(texts)

    def call(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """``function(**arguments)``, for functions that need the same imports."""
        with redirect_output(self._log_dir, log):
            return function(**arguments)


def _resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20
