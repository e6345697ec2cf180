"""What the trials of a search share: one teacher pool with one limiter, and the processes that train.

    workshop = SearchWorkers.start(placement, config.teacher, ledger, log_dir)
    pool = SharedPool(workshop, config.teacher, ledger)      # in any process: as a TeacherPool
    ray.get(workshop.train.remote(job.to_json()))            # the next free process does it

The actor holds no texts: teachers are asked by the trials directly. Work for the training processes passes through,
as plain data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import torch_worker as bench
from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool, cause
from potstill.config.teacher import EmbeddedTeacher, TeacherConfig
from potstill.errors import PotstillError, StageError, TeacherError
from potstill.limits.pacer import PacerState
from potstill.search.placement import Placement

LATE_S = 60.0  # after the first training process is ready, how long the others are waited for
MOST_GROWN_MB = 2000.0  # of a training process since its first student
MAX_LOST = 3  # training processes that may die over one piece of work, or before one is ready
ANSWER_S = 5.0  # that the workshop has for what it only has to look up


@dataclass(frozen=True, slots=True)
class Failed:
    """An error of ours as a result: raised, Ray would wrap it in its own words."""

    error: PotstillError


class SearchWorkers:
    """The actor; start it with ``start_workshop``. Many calls at a time."""

    def __init__(self, placement: Placement, teacher: TeacherConfig, ledger: Ledger, log_dir: str | None) -> None:
        self._placement, self._log_dir = placement, log_dir
        if isinstance(teacher, EmbeddedTeacher) and placement.teachers:
            teacher = teacher.model_copy(update={"actors": placement.teachers})
        self._warnings: list[str] = []
        self._pool = TeacherPool(teacher, ledger, self._warnings.append, gpus_each=placement.teacher_gpus or 1.0)
        self._starting = asyncio.Lock()
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        self._benches: list[Any] = []
        self._replacing: set[asyncio.Task[None]] = set()
        self._coming = 0  # processes that are being replaced
        self._claims: dict[str, tuple[str, asyncio.Event]] = {}

    async def start(self) -> int:
        """Start the training processes; how many there are. They come before any teacher, which takes what is left."""
        count = self._placement.benches
        if self._benches or not count:
            return len(self._benches)
        made = [self._make(number) for number in range(count)]
        waiting = {asyncio.ensure_future(self._ready(one)): one for one in made}
        done, late = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if late:
            more, late = await asyncio.wait(late, timeout=LATE_S)
            done |= more
        for task in late:
            task.cancel()
            ray.kill(waiting[task])
        if late:
            self._warnings.append(f"the cluster has room for {len(done)} of {count} training processes now")
        for task in done:
            task.result()
        return len(self._benches)

    def _make(self, number: int) -> Any:
        variables = {**bench.VARIABLES, **({} if self._placement.gpus else bench.ON_CPU)}
        kind = ray.remote(bench.TorchWorker).options(
            num_cpus=self._placement.cpus, num_gpus=self._placement.gpus, runtime_env={"env_vars": variables}
        )
        return kind.remote(f"{self._log_dir}/{number}" if self._log_dir else None)

    async def _ready(self, one: Any) -> None:
        await one.ready.remote()
        self._benches.append(one)
        self._free.put_nowait(one)

    async def teachers(self) -> list[Any] | Failed:
        """The pool's processes, started when they are first needed."""
        async with self._starting:
            try:
                await asyncio.to_thread(self._pool.start)
            except PotstillError as error:
                return Failed(error)
            return self._pool.actors

    async def embed(self, groups: Sequence[Sequence[str]]) -> Any:
        """See ``Bench.embed``."""
        return await self._do("embed", groups)

    async def train(self, job: Mapping[str, Any]) -> Any:
        """See ``Bench.train``."""
        return await self._do("train", job)

    async def predict(self, *arguments: Any) -> Any:
        """See ``Bench.predict``."""
        return await self._do("predict", *arguments)

    async def claim(self, key: str, owner: str) -> None:
        """Wait until nobody else works on ``key``, and take it: two points may have a rung in common."""
        while key in self._claims and self._claims[key][0] != owner:
            await self._claims[key][1].wait()
        self._claims.setdefault(key, (owner, asyncio.Event()))

    async def release(self, owner: str) -> None:
        """Give up all claims of ``owner``, who may have died."""
        for key in [key for key, (holder, _) in self._claims.items() if holder == owner]:
            self._claims.pop(key)[1].set()

    async def warnings(self) -> list[str]:
        """What the user should hear, since the last call."""
        told, self._warnings[:] = list(self._warnings), []
        return told

    async def account(self) -> PacerState | None:
        """What this run's requests cost so far; ``None`` where no teacher was started, or none has a limiter."""
        return await asyncio.to_thread(self._pool.account)

    async def close(self) -> PacerState | None:
        """End all processes and give up what was claimed; the last account."""
        for one in self._pool.actors:
            ray.kill(one)  # from here on the account stays as it is
        account = await self.account()
        await asyncio.to_thread(self._pool.close)
        for one in self._benches:
            ray.kill(one)
        self._benches = []
        return account

    async def _do(self, what: str, *arguments: Any) -> Any:
        """The result of the next free process. Where that one dies, with its node for instance, another does it."""
        for last_try in (False,) * MAX_LOST + (True,):
            one = await self._free.get()
            if isinstance(one, Failed):
                self._free.put_nowait(one)  # for the next who waits
                return one
            try:
                result = await getattr(one, what).remote(*arguments)
            except ray.exceptions.RayTaskError as error:
                self._free.put_nowait(one)
                if isinstance(error.cause, PotstillError):
                    return Failed(error.cause)
                raise
            except ray.exceptions.RayActorError:
                self._replace(one)
                if last_try:
                    raise
                continue
            if what == "train" and await self._has_grown(one):
                ray.kill(one)
                self._replace(one)
            else:
                self._free.put_nowait(one)
            return result
        raise AssertionError("unreachable")

    def _replace(self, one: Any) -> None:
        """Another process for one that is gone."""
        self._benches.remove(one)
        self._coming += 1
        task = asyncio.create_task(self._restore())
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _restore(self) -> None:
        """Start a process, which may die before it is ready. Where it was the last one, whoever waits is told."""
        gone = "a training process is gone and could not be replaced"
        try:
            for _ in range(1 + MAX_LOST):
                try:
                    return await self._ready(self._make(len(self._benches)))
                except ray.exceptions.RayError as error:
                    gone = f"a training process is gone and can't be replaced: {cause(error)}"
            self._warnings.append(gone)
        finally:
            self._coming -= 1
            if not self._benches and not self._coming:
                self._free.put_nowait(Failed(StageError(gone)))

    async def _has_grown(self, one: Any) -> bool:
        """Whether a process holds on to too much memory; a new one costs less than a node without any."""
        try:
            return bool(await one.grown_mb.remote() > MOST_GROWN_MB)
        except ray.exceptions.RayActorError:
            return True


