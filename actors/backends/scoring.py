"""Log-probabilities of given continuations, for ``choose`` of the embedded teacher.

A stage asks the same question about hundreds of texts, so prompts share most of their tokens. The common prefix is read
once and its keys and values are shared. All choices of a text are then scored in one pass, as a tree: the tokens of
every choice follow the text and attend to the text and to their own choice only. With six classes this reads a sixth of
the tokens of one pass per choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actors.backends.attention import new_cache

_MIN_SHARED = 16  # tokens; a shorter common prefix is not worth a separate group
_ROW = 64  # tokens per row up to which a batch has ``batch_size`` rows


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the continuations to score, as token ids. Continuations are not empty."""

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]


def group_by_prefix(questions: Sequence[Question]) -> list[list[int]]:
    """Group the indices of questions whose common prefix is worth reading once; longest prompt last in each group.

    Sorted prompts form a tree of common prefixes. From the leaves up, the branches of a node are joined into one group if
    that saves more tokens than their present groups.
    """
    if not questions:
        return []
    order = sorted(range(len(questions)), key=lambda i: questions[i].prompt)
    open_nodes: list[tuple[int, list[_Branch]]] = []  # (length of the common prefix, branches), by increasing length
    branch = _Branch([order[0]], [[order[0]]], 0)
    for before, i in zip(order, [*order[1:], None], strict=True):
        shared = common_length([questions[before].prompt, questions[i].prompt]) if i is not None else -1
        while open_nodes and open_nodes[-1][0] > shared:
            length, branches = open_nodes.pop()
            branch = _join(length, [*branches, branch])
        if i is None:
            break
        if not open_nodes or open_nodes[-1][0] < shared:
            open_nodes.append((shared, []))
        open_nodes[-1][1].append(branch)
        branch = _Branch([i], [[i]], 0)
    return [sorted(group, key=lambda i: len(questions[i].prompt)) for group in branch.groups]


@dataclass(frozen=True, slots=True)
class _Branch:
    """Part of the tree: its questions, their best grouping, and the tokens that it saves."""

    members: list[int]
    groups: list[list[int]]
    saved: int


def _join(length: int, branches: Sequence[_Branch]) -> _Branch:
    members = [i for branch in branches for i in branch.members]
    saved = sum(branch.saved for branch in branches)
    better = [branch for branch in branches if length * len(branch.members) > branch.saved]
    group = [i for branch in better for i in branch.members]
    gain = length * (len(group) - 1) - sum(branch.saved for branch in better)
    if length < _MIN_SHARED or len(group) < 2 or gain <= 0:
        return _Branch(members, [group for branch in branches for group in branch.groups], saved)
    kept = [own for branch in branches if branch not in better for own in branch.groups]
    return _Branch(members, [group, *kept], saved + gain)


def common_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common prefix."""
    first, last = min(prompts), max(prompts)
    for length, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return length
    return min(len(first), len(last))


def score(model: Any, questions: Sequence[Question], batch_size: int) -> list[list[float]]:
    """Natural log-probability of every choice of every question, in order, over the full vocabulary."""
    scores: list[list[float]] = [[] for _ in questions]
    with torch.inference_mode():
        for group in group_by_prefix(questions):
            members = [questions[i] for i in group]
            # At least one token of each prompt is left over: its logits score the choices' first tokens.
            shared = min(common_length([q.prompt for q in members]), min(len(q.prompt) for q in members) - 1)
            prefix = _read_prefix(model, members[0].prompt[:shared])
            for rows in cut_batches([_width(q, shared) for q in members], batch_size):
                batch = members[rows.start : rows.stop]
                for i, values in zip(rows, _score_batch(model, prefix, shared, batch), strict=True):
                    scores[group[i]] = values
    return scores


def cut_batches(widths: Sequence[int], batch_size: int) -> list[range]:
    """Ranges of rows to read together: at most ``batch_size`` rows, and at most ``batch_size * _ROW`` tokens.

    All rows of a batch are padded to the longest, and each has its own copy of the common prefix: without the second
    limit one long text would widen a whole batch.
    """
    batches, start, widest = [], 0, 0
    for i, width in enumerate(widths):
        widest = max(widest, width)
        rows = i + 1 - start
        if rows > 1 and (rows > batch_size or rows * widest > batch_size * _ROW):
            batches.append(range(start, i))
            start, widest = i, width
    return [*batches, range(start, len(widths))] if widths else []


def _width(question: Question, shared: int) -> int:
    """Tokens of a question's row: its prompt after the common prefix, and its choices without their last tokens."""
    return len(question.prompt) - shared + sum(len(choice) - 1 for choice in question.choices)


