"""Diversity of a set of texts, measured on their sentence embeddings.

    remote_clique(embeddings)   # mean distance to all others: the spread of the set
    chamfer(embeddings)         # mean distance to the nearest other: low if texts repeat

Defined by Cox et al. (CHI 2021) and applied to generated texts by Li et al. (EMNLP 2023); higher is more diverse. The
distance is cosine distance, 1 - u.v for unit rows, and excludes a text's distance to itself. See ``docs/measures.md``.

Both are exact. Remote Clique takes one pass, since the cosines of all pairs sum to the square of the rows' sum.
Chamfer needs all pairs, computed as blocks of a matrix product. Each block serves its rows and its columns, which halves
the work, and extra memory stays at a few MiB per thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from potstill import draws
from potstill.errors import InputError, Problem

Floats = NDArray[np.float32]

MEASURED = 20_000  # texts measured at most, in under a second
BLOCK = 1024  # rows and columns of a block of cosines: 4 MiB, about the size of a core's caches
_SMALLEST = 1e-200  # smallest squared row length that float64 holds at full precision


@dataclass(frozen=True, slots=True)
class Diversity:
    """Both measures for one class, or for all texts if ``label`` is None. A measure is None for fewer than two texts."""

    label: str | None
    texts: int
    remote_clique: float | None
    chamfer: float | None


def remote_clique(embeddings: NDArray[np.floating]) -> float:
    """Mean over rows of the mean cosine distance to the other rows, 0 to 2. ``embeddings``: (n >= 2, width).

    Computed as 1 - (|s|^2 - m) / (n (n - 1)), with s the sum of the unit rows and m the number of non-zero rows; a zero
    row has distance 1 to all others. Raises ``InputError`` for NaN, infinity or fewer than two rows.
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
    """Mean of ``nearest_distances``, 0 to 2."""
    return float(nearest_distances(embeddings, threads).mean(dtype=np.float64))


def nearest_distances(embeddings: NDArray[np.floating], threads: int | None = None, block: int = BLOCK) -> Floats:
    """Each row's cosine distance to the nearest other row, (n,). ``embeddings``: (n >= 2, width), computed in float32.

    Exact to about 1e-6, with n^2/2 products. Extra memory is ``4 * block^2`` bytes per thread and a few numbers per row.
    ``threads`` defaults to OMP_NUM_THREADS or the CPUs of this process. A zero row has distance 1. Raises ``InputError``
    for NaN, infinity or fewer than two rows.
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
    # One thread per block with a single-threaded product, so that the maxima are computed in parallel too.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(compare, block_pairs(len(embeddings), block)):
            pass
    return np.clip(1.0 - best, 0.0, 2.0)


def block_pairs(rows: int, block: int) -> Iterator[tuple[int, int]]:
    """First row and column of every block on or above the diagonal of a (rows, rows) matrix."""
    starts = range(0, rows, block)
    return ((row, column) for row in starts for column in starts if column >= row)


def block_maxima(
    embeddings: NDArray[np.floating], row: int, column: int, block: int, cosines: Floats | None = None
) -> tuple[Floats, Floats]:
    """The row-wise and column-wise maxima of one block of cosines, excluding each row with itself.

    ``cosines``: scratch space, (block, block).
    """
    left = _unit(np.asarray(embeddings[row : row + block], dtype=np.float32))
    right = left if row == column else _unit(np.asarray(embeddings[column : column + block], dtype=np.float32))
    out = None if cosines is None else cosines.reshape(-1)[: len(left) * len(right)].reshape(len(left), len(right))
    products = np.matmul(left, right.T, out=out)
    if row == column:
        np.fill_diagonal(products, -np.inf)
        maxima = products.max(axis=1)
        return maxima, maxima
    return products.max(axis=1), products.max(axis=0)


def by_class(embeddings: NDArray[np.floating], labels: Sequence[str], order: Sequence[str]) -> list[Diversity]:
    """Both measures over all rows, then within every class of ``order``. ``labels``: the class of each row.

    Raises ``InputError`` for labels outside ``order``, and for NaN or infinity.
    """
    if len(labels) != len(embeddings):
        raise ValueError(f"{len(embeddings)} embeddings, {len(labels)} labels")
    if unknown := sorted(set(labels) - set(order)):
        message = f"{', '.join(map(repr, unknown))} not among {', '.join(map(repr, order))}"
        raise InputError([Problem("labels", message)])
    of = np.asarray(labels)
    parts: list[tuple[str | None, NDArray[np.floating]]] = [(None, embeddings)]
    parts += [(label, embeddings[of == label]) for label in order]
    return [_measure(label, rows) for label, rows in parts]


def as_rows(
    embeddings: NDArray[np.floating], labels: Sequence[str], order: Sequence[str], seed: int = 0
) -> list[dict[str, Any]]:
    """``by_class`` as plain data, on a random sample of ``MEASURED`` texts if there are more."""
    drawn = draws.sample(range(len(labels)), MEASURED, seed, "diversity")
    measured = by_class(embeddings[drawn], [labels[i] for i in drawn], order)
    return [asdict(one) for one in measured]


def _measure(label: str | None, rows: NDArray[np.floating]) -> Diversity:
    if len(rows) < 2:
        return Diversity(label, len(rows), None, None)
    return Diversity(label, len(rows), remote_clique(rows), chamfer(rows))


def check(embeddings: NDArray[np.floating]) -> None:
    """Raise ``InputError`` unless there are at least two rows, all finite."""
    if embeddings.ndim != 2 or len(embeddings) < 2:
        message = f"shape {embeddings.shape}; distances need at least two rows of shape (texts, width)"
        raise InputError([Problem("embeddings", message)])
    for start in range(0, len(embeddings), BLOCK):
        finite = np.isfinite(embeddings[start : start + BLOCK]).all(axis=1)
        if not finite.all():
            message = f"row {start + int(finite.argmin())} contains NaN or infinity; embed that text again or remove it"
            raise InputError([Problem("embeddings", message)])


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows scaled to unit length; zero rows stay zero. Returns ``rows`` itself if they have unit length already."""
    if rows.dtype == np.float32 and np.abs(_squares(rows) - 1.0).max() < 1e-6:
        return rows
    # Scale by the maximum first, since squares of very large or small float32 values overflow or underflow.
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
