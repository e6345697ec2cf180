"""The teacher pool: a few processes that ask the teacher, one ledger before them.

One pool serves all stages of a job. Requests come as a stream of tables and answers go as one; the driver hands
batches to the processes itself, so that it holds two tables and what is under way, however long the stream is.
"""

from __future__ import annotations

import itertools
import re
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, takewhile
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import ray

from actors.ledger.batch_book import under_way
from actors.ledger.handle import Ledger
from actors.ledger.tables import to_response_table
from actors.teachers import batch as batch_teacher
from actors.teachers import http as http_teacher
from actors.teachers.answers import ANSWER, block_size, to_known_table
from actors.teachers.batch_queue import BatchProgress
from actors.teachers.embedded import TeacherActor
from actors.teachers.limiter import LimiterHandle
from actors.teachers.ray_data import RequestFiles, ask_through_ray_data
from potstill.config.teacher import EmbeddedTeacher, OpenAITeacher, TeacherConfig
from potstill.endpoint.chat import Abilities
from potstill.errors import PotstillError, TeacherError
from potstill.limits.pacer import PacerState
from potstill.rows import Request, to_table

T = TypeVar("T")
LOOK_UP = 5000  # requests looked up in the ledger together
LARGE = 20_000  # requests to be asked from which on Ray Data hands them out
CHUNK = 10_000  # requests among which those whose prompts begin alike travel together; about 30 MB
MAX_RESTARTS = 3
LATE_S = 60.0  # after the first process is ready, how long the others are waited for
PATIENCE_S = 90.0  # between two words that nothing is ready yet
INTERRUPTED_S = 1.5  # that an interrupted job waits for what is on its way: half of what it has to end in
HTTP_BLOCK = 64  # requests of a batch for an endpoint: small, so that the last ones are spread
_RAISED = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*:")


# A process that dies (out of memory, a lost node) comes back under its owner's name: what it had committed is known
# then, what it had claimed is its own, and its calls are repeated.
_RESTARTED = {"max_restarts": MAX_RESTARTS, "max_task_retries": MAX_RESTARTS}


