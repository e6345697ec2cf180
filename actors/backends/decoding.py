"""Batched sampling for the embedded teacher: one prefill per distinct prompt, and finished rows leave the batch.

A reply does not depend on the other rows' draws: a row draws its ``t``-th token with the ``t``-th numbers of its own
uniform stream (keyed by request id). Only rounding differs: matrix products of another batch shape differ in the last
bits, in bfloat16 visibly.

transformers' ``generate`` keeps finished rows until the end of the batch and prefills equal prompts once per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.backends.attention import RoomyLayer, new_cache
from actors.backends.scoring import Question, common_length, group_by_prefix

_KEEP_SHARE = 0.85  # finished rows stay until they are 15 % of the batch: dropping rows copies the cache
TRIES = 8  # uniform numbers per token; a draw outside the nucleus uses the next one
_BLOCK = 256  # tokens per block: a cumulative sum over blocks is 20 times as fast as over the whole vocabulary


@dataclass(slots=True)
class Row:
    """One reply being sampled. ``uniforms``: numbers in [0, 1), shape (max_tokens, ``TRIES``)."""

    prompt: tuple[int, ...]
    uniforms: np.ndarray
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None


def decode(model: Any, tokenizer: Any, rows: Sequence[Row], end_tokens: frozenset[int]) -> None:
    """Sample all ``rows`` to their ends, in place. ``text`` excludes the stop string."""
    if not rows:
        return
    with torch.inference_mode():
        prompts = sorted({row.prompt for row in rows})
        cache, mask, logits = _prefill(model, prompts)
        place = {prompt: index for index, prompt in enumerate(prompts)}
        index = torch.tensor([place[row.prompt] for row in rows], device=model.device)
        cache.batch_select_indices(index)
        mask, logits = mask[index], logits[index]
        position = torch.tensor([[len(row.prompt) - 1] for row in rows], device=model.device)
        active = list(rows)
        while True:
            for row, token in zip(active, sample_tokens(logits, active), strict=True):
                if row.finish_reason is None:
                    _take(row, token, tokenizer, end_tokens)
            staying = [i for i, row in enumerate(active) if row.finish_reason is None]
            if not staying:
                return
            if len(staying) <= _KEEP_SHARE * len(active):
                index = torch.tensor(staying, device=model.device)
                cache.batch_select_indices(index)
                mask, position = mask[index], position[index]
                active = [active[i] for i in staying]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            position = position + 1
            step = torch.tensor([[row.tokens[-1] if row.tokens else 0] for row in active], device=model.device)
            output = model(
                input_ids=step, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
            )
            logits = output.logits[:, -1].float()


def _prefill(model: Any, prompts: Sequence[tuple[int, ...]]) -> tuple[Any, Tensor, Tensor]:
    """Cache, mask (n_prompts, width) and next-token logits (n_prompts, vocabulary) of ``prompts``, left-padded.

    A prefix shared by a group of prompts is read once: the prompts of a plan differ little.
    """
    width = max(len(prompt) for prompt in prompts)
    caches, masks, logits = [], [], []
    order: list[int] = []
    simple = all(type(layer) is RoomyLayer for layer in new_cache(model).layers)
    groups = group_by_prefix([Question(prompt, ()) for prompt in prompts]) if simple else [list(range(len(prompts)))]
    for group in groups:
        members = [prompts[i] for i in group]
        shared = min(common_length(members), min(map(len, members)) - 1) if simple and len(members) > 1 else 0
        longest = max(map(len, members)) - shared
        padding = [longest - (len(prompt) - shared) for prompt in members]
        ids = torch.tensor(
            [[0] * n + list(prompt[shared:]) for n, prompt in zip(padding, members, strict=True)], device=model.device
        )
        mask = torch.tensor([[1] * shared + [0] * n + [1] * (longest - n) for n in padding], device=model.device)
        cache = new_cache(model)
        if shared:
            model.base_model(
                input_ids=torch.tensor([members[0][:shared]], device=model.device),
                past_key_values=cache,
                use_cache=True,
            )
            cache.batch_repeat_interleave(len(members))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        caches.append(cache)
        masks.append(torch.nn.functional.pad(mask, (width - shared - longest, 0)))
        logits.append(output.logits[:, -1].float())
        order += group
    if len(caches) > 1:
        joined = new_cache(model)
        for index, layer in enumerate(joined.layers):
            pads = [(0, 0, width - cache.get_seq_length(), 0) for cache in caches]
            own = [cache.layers[index] for cache in caches]
            keys = [torch.nn.functional.pad(one.keys, pad) for one, pad in zip(own, pads, strict=True)]
            values = [torch.nn.functional.pad(one.values, pad) for one, pad in zip(own, pads, strict=True)]
            layer.update(torch.cat(keys), torch.cat(values))
        caches = [joined]
    back = torch.tensor([order.index(i) for i in range(len(prompts))], device=model.device)
    caches[0].batch_select_indices(back)
    return caches[0], torch.cat(masks)[back], torch.cat(logits)[back]


def sample_tokens(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of every row. ``logits``: (n_rows, vocabulary), float32.

    Nucleus sampling by rejection, which needs no sort: draw from the whole distribution, and again if the likelier
    tokens alone reach ``top_p``. After ``TRIES`` misses, take the likeliest token.
    """
    temperature = torch.tensor([row.temperature for row in rows], device=logits.device)
    top_p = torch.tensor([row.top_p for row in rows], device=logits.device)
    uniforms = torch.tensor(
        np.stack([row.uniforms[min(len(row.tokens), len(row.uniforms) - 1)] for row in rows]), device=logits.device
    )
    probs = torch.softmax(logits / temperature.clamp(min=1e-6)[:, None], dim=-1)
    probs = torch.nn.functional.pad(probs, (0, -probs.shape[-1] % _BLOCK))
    blocks = probs.view(len(rows), -1, _BLOCK)
    cumulative = blocks.sum(-1).double().cumsum(-1)
    chosen = probs.argmax(-1)
    waiting = torch.nonzero(temperature > 1e-6)[:, 0]
    for attempt in range(TRIES):
        if not len(waiting):
            break
        whole = len(waiting) == len(rows)  # the usual case; avoids copies
        own = probs if whole else probs[waiting]
        drawn = _invert(blocks if whole else blocks[waiting], cumulative[waiting], uniforms[waiting, attempt])
        likelier = torch.where(own > own.gather(-1, drawn[:, None]), own, 0.0).sum(-1)
        inside = likelier < top_p[waiting]
        chosen[waiting[inside]] = drawn[inside]
        waiting = waiting[~inside]
    return chosen.tolist()


