"""The teacher pool: a few processes that ask the teacher, behind one ledger.

One pool serves all stages of a job. Requests come in as a stream of tables and answers leave as one. The driver hands
batches to the processes itself, so it holds two tables and what is under way, however long the stream is.
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

from actors.ledger.handle import Ledger
from actors.ledger.tables import to_response_table
from actors.teachers.answers import ANSWER, PoolContext, TeacherKind, to_known_table
from actors.teachers.batch import BatchKind
from actors.teachers.batch_queue import BatchProgress
from actors.teachers.embedded import EmbeddedKind
from actors.teachers.http import HttpKind
from actors.teachers.ray_data import RequestFiles, ask_through_ray_data
from potstill.config.teacher import OpenAITeacher, TeacherConfig
from potstill.errors import PotstillError, TeacherError
from potstill.limits.pacer import PacerState
from potstill.rows import Request, to_table

T = TypeVar("T")
LOOK_UP = 5000  # requests per look-up in the ledger
LARGE = 20_000  # more unanswered requests than this go through Ray Data
CHUNK = 10_000  # requests among which those with a common prompt prefix are batched together; about 30 MB
LATE_S = 60.0  # wait for the other processes once the first one is ready
PATIENCE_S = 90.0  # between warnings that no process is ready yet
INTERRUPTED_S = 1.5  # for requests in flight after an interrupt; half of ``interrupt.DEADLINE_S``
_RAISED = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*:")


class TeacherPool:
    """All teacher processes of a job.

    ``stream`` turns requests into answers, table by table. Close the pool before training: its processes hold the CPUs
    or GPUs that the student needs. On an error it waits for requests in flight, which are paid for; on Ctrl-C at most
    ``INTERRUPTED_S``. ``choices``: whether classes will be asked for. ``gpus_each``: GPUs per process of an embedded
    teacher, if there are any.
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
        self._warn, self._ledger = warn, ledger
        self._owner = f"job-{uuid.uuid4().hex[:12]}"
        self._kind = _kind(config, PoolContext(ledger, self._owner, warn, choices, gpus_each))
        self.actors: list[Any] = []

    def start(self) -> None:
        """Start all processes. Raises ``TeacherError`` with the model's or the endpoint's message.

        Processes that the cluster has no room for (another job uses it) are given up once the first one has been ready
        for ``LATE_S``: otherwise two jobs could wait for each other's last GPU for ever.
        """
        if self.actors:
            return
        try:
            self.actors = self._kind.start()
            waiting = self._kind.ready(self.actors)
            first = self._wait_for_room(list(waiting))
            late = ray.wait(list(waiting), num_returns=len(waiting), timeout=LATE_S)[1]
            abilities = ray.get([first, *(one for one in waiting if one not in late)])[0]
        except ray.exceptions.RayError as error:
            self.close()
            raise TeacherError(cause(error)) from error
        for one in late:
            ray.kill(waiting[one])
            self.actors.remove(waiting[one])
        if late:
            self._warn(
                f"the cluster has room for {len(self.actors)} of {len(waiting)} teacher processes now; continuing with "
                "those"
            )
        if abilities is not None and not abilities.usage:
            self._warn(
                "the endpoint does not report tokens (usage): costs are unknown, and teacher.budget_usd counts the most "
                "that each request can cost"
            )

    def batch_progress(self) -> BatchProgress | None:
        """Progress of the batches under way; ``None`` if there are none. Can be called from another thread."""
        if self._kind.batcher is None:
            return None
        try:
            progress = ray.get(self._kind.batcher.progress.remote(), timeout=10.0)
        except ray.exceptions.RayError:
            return None
        return progress if progress.batches else None

    def account(self) -> PacerState | None:
        """The limiter's state; ``None`` without a limiter. Can be called from another thread."""
        limiter = self._kind.limiter
        try:
            return limiter.state() if limiter is not None else None
        except TeacherError:
            return None

    def held_because(self) -> str | None:
        """Why all requests are paused; ``None`` if they are not. Can be called from another thread."""
        account = self.account()
        return account.held_because if account is not None else None

    def wind_down(self, reason: str, within_s: float | None = None) -> None:
        """Send nothing more; requests in flight are waited for and kept.

        ``within_s``: the longest wait, by default as long as a request may take.
        """
        if self.actors:
            self._kind.stop(self.actors, reason, within_s)

    def _wait_for_room(self, ready: list[Any]) -> Any:
        """The first call of ``ready`` that has returned. Warns if that takes long."""
        while True:
            there, _ = ray.wait(ready, num_returns=1, timeout=PATIENCE_S)
            if there:
                return there[0]
            free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
            self._warn(
                f"waiting for a teacher process: the model is loading, or other jobs hold the cluster (free: {free})"
            )

    def ask(self, requests: Iterable[Request], on_batch: Callable[[pa.Table], None] = lambda batch: None) -> pa.Table:
        """All answers to distinct requests as one table. ``on_batch`` is called with each batch as it arrives."""
        answered = [ANSWER.empty_table()]
        for table in self.stream(to_table(some, Request) for some in chunks(requests, CHUNK)):
            on_batch(table)
            answered.append(table)
        return pa.concat_tables(answered)

    def stream(self, requests: Iterable[pa.Table], folder: str | None = None) -> Generator[pa.Table, None, None]:
        """Answers (``ANSWER`` schema, any order) to tables of distinct requests, as they arrive.

        The teacher starts at the first request that is not in the ledger: a repeated job loads no model. ``folder``: an
        fsspec path that all nodes see and that may be overwritten; with it, more than ``LARGE`` unanswered requests
        go through Ray Data. Raises ``TeacherError``.
        """
        done = 0
        try:
            for answers in self._answers(requests, folder):
                done += answers.num_rows
                yield answers
        except ray.exceptions.RayError as error:
            # Requests in flight in other batches are paid for.
            self.wind_down(cause(error))
            raise TeacherError(
                f"the teacher failed: {cause(error)}; {done:,} answers were returned, and later ones are in the ledger: "
                "the same command resumes from there"
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
            size, most = self._kind.batches(missing, len(self.actors))
            for batch in _cut(missing, size):
                while len(calls) >= most:
                    yield calls.take()
                calls.begin(self.actors, batch)
        while calls:
            yield calls.take()

    def _through_ray_data(
        self, looked_up: Iterable[tuple[pa.Table, pa.Table]], folder: str
    ) -> Generator[pa.Table, None, None]:
        with RequestFiles(folder) as files:
            size, most = 1, 1
            for known, missing in looked_up:
                if known.num_rows:
                    yield known
                if missing.num_rows:
                    size, most = self._kind.batches(missing, len(self.actors))
                    files.write(pa.concat_tables(_cut(missing, missing.num_rows)))
            yield from (answers.cast(ANSWER) for answers in ask_through_ray_data(files.folder, self.actors, size, most))

    def _look_up(self, requests: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The ledger's answers, and the requests that it has no answer to."""
        ids = requests["request_id"].to_pylist()
        rows = [
            row
            for start in range(0, len(ids), LOOK_UP)
            for row in self._ledger.fetch_rows(ids[start : start + LOOK_UP])
        ]
        known = to_known_table(to_response_table(rows))
        return known, requests.filter(pc.invert(pc.is_in(requests["request_id"], value_set=known["request_id"])))

    def close(self) -> None:
        """End the processes and release their claims."""
        kind, limiter = self._kind, self._kind.limiter
        for actor in {*self.actors, kind.batcher} - {None}:
            ray.kill(actor)
        if limiter is not None:
            limiter.close()
        if self.actors or limiter is not None:
            self._ledger.release(self._owner)
        self.actors, kind.batcher, kind.limiter = [], None, None

    def __enter__(self) -> TeacherPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is not None:
                interrupted = not issubclass(kind, Exception)
                self.wind_down("the job ends", INTERRUPTED_S if interrupted else None)
        finally:
            self.close()


def _kind(config: TeacherConfig, pool: PoolContext) -> TeacherKind:
    if isinstance(config, OpenAITeacher):
        return BatchKind(config, pool) if config.mode == "batch" else HttpKind(config, pool)
    return EmbeddedKind(config, pool)


class _Calls:
    """Batches under way; each goes to the process with the fewest."""

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
        """The answers of the first batch to finish. Raises what its process raised."""
        (ready,), _ = ray.wait(list(self._under_way), num_returns=1)
        del self._under_way[ready]
        return ray.get(ready).cast(ANSWER)


def _cut(requests: pa.Table, size: int) -> Iterator[pa.Table]:
    """Batches sorted by prompt: a backend reads the prefix that prompts of a batch share once."""
    prompts = iter(pc.struct_field(pc.list_flatten(requests["messages"]), "content").to_pylist())
    contents = [list(islice(prompts, count)) for count in pc.list_value_length(requests["messages"]).to_pylist()]
    order = sorted(range(len(contents)), key=contents.__getitem__)
    for start in range(0, len(order), size):
        # `take`, not `slice`: a slice is serialised with the whole table.
        yield requests.take(order[start : start + size])


def _ahead(tables: Iterable[pa.Table], work: Callable[[pa.Table], T]) -> Iterator[T]:
    """Apply ``work`` to ``CHUNK`` rows at a time, in a thread that is one chunk ahead of the caller.

    The thread reads ``tables`` too. Closed early, it reads no further than the table that it has begun.
    """
    closed = threading.Event()
    coming = map(work, _gather(takewhile(lambda _: not closed.is_set(), tables), CHUNK))
    with ThreadPoolExecutor(1) as thread:
        try:
            following = thread.submit(next, coming, None)
            while (done := following.result()) is not None:
                following = thread.submit(next, coming, None)
                yield done
        finally:
            closed.set()


def _gather(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Join tables until each has at least ``rows`` rows, except the last."""
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
    """What was raised in the other process: the last line of its traceback, without Ray's own text."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    raised = [line for line in lines if _RAISED.match(line) and not line.startswith("ray.")]
    line = (raised or lines)[-1]
    for kind in PotstillError.__subclasses__():
        line = line.removeprefix(f"{kind.__module__}.{kind.__name__}: ")
    return line
