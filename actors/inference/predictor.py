"""Batch inference for Ray Data: every student's class probabilities for every text, in one pass.

    dataset.map_batches(Predictor, fn_constructor_kwargs={"students": {"a": folder}}, batch_format="pyarrow",
                        compute=ActorPoolStrategy(size=2))

Texts are sorted by length within a batch and padded to the longest of a micro-batch, so large batches waste
little. Students with the same tokenizer share the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors import student_folder
from potstill.errors import StageError
from potstill.student import batches

PREFIX = "probs:"
"""Prefix of a student's name in the name of its column of probabilities."""


class Predictor:
    """Loads exported students once; each call adds a column of class probabilities per student."""

    def __init__(
        self,
        students: Mapping[str, str],
        labels: Sequence[str],
        device: str = "cpu",
        max_length: int = 128,
        micro_batch_tokens: int = 8192,
        threads: int = 1,
    ) -> None:
        """Raises ``StageError`` if a folder can't be loaded or was trained for other classes."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        if device == "cpu":
            torch.set_num_threads(threads)
        self._device, self._max_length, self._tokens = device, max_length, micro_batch_tokens
        self._models: dict[str, Any] = {}
        self._tokenizer_of: dict[str, str] = {}
        self._tokenizers: dict[str, Any] = {}
        for name, folder in students.items():
            try:
                student_folder.check_classes(folder, labels)
                with student_folder.fetched(folder) as local:
                    model = AutoModelForSequenceClassification.from_pretrained(
                        local, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                    )
                    tokenizer = AutoTokenizer.from_pretrained(local, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise StageError(
                    f"student {name!r} in {folder} can't be loaded: {' '.join(str(error).split())[:300]}"
                ) from error
            self._models[name] = model.eval().to(device)
            key = _identity(tokenizer)
            self._tokenizer_of[name] = key
            self._tokenizers.setdefault(key, tokenizer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``batch``, which has a column ``text``, with a column ``probs:<student>`` (lists in label order) per student."""
        texts = batch.column("text").to_pylist()
        tokens = {key: self._tokenise(tokenizer, texts) for key, tokenizer in self._tokenizers.items()}
        for name in self._models:
            probs = self._probabilities(name, tokens[self._tokenizer_of[name]])
            batch = batch.append_column(PREFIX + name, pa.array(probs.tolist(), type=pa.list_(pa.float64())))
        return batch

    def predict(self, texts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Class probabilities ``[texts, classes]`` by student, without Ray."""
        table = self(pa.table({"text": pa.array(list(texts), type=pa.string())}))
        return {name: np.array(table.column(PREFIX + name).to_pylist()) for name in self._models}

    def _tokenise(self, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        longest = min(self._max_length, tokenizer.model_max_length)
        ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
        return ids

    def _probabilities(self, name: str, ids: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        import torch

        model, tokenizer = self._models[name], self._tokenizers[self._tokenizer_of[name]]
        probs = np.zeros((len(ids), model.config.num_labels))
        with torch.inference_mode():
            for chosen in batches.shard([len(row) for row in ids], 1, self._tokens)[0]:
                if not chosen:
                    continue
                inputs = tokenizer.pad({"input_ids": [list(ids[i]) for i in chosen]}, return_tensors="pt")
                logits = model(**{key: value.to(self._device) for key, value in inputs.items()}).logits
                # Double precision, so that rows sum to 1 as closely as possible.
                probs[chosen] = torch.softmax(logits.double(), dim=-1).cpu().numpy()
        return probs


def _identity(tokenizer: Any) -> str:
    """A key that is equal for tokenizers that give the same ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
