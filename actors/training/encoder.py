"""An encoder with its tokenizer, ready to be fine-tuned: any ``AutoModelForSequenceClassification``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.training import pooling
from potstill.config.student import StudentConfig
from potstill.errors import InputError, Problem
from potstill.student import encoders

_LARGEST_FIXED_PREFIX = 4096
_POOLING_LOST = (
    "a sentence encoder of type {}: mean pooling is kept for BERT only, so its head starts untrained "
    "(student.pooling: native does the same without this warning)"
)


@dataclass(frozen=True)
class Vocabulary:
    """The full embedding table of a compacted one, to be restored on export."""

    name: str = ""
    rows: Any = None
    full: Any = None

    def restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """Weights with the full embedding table: trained rows replaced, unused rows unchanged."""
        if self.full is None:
            return state
        table = self.full.clone()
        table[self.rows] = state[self.name].to(table.dtype)
        return {**state, self.name: table}

    def __str__(self) -> str:
        return "whole vocabulary" if self.full is None else f"{len(self.rows)} of {len(self.full)} vocabulary rows"


@dataclass
class TokenCache:
    """Token ids by text, for one tokenizer and length limit; ``cut``: the texts over the limit."""

    ids: dict[str, list[int]] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)


@dataclass
class Encoder:
    """A model and tokenizer pair. ``parameters`` counts the model before its vocabulary is compacted."""

    model: Any
    tokenizer: Any
    max_length: int
    parameters: int
    attention: str
    pad_to: int = 1
    mean_pooled: bool = False
    packed: bool = False
    warnings: tuple[str, ...] = ()
    _renumber: Any = field(default=None, repr=False)

    def tokenise(self, texts: Sequence[str], known: TokenCache) -> int:
        """Add the token ids of ``texts`` to ``known``; each text is tokenised once. Returns how many of the
        distinct texts were cut at ``max_length``."""
        new = list(dict.fromkeys(text for text in texts if text not in known.ids))
        if new:
            whole = self.tokenizer(new, truncation=False, verbose=False)["input_ids"]
            long = [text for text, ids in zip(new, whole, strict=True) if len(ids) > self.max_length]
            known.ids.update(zip(new, whole, strict=True))
            if long:
                cut = self.tokenizer(long, truncation=True, max_length=self.max_length)["input_ids"]
                known.ids.update(zip(long, cut, strict=True))
                known.cut.update(long)
        return len(known.cut.intersection(texts))

    def compact_vocabulary(self, ids: Sequence[Sequence[int]]) -> Vocabulary:
        """Keep only the embedding rows that ``ids`` use; ``collate`` renumbers from then on.

        Ids up to the highest special one keep their number, since some models compare with them. If that prefix is
        long or little would be saved, nothing changes.
        """
        import torch

        table = self.model.get_input_embeddings()
        config = self.model.config
        special = [
            self.tokenizer.pad_token_id,
            *(getattr(config, f"{k}_token_id", None) for k in ("pad", "bos", "eos", "sep", "cls")),
        ]
        prefix = max([value for value in special if isinstance(value, int)], default=0) + 1
        used = np.unique(np.concatenate([np.asarray(row, dtype=np.int64) for row in ids]))
        rows = np.union1d(used, np.arange(prefix))
        if (
            type(table) is not torch.nn.Embedding
            or prefix > _LARGEST_FIXED_PREFIX
            or len(rows) > 0.75 * len(table.weight)
        ):
            return Vocabulary()
        name = next(key for key, value in self.model.named_parameters() if value is table.weight)
        full = table.weight.detach().clone()
        index = torch.from_numpy(rows)
        small = torch.nn.Embedding(len(rows), full.shape[1], padding_idx=table.padding_idx, dtype=full.dtype)
        with torch.no_grad():
            small.weight.copy_(full[index])
        self.model.set_input_embeddings(small)
        self._renumber = np.zeros(len(full), dtype=np.int64)
        self._renumber[rows] = np.arange(len(rows))
        return Vocabulary(name, index, full)

    def collate(self, ids: Sequence[Sequence[int]], device: Any) -> dict[str, Any]:
        """The model's inputs for these token ids, on ``device``: packed (``actors/training/kernels/packing.py``), or
        ``input_ids`` and ``attention_mask`` ``[rows, longest]`` padded on the right."""
        import torch

        if self.packed:
            from actors.training.kernels import packing

            return packing.inputs(self.model, ids, device, self._renumber)

        longest = -(-max(len(row) for row in ids) // self.pad_to) * self.pad_to
        tokens = np.full((len(ids), longest), self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(ids), longest), dtype=np.int64)
        for number, row in enumerate(ids):
            tokens[number, : len(row)] = row
            mask[number, : len(row)] = 1
        if self._renumber is not None:
            tokens = self._renumber[tokens]
        return {
            "input_ids": torch.from_numpy(tokens).to(device, non_blocking=True),
            "attention_mask": torch.from_numpy(mask).to(device, non_blocking=True),
        }


def load_encoder(student: StudentConfig, labels: Sequence[str]) -> Encoder:
    """Load model and tokenizer; the head is new if the checkpoint has none for these classes.

    Loads safetensors only and never runs remote code. Raises ``InputError`` if the checkpoint is missing, lacks
    encoder weights or does not match its tokenizer.
    """
    import torch

    from actors.training.kernels import dropout, packing

    where = f"student.model = {student.model!r}"
    place = encoders.locate(student.model)
    if os.path.isabs(place) and (found := encoders.problems(student.model)):
        raise InputError(found)
    model, tokenizer = _read(where, place, labels)
    wanted = student.pooling == "auto" and pooling.was_mean_pooled(place)
    mean_pooled = wanted and pooling.can_keep(model)
    if mean_pooled:
        pooling.add_mean_layer(model)
    if student.dropout is not None:
        set_dropout(model, student.dropout)
    dropout.replace(model)
    if packed := not student.padding and packing.can_pack(model):
        packing.pack(model)
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        max_length=min(student.max_length, _longest(model.config, tokenizer)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        attention="without padding" if packed else str(getattr(model.config, "_attn_implementation", "eager")),
        pad_to=8 if torch.cuda.is_available() else 1,
        mean_pooled=mean_pooled,
        packed=packed,
        warnings=(_POOLING_LOST.format(model.config.model_type),) if wanted and not mean_pooled else (),
    )


def _read(where: str, place: str, labels: Sequence[str]) -> tuple[Any, Any]:
    """The stored model and tokenizer, checked."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    names = dict(enumerate(labels))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, use_fast=True)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            place,
            num_labels=len(names),
            id2label=names,
            label2id={label: number for number, label in names.items()},
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        message = " ".join(str(error).split())
        raise InputError([Problem(where, f"can't be loaded: {message[:300]}")]) from error
    _check(where, model, tokenizer, info)
    if tokenizer.pad_token_id is None:
        raise InputError([Problem(where, "its tokenizer has no padding token")])
    return model, tokenizer