def start_workshop(placement: Placement, teacher: TeacherConfig, ledger: Ledger, log_dir: str | None) -> Any:
    """The actor, its training processes being started."""
    # On the driver's node: a search ends with that one anyhow. It asks for no CPU, which a head node may not have.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind = ray.remote(SearchWorkers).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
    return kind.remote(placement, teacher, ledger, log_dir)


def account_of(workshop: Any) -> PacerState | None:
    """``SearchWorkers.account``; ``None`` also where the workshop doesn't answer."""
    try:
        found: PacerState | None = ray.get(workshop.account.remote(), timeout=ANSWER_S)
    except ray.exceptions.RayError:
        return None
    return found


def fetch(answer: Any) -> Any:
    """The result of a call to the workshop. Raises what was raised there."""
    result = ray.get(answer)
    if isinstance(result, Failed):
        raise result.error
    return result


class SharedPool(TeacherPool):
    """The workshop's pool, in another process: the same teachers, the same limiter, and nothing of it to close."""

    def __init__(self, workshop: Any, teacher: TeacherConfig, ledger: Ledger) -> None:
        super().__init__(teacher, ledger)
        self._workshop = workshop

    def start(self) -> None:
        """Ask the workshop for its teachers. Raises ``TeacherError``."""
        if self.actors:
            return
        try:
            self.actors = fetch(self._workshop.teachers.remote())
        except ray.exceptions.RayError as error:
            raise TeacherError(cause(error)) from error

    def wind_down(self, reason: str, within_s: float | None = None) -> None:
        """A trial that fails is not the end of the others."""

    def close(self) -> None:
        """Others still ask these teachers."""
        self.actors = []