def _read_prefix(model: Any, tokens: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of the common prefix, one pair per layer, each (1, heads, tokens, width)."""
    if not tokens:
        return []
    cache = new_cache(model)
    model.base_model(input_ids=torch.tensor([tokens], device=model.device), past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _score_batch(
    model: Any, prefix: list[tuple[Tensor, Tensor]], shared: int, batch: Sequence[Question]
) -> list[list[float]]:
    device = model.device
    layouts = [_layout(q, shared) for q in batch]
    width = max(len(layout.tokens) for layout in layouts)
    rows = len(batch)
    ids = torch.zeros((rows, width), dtype=torch.long)
    positions = torch.zeros((rows, width), dtype=torch.long)
    allowed = torch.zeros((rows, 1, width, shared + width), dtype=torch.bool)
    allowed[..., :shared] = True
    for r, layout in enumerate(layouts):
        n = len(layout.tokens)
        ids[r, :n] = torch.tensor(layout.tokens)
        positions[r, :n] = torch.tensor(layout.positions)
        allowed[r, 0, :n, shared : shared + n] = layout.visible
        allowed[r, 0, n:, shared] = True  # padding attends to one token, or its softmax would be empty
    mask = torch.zeros(allowed.shape, dtype=model.dtype).masked_fill_(~allowed, torch.finfo(model.dtype).min)

    cache = new_cache(model)
    for layer, (keys, values) in zip(cache.layers, prefix, strict=False):
        layer.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
    hidden = model.base_model(
        input_ids=ids.to(device),
        position_ids=positions.to(device),
        attention_mask=mask.to(device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state

    where = [
        (r, position)
        for r, layout in enumerate(layouts)
        for position in sorted({p for steps in layout.steps for p, _ in steps})
    ]
    index = {place: i for i, place in enumerate(where)}
    picked = hidden[
        torch.tensor([r for r, _ in where], device=device), torch.tensor([p for _, p in where], device=device)
    ]
    logprobs = torch.log_softmax(model.get_output_embeddings()(picked).float(), dim=-1)
    return [
        [float(sum(logprobs[index[r, p], token] for p, token in steps)) for steps in layout.steps]
        for r, layout in enumerate(layouts)
    ]


@dataclass(frozen=True, slots=True)
class _Layout:
    """One row: the tokens after the common prefix, their positions, and what each attends to (``visible``).

    ``steps[choice]`` lists (index of the logits, token) for each token of a choice.
    """

    tokens: list[int]
    positions: list[int]
    visible: Tensor
    steps: list[list[tuple[int, int]]]


def _layout(question: Question, shared: int) -> _Layout:
    suffix = list(question.prompt[shared:])
    n = len(suffix)
    tokens, positions = list(suffix), list(range(shared, shared + n))
    steps: list[list[tuple[int, int]]] = []
    spans: list[tuple[int, int]] = []
    for choice in question.choices:
        start = len(tokens)
        # The last token of a choice is predicted, never read.
        tokens += choice[:-1]
        positions += range(shared + n, shared + n + len(choice) - 1)
        spans.append((start, len(tokens)))
        steps.append([(n - 1 if t == 0 else start + t - 1, token) for t, token in enumerate(choice)])
    visible = torch.zeros((len(tokens), len(tokens)), dtype=torch.bool)
    visible[:n, :n] = torch.ones((n, n), dtype=torch.bool).tril()
    for start, stop in spans:
        visible[start:stop, :n] = True
        visible[start:stop, start:stop] = torch.ones((stop - start, stop - start), dtype=torch.bool).tril()
    return _Layout(tokens, positions, visible, steps)
