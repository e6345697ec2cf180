"""The workers of a fit as seen by one of them: rank, size, device and collective calls."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from potstill.errors import PotstillError, StageError

Result = TypeVar("Result")


@dataclass(frozen=True)
class ProcessGroup:
    """``rank`` of this process among ``size``; ``device`` is its torch device."""

    rank: int
    size: int
    device: Any

    @classmethod
    def join(cls, kind: str, threads: int) -> ProcessGroup:
        """The process group that Ray Train made, or a new one of this process only.

        ``kind``: cpu or cuda; ``threads``: CPU threads of this process. Raises ``StageError`` without a GPU.
        """
        import torch
        import torch.distributed as dist

        os.environ.setdefault("LOCAL_RANK", "0")
        if kind == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
            torch.set_num_threads(threads)
        elif not torch.cuda.is_available():
            raise StageError(f"device {kind!r} was asked for, but torch sees no GPU in this process")
        if not dist.is_initialized():
            backend = "gloo" if kind == "cpu" else "nccl"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        device = torch.device(kind, int(os.environ["LOCAL_RANK"]) if kind == "cuda" else None)
        if kind == "cuda":
            torch.cuda.set_device(device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def first_on_node(self) -> bool:
        """Whether this process does the work that is needed once per node."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def agree(self, value: Any) -> Any:
        """Rank 0's ``value`` on every rank."""
        import torch.distributed as dist

        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The ``value`` of every rank, on every rank."""
        import torch.distributed as dist

        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], Result]) -> Result:
        """The result of ``work`` on this rank. An error on any rank is raised on all: the others would wait for ever."""
        value, error = None, None
        try:
            value = work()
        except PotstillError as raised:
            error = raised
        for found in self.gather(error):
            if found is not None:
                raise found
        return cast(Result, value)

    def total(self, values: Any) -> list[float]:
        """The sum over ranks of a tensor, element by element."""
        import torch.distributed as dist

        if self.size > 1:
            dist.all_reduce(values)
        return values.tolist()