class TeacherPool:
    """All teacher processes of a job.

    ``stream`` takes requests and gives answers, table by table. Close it before training starts: the processes
    hold the CPUs or GPUs that the student needs. Left by an error, it waits for what is on its way to an endpoint,
    which is paid for; left by Ctrl-C, for ``INTERRUPTED_S`` at most. ``choices``: whether classes will be asked for.
    """

    def __init__(
        self,
        config: TeacherConfig,
        ledger: Ledger,
        warn: Callable[[str], None] = lambda message: None,
        *,
        gpus_each: float = 1.0,
        choices: bool = True,
    ) -> None:
        """``gpus_each``: of an embedded teacher's process, where there are GPUs."""
        self._gpus_each = gpus_each
        self._config = config
        self._choices = choices
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
        http = isinstance(self._config, OpenAITeacher) and self._config.mode == "realtime"
        first = self.actors[0].ready.remote(*((None, self._choices) if http else ()))
        # What the endpoint takes the first process finds out for all.
        found = (first,) if http else ()
        waiting = {first: self.actors[0], **{one.ready.remote(*found): one for one in self.actors[1:]}}
        try:
            there = self._wait_for_room(list(waiting))
            late = ray.wait(list(waiting), num_returns=count, timeout=LATE_S)[1]
            told = ray.get([there, *(one for one in waiting if one not in late)])[0]
        except ray.exceptions.RayError as error:
            self.close()
            raise TeacherError(cause(error)) from error
        for one in late:
            ray.kill(waiting[one])
            self.actors.remove(waiting[one])
        if late:
            self._warn(
                f"the cluster has room for {len(self.actors)} of {count} teacher processes now; going on with those"
            )
        if isinstance(told, Abilities) and not told.usage:
            self._warn(
                "the endpoint does not say how many tokens its replies take (usage): what they cost is not known, and "
                "teacher.budget_usd counts the most that each can cost"
            )

    def _make_embedded(self, config: EmbeddedTeacher) -> list[Any]:
        cluster = ray.cluster_resources()
        gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
        # Half a CPU, though each keeps a core busy: what a stage starts beside the pool finds some too.
        resources = {"num_gpus": self._gpus_each, "num_cpus": 0} if gpus else {"num_cpus": 0.49 if cpus > 1 else 0}
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
        owner = f"{self._owner}-batches"
        return actor.remote(config, self._ledger, owner, self._limiter, submit, choices=self._choices)

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

    def account(self) -> PacerState | None:
        """The limiter's; ``None`` where there is none. May be called from another thread."""
        limiter = self._limiter
        try:
            return limiter.state() if limiter is not None else None
        except TeacherError:
            return None

    def held_because(self) -> str | None:
        """What holds all requests back for a while; ``None`` if nothing does. May be called from another thread."""
        account = self.account()
        return account.held_because if account is not None else None

    def wind_down(self, reason: str, within_s: float | None = None) -> None:
        """Send nothing any more; what is on its way to an endpoint is waited for and kept.

        ``within_s``: at most so long; as long as a request may take by default.
        """
        config = self._config
        if not isinstance(config, OpenAITeacher) or config.mode == "batch" or not self.actors:
            return
        ray.wait(
            [one.stop.remote(reason) for one in self.actors],
            num_returns=len(self.actors),
            timeout=config.timeout_s if within_s is None else within_s,
        )

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

    def ask(self, requests: Iterable[Request], on_batch: Callable[[pa.Table], None] = lambda batch: None) -> pa.Table:
        """All answers to distinct requests as one table; ``on_batch`` sees each batch as it comes."""
        answered = [ANSWER.empty_table()]
        for table in self.stream(to_table(some, Request) for some in chunks(requests, CHUNK)):
            on_batch(table)
            answered.append(table)
        return pa.concat_tables(answered)

    def stream(self, requests: Iterable[pa.Table], folder: str | None = None) -> Generator[pa.Table, None, None]:
        """Answers (``ANSWER`` schema, any order) to tables of distinct requests, as they come.

        What the ledger holds needs no teacher: a job that runs again loads no model. ``folder``: an fsspec path that
        all nodes see and that may be overwritten; with it, more than ``LARGE`` requests that the ledger does not
        hold go through Ray Data. Raises ``TeacherError``.
        """
        done = 0
        try:
            for answers in self._answers(requests, folder):
                done += answers.num_rows
                yield answers
        except ray.exceptions.RayError as error:
            # What other batches have on its way is paid for.
            self.wind_down(cause(error))
            raise TeacherError(
                f"the teacher broke off: {cause(error)}; {done:,} answers are here and what was answered since is in "
                "the ledger: the same command goes on from there"
            ) from error

    def _answers(self, requests: Iterable[pa.Table], folder: str | None) -> Iterator[pa.Table]:
        calls, asked = _Calls(), 0
        looked_up = _ahead(requests, self._look_up)
        for known, missing in looked_up:
            if known.num_rows:
                yield known
            if not missing.num_rows:
                continue
            self.start()
            asked += missing.num_rows
            if folder is not None and asked > LARGE:
                yield from self._through_ray_data(itertools.chain([(known.slice(0, 0), missing)], looked_up), folder)
                break
            size, most = self._batches(missing)
            for batch in _cut(missing, size):
                while len(calls) >= most:
                    yield calls.take()
                calls.begin(self.actors, batch)
        while calls:
            yield calls.take()

    def _through_ray_data(
        self, looked_up: Iterable[tuple[pa.Table, pa.Table]], folder: str
    ) -> Generator[pa.Table, None, None]:
        with RequestFiles(folder) as spool:
            size, most = 1, 1
            for known, missing in looked_up:
                if known.num_rows:
                    yield known
                if missing.num_rows:
                    size, most = self._batches(missing)
                    spool.write(pa.concat_tables(_cut(missing, missing.num_rows)))
            yield from (answers.cast(ANSWER) for answers in ask_through_ray_data(spool.folder, self.actors, size, most))

    def _look_up(self, requests: pa.Table) -> tuple[pa.Table, pa.Table]:
        """What the ledger holds, and the requests that it has no answer to."""
        ids = requests["request_id"].to_pylist()
        rows = [
            row
            for start in range(0, len(ids), LOOK_UP)
            for row in self._ledger.fetch_rows(ids[start : start + LOOK_UP])
        ]
        known = to_known_table(to_response_table(rows))
        return known, requests.filter(pc.invert(pc.is_in(requests["request_id"], value_set=known["request_id"])))

    def _batches(self, requests: pa.Table) -> tuple[int, int]:
        """Requests of a batch, and batches on their way at a time."""
        if isinstance(self._config, OpenAITeacher) and self._config.mode == "batch":
            return batch_teacher.BLOCK, batch_teacher.BLOCKS
        if isinstance(self._config, OpenAITeacher):
            # Twice what may be in flight, so that a slow request holds up no place.
            return HTTP_BLOCK, 2 + -(-2 * self._config.concurrency // HTTP_BLOCK)
        # Few requests are spread over all processes rather than filling the batches of one. Two batches a teacher: one
        # that it answers and one that waits at its door.
        choices = pc.max(pc.list_value_length(requests["choices"])).as_py() > 0
        size = min(block_size(self._config.batch_size, choices), -(-requests.num_rows // len(self.actors)))
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

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is not None:
                interrupted = not issubclass(kind, Exception)
                self.wind_down("the job ends", INTERRUPTED_S if interrupted else None)
        finally:
            self.close()


class _Calls:
    """Batches that are with the teacher processes; each goes to the one with the fewest."""

    def __init__(self) -> None:
        self._under_way: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, actors: Sequence[Any], batch: pa.Table) -> None:
        """Hand ``batch`` to the idlest of ``actors``."""
        busy = list(self._under_way.values())
        idlest = min(actors, key=busy.count)
        self._under_way[idlest.answer_table.remote(batch)] = idlest

    def take(self) -> pa.Table:
        """The answers of the first batch that is ready. Raises what its process raised."""
        (ready,), _ = ray.wait(list(self._under_way), num_returns=1)
        del self._under_way[ready]
        return ray.get(ready).cast(ANSWER)


def _cut(requests: pa.Table, size: int) -> Iterator[pa.Table]:
    """Batches in which prompts that begin alike travel together: a backend reads their common beginning once."""
    prompts = iter(pc.struct_field(pc.list_flatten(requests["messages"]), "content").to_pylist())
    contents = [list(islice(prompts, count)) for count in pc.list_value_length(requests["messages"]).to_pylist()]
    order = sorted(range(len(contents)), key=contents.__getitem__)
    for start in range(0, len(order), size):
        # Taken, not sliced: a slice drags the whole table along to the other process.
        yield requests.take(order[start : start + size])


def _ahead(tables: Iterable[pa.Table], work: Callable[[pa.Table], T]) -> Iterator[T]:
    """``work`` of ``CHUNK`` rows at a time; the next is done in another thread while this one is used.

    ``tables`` is read there too; where this is closed early, not beyond the table that is being made.
    """
    over = threading.Event()
    coming = map(work, _gather(takewhile(lambda _: not over.is_set(), tables), CHUNK))
    with ThreadPoolExecutor(1) as thread:
        try:
            following = thread.submit(next, coming, None)
            while (done := following.result()) is not None:
                following = thread.submit(next, coming, None)
                yield done
        finally:
            over.set()


def _gather(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``rows`` or somewhat more, the last one shorter."""
    gathered: list[pa.Table] = []
    for table in tables:
        gathered.append(table)
        if sum(one.num_rows for one in gathered) >= rows:
            yield pa.concat_tables(gathered)
            gathered = []
    if gathered:
        yield pa.concat_tables(gathered)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def cause(error: BaseException) -> str:
    """What was raised in the other process: the last line of its traceback, not Ray's words about it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    raised = [line for line in lines if _RAISED.match(line) and not line.startswith("ray.")]
    line = (raised or lines)[-1]
    for kind in PotstillError.__subclasses__():
        line = line.removeprefix(f"{kind.__module__}.{kind.__name__}: ")
    return line
