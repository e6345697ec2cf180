"""The exchange of gradients between workers, where DeepSpeed leaves it to us (ZeRO stage 0)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist


class Exchange:
    """Sums the gradients of ``parameters`` over all workers, in one buffer that is kept from step to step.

    DeepSpeed would make a new buffer each step: on a CPU a third of a small student's step, most of it the kernel's
    handing out fresh pages. ``precision``: of what travels; bfloat16 halves the bytes, and what it rounds were sums of
    bfloat16 products before.
    """

    def __init__(self, parameters: Iterable[Any], workers: int, precision: str) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._workers = workers
        if workers == 1:
            return
        sizes = [parameter.numel() for parameter in self._parameters]
        self._buffer = torch.empty(sum(sizes), dtype=getattr(torch, precision), device=self._parameters[0].device)
        parts = self._buffer.split(sizes)
        self._views = [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]

    def __call__(self) -> None:
        """Every worker has to call it, after the last backward pass of a step."""
        if self._workers == 1:
            return
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters]
        torch._foreach_copy_(self._views, gradients)
        dist.all_reduce(self._buffer)
        torch._foreach_copy_(gradients, self._views)
