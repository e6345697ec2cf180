"""Nearest neighbours of many rows, block by block over Ray Data: on every node's GPU or CPUs at once.

The rows lie in the object store once a node; what travels is a pair of block numbers there and two short rows of
maxima back. 100,000 rows of 384 on two cores fit one process as well (``potstill.texts.diversity``); this is for millions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from potstill.texts.diversity import block_maxima, block_pairs

BLOCK = 4096
ROW, COLUMN, OF_ROWS, OF_COLUMNS = "row", "column", "of_rows", "of_columns"


class BlockNearest:
    """Largest cosines of blocks of ``embeddings`` (n, width); an actor that Ray Data maps over pairs of blocks."""

    def __init__(self, embeddings: Any, block: int = BLOCK, device: str = "cpu") -> None:
        import ray

        self._embeddings = ray.get(embeddings) if isinstance(embeddings, ray.ObjectRef) else embeddings
        self._block, self._device = block, device
        self._cosines = None if device != "cpu" else np.empty((block, block), dtype=np.float32)

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """Maxima of every pair of blocks of ``pairs`` (columns ``row`` and ``column``: their first rows)."""
        found = [self._maxima(row, column) for row, column in zip(*pairs.to_pydict().values(), strict=True)]
        maxima = pa.list_(pa.float32())
        return pairs.append_column(OF_ROWS, pa.array([a for a, _ in found], maxima)).append_column(
            OF_COLUMNS, pa.array([b for _, b in found], maxima)
        )

    def _maxima(self, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
        if self._device == "cpu":
            return block_maxima(self._embeddings, row, column, self._block, self._cosines)
        import torch

        # In full float32: TF32 would be wrong in the fourth place, where near duplicates are told apart.
        torch.backends.cuda.matmul.allow_tf32 = False
        left, right = (
            torch.nn.functional.normalize(
                torch.from_numpy(np.array(self._embeddings[start : start + self._block], np.float32)).to(self._device),
                dim=1,
            )
            for start in (row, column)
        )
        cosines = left @ right.T
        if row == column:
            cosines.fill_diagonal_(-torch.inf)
        return cosines.amax(1).cpu().numpy(), cosines.amax(0).cpu().numpy()


def pair_table(rows: int, block: int = BLOCK) -> pa.Table:
    """All pairs of blocks to be compared, as the table that ``BlockNearest`` maps over."""
    pairs = list(block_pairs(rows, block))
    return pa.table({ROW: [row for row, _ in pairs], COLUMN: [column for _, column in pairs]})
