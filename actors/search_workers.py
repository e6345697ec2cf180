"""What the trials of a search share: one teacher pool with one limiter, and the training processes.

    workers = start_search_workers(placement, config.teacher, ledger, log_dir)
    pool = SharedPool(workers, config.teacher, ledger)       # in any process: as a TeacherPool
    ray.get(workers.train.remote(job.to_json()))             # runs in the next free process

The actor holds no texts: trials call the teachers directly. Work for the training processes passes through it as plain
data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool, cause
from actors.torch_worker import ON_CPU, VARIABLES, TorchWorker
from potstill.config.teacher import EmbeddedTeacher, TeacherConfig
from potstill.errors import PotstillError, StageError, TeacherError
from potstill.limits.pacer import PacerState
from potstill.search.placement import Placement

LATE_S = 60.0  # wait for the other training processes once the first one is ready
MOST_GROWN_MB = 2000.0  # memory growth of a training process since its first student
MAX_LOST = 3  # training processes that may die during one call, or before one is ready
ANSWER_S = 5.0  # timeout of calls that only look something up


@dataclass(frozen=True, slots=True)
class Failed:
    """An error of ours, returned as a result: Ray would wrap a raised one in its own text."""

    error: PotstillError


class SearchWorkers:
    """The actor; start it with ``start_search_workers``. It serves many calls at a time."""

    def __init__(self, placement: Placement, teacher: TeacherConfig, ledger: Ledger, log_dir: str | None) -> None:
        self._placement, self._log_dir = placement, log_dir
        if isinstance(teacher, EmbeddedTeacher) and placement.teachers:
            teacher = teacher.model_copy(update={"actors": placement.teachers})
        self._warnings: list[str] = []
        self._pool = TeacherPool(teacher, ledger, self._warnings.append, gpus_each=placement.teacher_gpus or 1.0)
        self._starting = asyncio.Lock()
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        self._processes: list[Any] = []
        self._replacing: set[asyncio.Task[None]] = set()
        self._coming = 0  # processes that are being replaced
        self._claims: dict[str, tuple[str, asyncio.Event]] = {}

    async def start(self) -> int:
        """Start the training processes and return their number. Teachers start later, in what is left of the cluster."""
        count = self._placement.torch_workers
        if self._processes or not count:
            return len(self._processes)
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
        return len(self._processes)

    def _make(self, number: int) -> Any:
        variables = {**VARIABLES, **({} if self._placement.gpus else ON_CPU)}
        kind = ray.remote(TorchWorker).options(
            num_cpus=self._placement.cpus, num_gpus=self._placement.gpus, runtime_env={"env_vars": variables}
        )
        return kind.remote(f"{self._log_dir}/{number}" if self._log_dir else None)

    async def _ready(self, one: Any) -> None:
        await one.ready.remote()
        self._processes.append(one)
        self._free.put_nowait(one)

    async def teachers(self) -> list[Any] | Failed:
        """The pool's processes, started on the first call."""
        async with self._starting:
            try:
                await asyncio.to_thread(self._pool.start)
            except PotstillError as error:
                return Failed(error)
            return self._pool.actors

    async def embed(self, groups: Sequence[Sequence[str]]) -> Any:
        """See ``TorchWorker.embed``."""
        return await self._do("embed", groups)

    async def train(self, job: Mapping[str, Any]) -> Any:
        """See ``TorchWorker.train``."""
        return await self._do("train", job)

    async def predict(self, *arguments: Any) -> Any:
        """See ``TorchWorker.predict``."""
        return await self._do("predict", *arguments)

    async def claim(self, key: str, owner: str) -> None:
        """Claim ``key``, waiting until no other owner has it: two points may share a rung."""
        while key in self._claims and self._claims[key][0] != owner:
            await self._claims[key][1].wait()
        self._claims.setdefault(key, (owner, asyncio.Event()))

    async def release(self, owner: str) -> None:
        """Release all claims of ``owner``, which may have died."""
        for key in [key for key, (holder, _) in self._claims.items() if holder == owner]:
            self._claims.pop(key)[1].set()

    async def warnings(self) -> list[str]:
        """Warnings for the user since the last call."""
        new, self._warnings[:] = list(self._warnings), []
        return new

    async def account(self) -> PacerState | None:
        """What this run's requests have cost; ``None`` if no teacher was started or it has no limiter."""
        return await asyncio.to_thread(self._pool.account)

    async def close(self) -> PacerState | None:
        """End all processes, release all claims, and return the last account."""
        for one in self._pool.actors:
            ray.kill(one)  # so that the account no longer changes
        account = await self.account()
        await asyncio.to_thread(self._pool.close)
        for one in self._processes:
            ray.kill(one)
        self._processes = []
        return account

    async def _do(self, what: str, *arguments: Any) -> Any:
        """The result of the next free process. If it dies (say, with its node), another one takes the call."""
        for last_try in (False,) * MAX_LOST + (True,):
            one = await self._free.get()
            if isinstance(one, Failed):
                self._free.put_nowait(one)  # for the next caller
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
        """Start a process in place of one that died."""
        self._processes.remove(one)
        self._coming += 1
        task = asyncio.create_task(self._restore())
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _restore(self) -> None:
        """Start a process, which may die before it is ready. If none is left, all waiting calls fail."""
        lost = "a training process died and could not be replaced"
        try:
            for _ in range(1 + MAX_LOST):
                try:
                    return await self._ready(self._make(len(self._processes)))
                except ray.exceptions.RayError as error:
                    lost = f"a training process died and can't be replaced: {cause(error)}"
            self._warnings.append(lost)
        finally:
            self._coming -= 1
            if not self._processes and not self._coming:
                self._free.put_nowait(Failed(StageError(lost)))

    async def _has_grown(self, one: Any) -> bool:
        """Whether a process keeps too much memory. Restarting it costs less than a node that runs out."""
        try:
            return bool(await one.grown_mb.remote() > MOST_GROWN_MB)
        except ray.exceptions.RayActorError:
            return True


def start_search_workers(placement: Placement, teacher: TeacherConfig, ledger: Ledger, log_dir: str | None) -> Any:
    """Start the actor on this node; its method ``start`` starts the training processes."""
    # On the driver's node: a search ends with it anyway. It needs no CPU, which a head node may not offer.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind = ray.remote(SearchWorkers).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
    return kind.remote(placement, teacher, ledger, log_dir)


def account_of(workers: Any) -> PacerState | None:
    """``SearchWorkers.account``; ``None`` also if the actor does not reply."""
    try:
        found: PacerState | None = ray.get(workers.account.remote(), timeout=ANSWER_S)
    except ray.exceptions.RayError:
        return None
    return found


def fetch(answer: Any) -> Any:
    """The result of a call to the actor. Raises what was raised there."""
    result = ray.get(answer)
    if isinstance(result, Failed):
        raise result.error
    return result


class SharedPool(TeacherPool):
    """The actor's pool as seen from another process: the same teachers and limiter. Its owner closes it."""

    def __init__(self, workers: Any, teacher: TeacherConfig, ledger: Ledger) -> None:
        super().__init__(teacher, ledger)
        self._workers = workers

    def start(self) -> None:
        """Get the teachers from the actor. Raises ``TeacherError``."""
        if self.actors:
            return
        try:
            self.actors = fetch(self._workers.teachers.remote())
        except ray.exceptions.RayError as error:
            raise TeacherError(cause(error)) from error

    def wind_down(self, reason: str, within_s: float | None = None) -> None:
        """No-op: other trials still use the pool."""

    def close(self) -> None:
        """Forget the teachers, which other trials still use."""
        self.actors = []