def _invert(blocks: Tensor, cumulative: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative distribution exceeds ``uniform``: (n,) from blocks (n, n_blocks, _BLOCK)."""
    target = uniform * cumulative[:, -1]
    block = torch.searchsorted(cumulative, target[:, None], right=True).clamp(max=cumulative.shape[-1] - 1)
    below = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inner = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(-1)
    # Clamped to the block's mass, since the block sums were rounded to float32.
    place = torch.searchsorted(inner, (target[:, None] - below).clamp(max=inner[:, -1:] * (1 - 1e-9)), right=True)
    return block[:, 0] * _BLOCK + place[:, 0].clamp(max=_BLOCK - 1)


def _take(row: Row, token: int, tokenizer: Any, end_tokens: frozenset[int]) -> None:
    if token in end_tokens:
        row.finish_reason = "stop"
        return
    row.tokens.append(token)
    if row.stop:
        text = tokenizer.decode(row.tokens, skip_special_tokens=True)
        cuts = [text.find(stop) for stop in row.stop if stop in text]
        if cuts:
            row.text, row.finish_reason = text[: min(cuts)], "stop"
            return
    if len(row.tokens) >= len(row.uniforms):
        row.finish_reason = "length"


def finish(row: Row, tokenizer: Any) -> str:
    """The reply of a finished row."""
    cut_by_stop = row.finish_reason == "stop" and row.text
    return row.text if cut_by_stop else _until_stop(tokenizer.decode(row.tokens, skip_special_tokens=True), row.stop)


def _until_stop(text: str, stops: Sequence[str]) -> str:
    cuts = [text.find(stop) for stop in stops if stop in text]
    return text[: min(cuts)] if cuts else text
