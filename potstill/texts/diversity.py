"""How different the texts of a set are from each other, measured on their sentence embeddings.

    remote_clique(embeddings)   # mean distance to all others: how far the set spreads
    chamfer(embeddings)         # mean distance to the nearest other: how much of it repeats itself

Definitions after Cox et al. (CHI 2021), used on generated texts by Li et al. (EMNLP 2023): higher is more diverse. The
distance is the cosine's, 1 - u.v of unit rows; a text is not held against itself. ``docs/measures.md`` explains both.

Both are exact. Remote Clique takes one pass, since the cosines of all pairs sum to the square of the rows' sum.
Chamfer needs all pairs: they come as blocks of a matrix product, each used for its rows and for its columns, so that
half of the products suffice and memory beside the data stays at some MiB a thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from potstill.errors import InputError, Problem

Floats = NDArray[np.float32]
Nearest = Callable[[NDArray[np.floating]], Floats]

BLOCK = 1024  # rows and columns of a block of cosines: 4 MiB, which a core's caches about hold
_SMALLEST = 1e-200  # square of a row that float64 still holds with all its digits


@dataclass(frozen=True, slots=True)
class Diversity:
    """Both measures of the texts of one class (``label``; ``None``: of all). ``None`` for fewer than two texts."""

    label: str | None
    texts: int
    remote_clique: float | None
    chamfer: float | None


def remote_clique(embeddings: NDArray[np.floating]) -> float:
    """Mean over rows of the mean cosine distance to the other rows, 0 to 2. ``embeddings``: (n >= 2, width).

    The closed form 1 - (|s|^2 - n) / (n (n - 1)), with s the sum of the unit rows. A row of zeros has no direction, so
    it is not counted in that n; its distance to every other is 1. Raises ``InputError`` for NaN, infinity or fewer
    than two rows.
    """
    check(embeddings)
    total, directions = np.zeros(embeddings.shape[1]), 0
    for start in range(0, len(embeddings), BLOCK):
        rows = embeddings[start : start + BLOCK].astype(np.float64)
        squares = _squares(rows)
        if squares.min() < _SMALLEST or squares.max() > 1.0 / _SMALLEST:
            rows = _unit(rows).astype(np.float64)
            squares = _squares(rows)
        lengths = np.sqrt(squares)
        total += np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0) @ rows
        directions += int(np.count_nonzero(lengths))
    n = len(embeddings)
    return float(1.0 - (total @ total - directions) / (n * (n - 1)))


def chamfer(embeddings: NDArray[np.floating], threads: int | None = None) -> float:
    """Mean over rows of the cosine distance to the nearest other row, 0 to 2. As ``nearest_distances``."""
    return float(nearest_distances(embeddings, threads).mean(dtype=np.float64))


def nearest_distances(embeddings: NDArray[np.floating], threads: int | None = None, block: int = BLOCK) -> Floats:
    """Each row's cosine distance to the nearest other row, (n,). ``embeddings``: (n >= 2, width), computed in float32.

    Exact to about 1e-6, by n^2/2 products; memory beside the data is ``4 * block^2`` bytes a thread and a few numbers a
    row. ``threads``: default what OMP_NUM_THREADS or the CPUs of this process allow. A row of zeros is at distance 1.
    Raises ``InputError`` for NaN, infinity or fewer than two rows.
    """
    check(embeddings)
    best = np.full(len(embeddings), -np.inf, dtype=np.float32)
    lock, scratch = threading.Lock(), threading.local()

    def compare(pair: tuple[int, int]) -> None:
        row, column = pair
        if not hasattr(scratch, "cosines"):
            scratch.cosines = np.empty((block, block), dtype=np.float32)
        of_rows, of_columns = block_maxima(embeddings, row, column, block, scratch.cosines)
        with lock:
            np.maximum(best[row : row + block], of_rows, out=best[row : row + block])
            np.maximum(best[column : column + block], of_columns, out=best[column : column + block])

    workers = threads or _threads()
    # A thread a block, each with a single-threaded product: the maxima are then computed in parallel as well.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(compare, block_pairs(len(embeddings), block)):
            pass
    return np.clip(1.0 - best, 0.0, 2.0)


def block_pairs(rows: int, block: int) -> Iterator[tuple[int, int]]:
    """First row and first column of every block on and above the diagonal of a square of ``rows``."""
    starts = range(0, rows, block)
    return ((row, column) for row in starts for column in starts if column >= row)


def block_maxima(
    embeddings: NDArray[np.floating], row: int, column: int, block: int, cosines: Floats | None = None
) -> tuple[Floats, Floats]:
    """The largest cosine of each row with the columns' rows, and of each column with the rows', a row with itself left
    out. ``cosines``: (block, block), overwritten."""
    left = _unit(np.asarray(embeddings[row : row + block], dtype=np.float32))
    right = left if row == column else _unit(np.asarray(embeddings[column : column + block], dtype=np.float32))
    out = None if cosines is None else cosines.reshape(-1)[: len(left) * len(right)].reshape(len(left), len(right))
    products = np.matmul(left, right.T, out=out)
    if row == column:
        np.fill_diagonal(products, -np.inf)
        maxima = products.max(axis=1)
        return maxima, maxima
    return products.max(axis=1), products.max(axis=0)


def by_class(
    embeddings: NDArray[np.floating], labels: Sequence[str], order: Sequence[str], nearest: Nearest = nearest_distances
) -> list[Diversity]:
    """Both measures over all rows, then within every class of ``order``. ``labels``: the class of each row.

    ``nearest`` computes each row's distance to the nearest other; another than ``nearest_distances`` may use a cluster.
    Raises ``InputError`` for labels outside ``order``, and for NaN or infinity.
    """
    if len(labels) != len(embeddings):
        raise ValueError(f"{len(embeddings)} embeddings, {len(labels)} labels")
    if unknown := sorted(set(labels) - set(order)):
        raise InputError(
            [Problem("labels", f"{', '.join(map(repr, unknown))} not among {', '.join(map(repr, order))}")]
        )
    of = np.asarray(labels)
    parts: list[tuple[str | None, NDArray[np.floating]]] = [(None, embeddings)]
    parts += [(label, embeddings[of == label]) for label in order]
    return [_measure(label, rows, nearest) for label, rows in parts]


def _measure(label: str | None, rows: NDArray[np.floating], nearest: Nearest) -> Diversity:
    if len(rows) < 2:
        return Diversity(label, len(rows), None, None)
    return Diversity(label, len(rows), remote_clique(rows), float(nearest(rows).mean(dtype=np.float64)))


def check(embeddings: NDArray[np.floating]) -> None:
    """Raise ``InputError`` unless there are two rows or more, all of finite numbers."""
    if embeddings.ndim != 2 or len(embeddings) < 2:
        message = f"have the shape {embeddings.shape}; a distance needs two rows or more of (texts, width)"
        raise InputError([Problem("embeddings", message)])
    for start in range(0, len(embeddings), BLOCK):
        finite = np.isfinite(embeddings[start : start + BLOCK]).all(axis=1)
        if not finite.all():
            message = f"row {start + int(finite.argmin())} holds NaN or infinity; embed that text again or leave it out"
            raise InputError([Problem("embeddings", message)])


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows of length 1; those of zeros stay. A copy unless they are of unit length already."""
    if rows.dtype == np.float32 and np.abs(_squares(rows) - 1.0).max() < 1e-6:
        return rows
    # Two steps, since the square of a very large or very small float32 is none.
    scale = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(scale > 0, scale, 1.0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _squares(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    with np.errstate(over="ignore", under="ignore"):
        return np.einsum("ij,ij->i", rows, rows)


def _threads() -> int:
    configured = os.environ.get("OMP_NUM_THREADS", "")
    return int(configured) if configured.isdigit() and int(configured) else len(os.sched_getaffinity(0))
