"""Batches without padding: the tokens of all texts form one row, and attention keeps the texts apart.

Most of an encoder works token by token (projections, feed-forward, norms, dropout), where only the number of tokens
matters. ``attend`` is an attention function for transformers' registry; a ``Packing`` tells it where each text ends.
On a GPU it uses flash attention over variable lengths (nested tensors). On a CPU, which has no such kernel with
dropout, texts of similar length are padded to each other for attention only. A hook after the last layer gives the
heads the usual ``[rows, longest, hidden]``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import Function

from actors.training.kernels.dropout import drop

NAME = "potstill_packed"
"""Name of the attention function in transformers' registry."""

GROUP_OVERHEAD = 2000
"""Cost of one more group, in pairs of tokens that attend to each other (times all heads, forward and backward)."""

_FIRST_POSITION = {
    "bert": 0,
    "electra": 0,
    "distilbert": 0,
    "modernbert": 0,
    "roberta": 1,
    "camembert": 1,
    "xlm-roberta": 1,
}
"""Model types whose attention is in the registry and that take positions; 1 if positions start after the padding id."""


@dataclass(frozen=True)
class PaddedGroup:
    """Texts of a packing that are padded to ``longest`` for attention. ``begin`` to ``end``: their tokens;
    ``places [tokens]``: the index of each token in ``[rows * longest]``; ``mask [rows, 1, 1, longest]``. Both are None
    if nothing is padded."""

    begin: int
    end: int
    rows: int
    longest: int
    places: Any
    mask: Any


class Packing:
    """The positions of a batch's texts in the single row of its tokens. ``lengths [rows]`` in tokens."""

    def __init__(self, lengths: Sequence[int] | NDArray[np.int64], device: Any) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.longest, self.device = int(self.lengths.max()), device
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.starts = starts.tolist()
        # Position of each token in its text, and in a table [rows, longest].
        self.within = np.arange(starts[-1]) - np.repeat(starts[:-1], self.lengths)
        row = np.repeat(np.arange(len(self.lengths)), self.lengths)
        self.places = torch.from_numpy(row * self.longest + self.within).to(device, non_blocking=True)

    @cached_property
    def groups(self) -> list[PaddedGroup]:
        """Groups of neighbouring texts that are cheapest to pad together; fewest if texts are sorted by length."""
        bounds = cut(self.lengths, GROUP_OVERHEAD)
        return [self._group(first, last) for first, last in itertools.pairwise(bounds)]

    @cached_property
    def offsets(self) -> Any:
        """``[rows + 1]`` int64: the start of each text, and the end."""
        return torch.tensor(self.starts, dtype=torch.int64, device=self.device)

    def _group(self, first: int, last: int) -> PaddedGroup:
        lengths = self.lengths[first:last]
        begin, end, longest = self.starts[first], self.starts[last], int(lengths.max())
        places = mask = None
        if lengths.min() < longest:
            rows = np.repeat(np.arange(last - first), lengths)
            places = torch.from_numpy(rows * longest + self.within[begin:end]).to(self.device)
            mask = torch.from_numpy(np.arange(longest) < lengths[:, None]).to(self.device)[:, None, None, :]
        return PaddedGroup(begin, end, last - first, longest, places, mask)


def cut(lengths: NDArray[np.int64], overhead: int) -> list[int]:
    """Bounds ``[0, ..., rows]`` of the groups with the least work: rows times longest squared, plus ``overhead`` each.

    By dynamic programming over runs of equal lengths; a group consists of neighbours.
    """
    edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the best cut of the first runs, and the start of its last group
    for end in range(1, len(edges)):
        longest, found = 0, None
        for begin in range(end - 1, -1, -1):
            longest = max(longest, int(lengths[edges[begin]]))
            cost = best[begin][0] + (edges[end] - edges[begin]) * longest**2 + overhead
            if found is None or cost < found[0]:
                found = (cost, begin)
        assert found is not None
        best.append(found)
    bounds, end = [len(lengths)], len(edges) - 1
    while end > 0:
        end = best[end][1]
        bounds.append(edges[end])
    return bounds[::-1]


def can_pack(model: Any) -> bool:
    """Whether ``pack`` supports the architecture."""
    config = model.config
    plain = getattr(config, "position_embedding_type", None) in (None, "absolute")
    return config.model_type in _FIRST_POSITION and plain and not getattr(config, "is_decoder", False)