def set_dropout(model: Any, share: float) -> None:
    """Set every dropout of a model, including those that attention reads as a plain number."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        for name in ("attention_dropout", "dropout_prob", "dropout_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, share)
    for name in list(vars(model.config)):
        if "dropout" in name and isinstance(getattr(model.config, name), float):
            setattr(model.config, name, share)


def _check(where: str, model: Any, tokenizer: Any, info: Mapping[str, Any]) -> None:
    prefix = f"{model.base_model_prefix}."
    pairs = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    absent = [key for key in [*info["missing_keys"], *pairs] if key.startswith(prefix) and "pooler" not in key]
    if absent:
        whole = sum(1 for name, _ in model.named_parameters() if name.startswith(prefix))
        lacking = f"its checkpoint lacks {len(absent)} of {whole} encoder weights ({sorted(absent)[0]}, ...)"
        message = f"{lacking}: not an encoder to fine-tune"
        raise InputError([Problem(where, message)])
    if not tokenizer.is_fast:
        raise InputError([Problem(where, "has no fast tokenizer (tokenizer.json)")])
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        message = (
            f"its tokenizer has {len(tokenizer)} tokens and its embedding table {rows} rows: they don't belong together"
        )
        raise InputError([Problem(where, message)])
    expected = getattr(model.config, "pad_token_id", None)
    if None not in (expected, tokenizer.pad_token_id) and expected != tokenizer.pad_token_id:
        message = f"its tokenizer pads with token {tokenizer.pad_token_id} and its config says {expected}"
        raise InputError([Problem(where, f"{message}: they don't belong together")])


def _longest(config: Any, tokenizer: Any) -> int:
    """The model's length limit in tokens. RoBERTa's positions start after its padding id."""
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    if "roberta" in str(getattr(config, "model_type", "")):
        positions -= (config.pad_token_id or 0) + 1
    return int(min(positions, tokenizer.model_max_length))
