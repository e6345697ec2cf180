"""Worker processes that die before they are ready are retried a few times; no caller waits forever. No Ray."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.search_workers import MAX_LOST, Failed, SearchWorkers
from potstill.config.teacher import EmbeddedTeacher
from potstill.errors import StageError
from potstill.search.placement import Placement


class Process:
    """Stands in for a process: one that dies at its first call, or before it is ready."""

    def __init__(self, comes: bool, works: bool) -> None:
        self.ready = SimpleNamespace(remote=lambda: self._answer(comes))
        self.embed = SimpleNamespace(remote=lambda *arguments: self._answer(works))

    async def _answer(self, well: bool) -> str:
        await asyncio.sleep(0)
        if not well:
            raise RayActorError(error_msg="The actor died")
        return "done"


class FakeWorkers(SearchWorkers):
    """Starts ``processes`` one after another, and the last one repeatedly."""

    def __init__(self, *processes: Process) -> None:
        nothing: Any = None  # a ledger would look for its actor in Ray
        super().__init__(Placement(1, 1, 1, 0.8, 0.0), EmbeddedTeacher(), nothing, None)
        self._planned = list(processes)
        self.made = 0

    def _make(self, number: int) -> Any:
        self.made += 1
        return self._planned.pop(0) if len(self._planned) > 1 else self._planned[0]


async def embed(workers: FakeWorkers, times: int) -> list[Any]:
    await workers.start()
    asked = [asyncio.create_task(workers.embed([["a text"]])) for _ in range(times)]
    return await asyncio.wait_for(asyncio.gather(*asked), timeout=60)


def test_waiting_calls_fail_when_no_process_can_be_started() -> None:
    workers = FakeWorkers(Process(True, works=False), Process(False, works=True))
    answers = asyncio.run(embed(workers, times=3))
    assert workers.made == 1 + 1 + MAX_LOST
    for answer in answers:
        assert isinstance(answer, Failed)
        assert isinstance(answer.error, StageError)
        assert "can't be replaced: The actor died" in str(answer.error)


@pytest.mark.parametrize("deaths", [0, 1, MAX_LOST])
def test_a_process_that_dies_before_it_is_ready_is_replaced(deaths: int) -> None:
    dead = [Process(False, works=True)] * deaths
    workers = FakeWorkers(Process(True, works=False), *dead, Process(True, works=True))
    assert asyncio.run(embed(workers, times=3)) == ["done"] * 3
    assert workers.made == 2 + deaths