def pack(model: Any) -> None:
    """Make a sequence classifier take packed batches, and only those."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
    base = model.base_model
    # The modules after the last layer (a pooler, a head) read [rows, longest, hidden].
    stack = getattr(base, "encoder", None) or getattr(base, "transformer", None) or base
    stack.register_forward_hook(_unpack_states, with_kwargs=True)


def inputs(model: Any, ids: Sequence[Sequence[int]], device: Any, renumber: Any = None) -> dict[str, Any]:
    """The inputs of the model's forward for these token ids: one row of all tokens, and their packing."""
    packing = Packing([len(row) for row in ids], device)
    tokens = np.concatenate([np.asarray(row, dtype=np.int64) for row in ids])
    if renumber is not None:
        tokens = renumber[tokens]
    offset = (model.config.pad_token_id + 1) * _FIRST_POSITION[model.config.model_type]
    mask = np.arange(packing.longest) < packing.lengths[:, None]
    return {
        "input_ids": torch.from_numpy(tokens[None]).to(device, non_blocking=True),
        "position_ids": torch.from_numpy(packing.within[None] + offset).to(device, non_blocking=True),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(device, non_blocking=True),
        "packing": packing,
    }


class Pad(Function):
    """``pad(rows, places, size)``: a table of that size with each row in its place and zeros elsewhere.

    Pad and Unpad are each other's gradients. torch's own gradient of ``index_select`` adds row by row, which is slower
    than the attention itself.
    """

    @staticmethod
    def forward(ctx: Any, rows: Any, places: Any, size: int) -> Any:
        """The table."""
        ctx.places = places
        return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        """The rows of the gradient."""
        return gradient.index_select(0, ctx.places), None, None


class Unpad(Function):
    """``unpad(table, places)``: the rows at those places."""

    @staticmethod
    def forward(ctx: Any, table: Any, places: Any) -> Any:
        """The rows."""
        ctx.places, ctx.size = places, len(table)
        return table.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        """The table of the gradient."""
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, ctx.places, gradient), None


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Attention within each text. ``query``, ``key``, ``value``: ``[1, heads, tokens, size]``; returns
    ``[1, tokens, heads, size]`` without attention weights. ``attention_mask`` is ignored in favour of ``packing``."""
    query, key, value = (state[0].transpose(0, 1) for state in (query, key, value))
    if query.is_cuda and sliding_window is None and query.element_size() == 2:
        return attend_nested(query, key, value, packing, scaling, dropout)[None], None
    return attend_grouped(query, key, value, packing, scaling, dropout, sliding_window)[None], None


def attend_nested(query: Any, key: Any, value: Any, packing: Packing, scaling: float | None, dropout: float) -> Any:
    """Attention of states ``[tokens, heads, size]`` by torch's kernel for variable lengths."""
    jagged = [
        torch.nested.nested_tensor_from_jagged(
            state.contiguous(), packing.offsets, min_seqlen=int(packing.lengths.min()), max_seqlen=packing.longest
        ).transpose(1, 2)
        for state in (query, key, value)
    ]
    attended = torch.nn.functional.scaled_dot_product_attention(*jagged, dropout_p=dropout, scale=scaling)
    return attended.transpose(1, 2).values()


def attend_grouped(
    query: Any,
    key: Any,
    value: Any,
    packing: Packing,
    scaling: float | None,
    dropout: float,
    window: int | None = None,
) -> Any:
    """Attention of states ``[tokens, heads, size]``, padded group by group. ``window``: a token attends to those less
    than that far away (ModernBERT's local layers)."""
    found = []
    for group in packing.groups:
        shape = (group.rows, group.longest, *query.shape[1:])
        parts = [state[group.begin : group.end] for state in (query, key, value)]
        if group.places is not None:
            parts = [Pad.apply(part, group.places, group.rows * group.longest) for part in parts]
        mask = group.mask
        if window is not None and window < group.longest:
            positions = torch.arange(group.longest, device=query.device)
            near = (positions[:, None] - positions).abs() < window
            mask = near if mask is None else mask & near
        queries, keys, values = (part.reshape(shape).transpose(1, 2) for part in parts)
        attended = _attention(queries, keys, values, mask, scaling, dropout)
        flat = attended.transpose(1, 2).reshape(group.rows * group.longest, *query.shape[1:])
        found.append(flat if group.places is None else Unpad.apply(flat, group.places))
    return found[0] if len(found) == 1 else torch.cat(found)


def _attention(query: Any, key: Any, value: Any, mask: Any, scaling: float | None, dropout: float) -> Any:
    """Attention of states ``[rows, heads, longest, size]``. With dropout on a CPU torch computes the same, but with costly
    draws (``actors/training/kernels/dropout.py``)."""
    if dropout == 0.0 or query.is_cuda:
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    return drop(torch.softmax(scores, dim=-1), dropout) @ value


def _unpack_states(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    packing: Packing = kwargs["packing"]
    states = output.last_hidden_state[0]
    table = Pad.apply(states, packing.places, len(packing.lengths) * packing.longest)
    output.last_hidden_state = table.reshape(len(packing.lengths), packing.longest, states.shape[-1])
    return output
