"""The teacher pool: a few processes that ask the teacher, one ledger before them.

One pool serves all stages of a job; Ray Data feeds it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray

from actors import batch_teacher, http_teacher
from actors.batch_runner import BatchProgress
from actors.ledger import Ledger
from actors.ledger_batches import under_way
from actors.limiter import LimiterHandle
from actors.teacher import ANSWER, Answer, Ask, TeacherActor, block_size, to_answer_table
from potstill.errors import PotstillError, TeacherError
from potstill.rows import Request, to_table
from potstill.teachers import EmbeddedTeacher, OpenAITeacher, TeacherConfig

LOOK_UP = 5000  # requests looked up in the ledger together
MAX_RESTARTS = 3
LATE_S = 60.0  # after the first process is ready, how long the others are waited for
PATIENCE_S = 90.0  # between two words that nothing is ready yet
HTTP_BLOCK = 64  # requests of a batch for an endpoint: small, so that the last ones are spread
_RAISED = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*:")


# A process that dies (out of memory, a lost node) comes back under its owner's name: what it had committed is known
# then, what it had claimed is its own, and its calls are repeated.
_RESTARTED = {"max_restarts": MAX_RESTARTS, "max_task_retries": MAX_RESTARTS}


class TeacherPool:
    """All teacher processes of a job.

    ``ask`` streams a request table through Ray Data. Close it before training starts: the processes
    hold the CPUs or GPUs that the student needs.
    """

    def __init__(
        self, config: TeacherConfig, ledger: Ledger, warn: Callable[[str], None] = lambda message: None
    ) -> None:
        self._config = config
        self._warn = warn
        self._ledger = ledger
        self._owner = f"job-{uuid.uuid4().hex[:12]}"
        self._limiter: LimiterHandle | None = None
        self.actors: list[Any] = []
        self._collector: Any = None  # looks after batches, its own or an earlier run's

    def start(self) -> None:
        """Load the model in every process. Raises ``TeacherError`` with the model's own words.

        Processes that the cluster has no room for (another job holds it) are given up once the first has been
        ready for ``LATE_S``: two jobs that wait for each other's last GPU would wait for ever.
        """
        if self.actors:
            return
        self.actors = (
            self._make_http() if isinstance(self._config, OpenAITeacher) else self._make_embedded(self._config)
        )
        count = len(self.actors)
        waiting = {one.ready.remote(): one for one in self.actors}
        try:
            first = self._wait_for_room(list(waiting))
            late = ray.wait(list(waiting), num_returns=count, timeout=LATE_S)[1]
            ray.get([first, *(one for one in waiting if one not in late)])
        except ray.exceptions.RayActorError as error:
            self.close()
            raise TeacherError(cause(error)) from error
        for one in late:
            ray.kill(waiting[one])
            self.actors.remove(waiting[one])
        if late:
            self._warn(
                f"the cluster has room for {len(self.actors)} of {count} teacher processes now; going on with those"
            )

    def _make_embedded(self, config: EmbeddedTeacher) -> list[Any]:
        cluster = ray.cluster_resources()
        gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
        # Half a CPU, though each keeps a core busy: Ray Data's own tasks wait for a whole free one, the embedder for a trace.
        resources = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 0.49 if cpus > 1 else 0}
        count = config.actors or gpus or cpus
        environment = {"env_vars": {"OMP_NUM_THREADS": str(config.threads), "TOKENIZERS_PARALLELISM": "false"}}
        actor = ray.remote(TeacherActor).options(**resources, **_RESTARTED, runtime_env=environment, max_concurrency=1)
        return [actor.remote(config, self._ledger, f"{self._owner}-{i}") for i in range(count)]

    def _make_http(self) -> list[Any]:
        config = self._config
        assert isinstance(config, OpenAITeacher)
        if config.mode == "batch":
            self._limiter = LimiterHandle.start(batch_teacher.limits(config), self._owner)
            self._collector = self._make_batcher(config)
            return [self._collector]
        self._limiter = LimiterHandle.start(http_teacher.limits(config), self._owner)
        actor = ray.remote(http_teacher.HttpTeacherActor).options(**http_teacher.resources(), **_RESTARTED)
        owners = [f"{self._owner}-{i}" for i in range(http_teacher.count_processes(config))]
        actors = [actor.remote(config, self._ledger, owner, self._limiter) for owner in owners]
        self._collect_batches(config)
        return actors

    def _make_batcher(self, config: OpenAITeacher, submit: bool = True) -> Any:
        actor = ray.remote(batch_teacher.BatchTeacherActor).options(**batch_teacher.resources(), **_RESTARTED)
        return actor.remote(config, self._ledger, f"{self._owner}-batches", self._limiter, submit)

    def _collect_batches(self, config: OpenAITeacher) -> None:
        """What an earlier run has submitted is paid for: its answers are waited for, not bought again."""
        batches = under_way(self._ledger, config.provider, config.model)
        if not batches:
            return
        names = ", ".join(one.batch_id or one.batch_key for one in batches)
        self._warn(
            f"{sum(one.requests for one in batches):,} requests are in batches of an earlier run ({names}) and are not "
            "asked again before those end; to have them at once, cancel the batches at the endpoint"
        )
        self._collector = self._make_batcher(config, submit=False)
        try:
            ray.get(self._collector.ready.remote())
        except ray.exceptions.RayError as error:
            raise TeacherError(cause(error)) from error

    def batch_progress(self) -> BatchProgress | None:
        """How far batches are that are under way; ``None`` without any. May be called from another thread."""
        if self._collector is None:
            return None
        try:
            progress = ray.get(self._collector.progress.remote(), timeout=10.0)
        except ray.exceptions.RayError:
            return None
        return progress if progress.batches else None

    def _wait_for_room(self, ready: list[Any]) -> Any:
        """The first of ``ready`` that is there; says so when it takes long."""
        while True:
            there, _ = ray.wait(ready, num_returns=1, timeout=PATIENCE_S)
            if there:
                return there[0]
            free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
            self._warn(
                f"waiting for a teacher process: the model is loading, or other jobs hold the cluster (free: {free})"
            )

    def ask(self, requests: Sequence[Request], on_batch: Callable[[pa.Table], None] = lambda batch: None) -> pa.Table:
        """Answers (``ANSWER`` schema, any order); ``on_batch`` sees each batch as it comes."""
        answered = [ANSWER.empty_table()]
        missing = list(requests)
        for table in self._known(requests):
            on_batch(table)
            answered.append(table)
            found = set(table["request_id"].to_pylist())
            missing = [request for request in missing if request.request_id not in found]
        try:
            for table in self._stream(missing) if missing else ():
                on_batch(table)
                answered.append(table.cast(ANSWER))
        except ray.exceptions.RayError as error:
            done = sum(table.num_rows for table in answered)
            raise TeacherError(
                f"the teacher broke off: {cause(error)}; {done:,} of {len(requests):,} answers are here and what was "
                "answered since is in the ledger: the same command goes on from there"
            ) from error
        return pa.concat_tables(answered)

    def _known(self, requests: Sequence[Request]) -> Iterator[pa.Table]:
        """What the ledger holds, without loading a model: a job that runs again needs no teacher at all."""
        for start in range(0, len(requests), LOOK_UP):
            found = self._ledger.fetch([request.request_id for request in requests[start : start + LOOK_UP]])
            if found:
                yield to_answer_table([Answer(response, reused=True) for response in found])

    def _stream(self, requests: Sequence[Request]) -> Iterator[pa.Table]:
        import ray.data

        self.start()
        # Prompts that begin alike travel together: a backend reads their common beginning once.
        table = to_table(sorted(requests, key=lambda request: [one.content for one in request.messages]), Request)
        size, batches = self._batches(requests)
        blocks = [table.slice(start, size) for start in range(0, len(requests), size)]
        yield from (
            ray.data.from_arrow(blocks)
            .map_batches(
                Ask,
                fn_constructor_args=(self.actors,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0,  # it only waits; beside another job's pool there may be no CPU left for it
                max_restarts=0,  # it holds nothing; with restarts Ray prints a warning that nobody can act on
                compute=ray.data.ActorPoolStrategy(
                    size=1, max_tasks_in_flight_per_actor=batches, max_concurrent_calls_per_actor=batches
                ),
            )
            .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        )

    def _batches(self, requests: Sequence[Request]) -> tuple[int, int]:
        """Requests of a batch, and batches on their way at a time."""
        if isinstance(self._config, OpenAITeacher) and self._config.mode == "batch":
            return batch_teacher.BLOCK, batch_teacher.BLOCKS
        if isinstance(self._config, OpenAITeacher):
            # Twice what may be in flight, so that a slow request holds up no place.
            return HTTP_BLOCK, 2 + -(-2 * self._config.concurrency // HTTP_BLOCK)
        # Few requests are spread over all processes rather than filling the batches of one. Two batches a teacher: one
        # that it answers and one that waits at its door.
        size = min(block_size(self._config.batch_size, requests), -(-len(requests) // len(self.actors)))
        return size, 2 * len(self.actors)

    def close(self) -> None:
        """End the processes and give up what they had claimed."""
        if not self.actors:
            return
        for actor in {*self.actors, self._collector} - {None}:
            ray.kill(actor)
        self.actors, self._collector = [], None
        if self._limiter is not None:
            self._limiter.close()
            self._limiter = None
        self._ledger.release(self._owner)

    def __enter__(self) -> TeacherPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def cause(error: BaseException) -> str:
    """What was raised in the other process: the last line of its traceback, not Ray's words about it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    raised = [line for line in lines if _RAISED.match(line) and not line.startswith("ray.")]
    line = (raised or lines)[-1]
    for kind in PotstillError.__subclasses__():
        line = line.removeprefix(f"{kind.__module__}.{kind.__name__}: ")
    return line
