"""Hands many requests to the teachers through Ray Data, from files that every node sees.

The driver hands out a few requests itself, which starts at once. Many it would have to hold, and its pace would be the
bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import fsspec.core
import pyarrow as pa
import pyarrow.parquet as pq


class RequestFiles:
    """Tables kept as Parquet files in ``folder`` (an fsspec path) until the ``with`` block ends."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.rows = 0
        self._fs, self._root = fsspec.core.url_to_fs(folder)
        self._files = 0

    def write(self, table: pa.Table) -> None:
        """Write these rows to a new file."""
        self._fs.makedirs(self._root, exist_ok=True)
        with self._fs.open(f"{self._root}/{self._files:06}.parquet", "wb") as file:
            pq.write_table(table, file, compression="zstd")
        self._files += 1
        self.rows += table.num_rows

    def __enter__(self) -> RequestFiles:
        self._remove()
        return self

    def __exit__(self, *exc: object) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._fs.exists(self._root):
            self._fs.rm(self._root, recursive=True)


class Ask:
    """Mapped by Ray Data over batches of requests: hands each to the process with the fewest."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors
        self._in_flight = [0] * len(actors)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """The answers to a batch of requests."""
        index = min(range(len(self._actors)), key=self._in_flight.__getitem__)
        self._in_flight[index] += 1
        try:
            answers: pa.Table = await self._actors[index].answer_table.remote(batch)
        finally:
            self._in_flight[index] -= 1
        return answers


def ask_through_ray_data(folder: str, actors: Sequence[Any], size: int, batches: int) -> Iterator[pa.Table]:
    """Answers to the requests in ``folder``, asked in batches of ``size``, ``batches`` at a time.

    Ray Data bounds what waits between the steps, regardless of the number of requests.
    """
    import ray.data

    yield from (
        ray.data.read_parquet(folder, num_cpus=0)
        .repartition(target_num_rows_per_block=size)
        .map_batches(
            Ask,
            fn_constructor_args=(list(actors),),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,  # it only waits, and another job's pool may use all CPUs
            max_restarts=0,  # it has no state; with restarts Ray prints a warning
            compute=ray.data.ActorPoolStrategy(
                size=1, max_tasks_in_flight_per_actor=batches, max_concurrent_calls_per_actor=batches
            ),
        )
        .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
