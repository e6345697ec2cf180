"""The teacher pool: a few processes that hold the model, one ledger before them.

One pool serves all stages of a job. Ray Data feeds it (``Ask`` is the class it maps over batches), small
stages ask it directly. Nothing leaves an actor before the ledger has committed it.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from actors.ledger import Ledger
from potstill.config import EmbeddedTeacher
from potstill.errors import LedgerError, PotstillError, TeacherError
from potstill.rows import RESPONSE, Request, Response, from_table, to_table
from potstill.teacher import Teacher

RENEW_S = 20.0
_RAISED = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*:")
LOOK_UP = 5000  # requests looked up in the ledger together
CHOICES_PER_TEXT = 4  # scoring the choices of 4 questions takes about as long as writing one text
MAX_RESTARTS = 3
ANSWER = RESPONSE.append(pa.field("reused", pa.bool_()))


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, and whether the ledger had it (so that nothing was newly asked)."""

    response: Response
    reused: bool


class TeacherActor:
    """One process of the pool: asks the ledger first, the model then."""

    def __init__(self, config: EmbeddedTeacher, ledger: Ledger, owner: str) -> None:
        from actors.backends.embedded import EmbeddedBackend

        self._backend: Teacher = EmbeddedBackend(config)
        self._batch_size = config.batch_size
        self._ledger = ledger
        self._owner = owner
        threading.Thread(target=self._renew, daemon=True).start()

    def ready(self) -> bool:
        """True once the model is loaded."""
        return True

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the order of ``requests``; committed before they are returned."""
        answers: dict[str, Answer] = {}
        pending = {request.request_id: request for request in requests}
        while pending:
            taken = self._ledger.take(list(pending), self._owner)
            for response in taken.known:
                answers[response.request_id] = Answer(response, reused=True)
                pending.pop(response.request_id)
            mine = [pending.pop(name) for name in taken.mine]
            size = block_size(self._batch_size, mine)
            for start in range(0, len(mine), size):
                for response in self._ask(mine[start : start + size]):
                    answers[response.request_id] = Answer(response, reused=False)
            if pending and not mine:
                time.sleep(1.0)  # somebody else is asking these; their answers, or their leases' end, will come
        return [answers[request.request_id] for request in requests]

    def _ask(self, requests: Sequence[Request]) -> list[Response]:
        responses: list[Response] = []
        for ask, batch in (
            (self._backend.generate, [request for request in requests if not request.choices]),
            (self._backend.choose, [request for request in requests if request.choices]),
        ):
            if batch:
                responses += ask(batch)
        self._ledger.commit(requests, responses)
        return responses

    def _renew(self) -> None:
        while True:
            time.sleep(RENEW_S)
            # A lease that could not be renewed may be asked twice; a renewer that died loses all later ones.
            with contextlib.suppress(LedgerError, ray.exceptions.RayError):
                self._ledger.renew(self._owner)


def block_size(batch_size: int, requests: Sequence[Request]) -> int:
    """Requests that are handed over, and committed, together: choices cost little each, and what their prompts
    share is read once a block."""
    return batch_size * (CHOICES_PER_TEXT if any(request.choices for request in requests) else 1)


class Ask:
    """What Ray Data maps over batches of the request table: hands each batch to the idlest teacher."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors
        self._in_flight = [0] * len(actors)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """A batch of requests as a batch of responses with the column ``reused``."""
        index = min(range(len(self._actors)), key=self._in_flight.__getitem__)
        self._in_flight[index] += 1
        try:
            answers = await self._actors[index].answer.remote(from_table(batch, Request))
        finally:
            self._in_flight[index] -= 1
        return to_answer_table(answers)


def to_answer_table(answers: Sequence[Answer]) -> pa.Table:
    """Answers as a table of the ``ANSWER`` schema."""
    table = to_table([answer.response for answer in answers], Response)
    return table.append_column("reused", pa.array([answer.reused for answer in answers], pa.bool_())).cast(ANSWER)


class TeacherPool:
    """All teacher processes of a job.

    ``ask`` streams a request table through Ray Data. Close it before training starts: the processes
    hold the CPUs or GPUs that the student needs.
    """

    def __init__(self, config: EmbeddedTeacher, ledger: Ledger) -> None:
        self._config = config
        self._ledger = ledger
        self._owner = f"job-{uuid.uuid4().hex[:12]}"
        self.actors: list[Any] = []

    def start(self) -> None:
        """Load the model in every process. Raises ``TeacherError`` with the model's own words."""
        if self.actors:
            return
        cluster = ray.cluster_resources()
        gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
        # Half a CPU, though each keeps a core busy: Ray Data's own tasks wait for a whole free one.
        resources = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 0.5 if cpus > 1 else 0}
        count = self._config.actors or gpus or cpus
        environment = {"env_vars": {"OMP_NUM_THREADS": str(self._config.threads), "TOKENIZERS_PARALLELISM": "false"}}
        actor = ray.remote(TeacherActor).options(
            **resources,
            runtime_env=environment,
            max_concurrency=1,
            # A process that dies (out of memory, a lost node) comes back under its owner's name: what it had
            # committed is known then, what it had claimed is its own, and its calls are repeated.
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )
        self.actors = [actor.remote(self._config, self._ledger, f"{self._owner}-{i}") for i in range(count)]
        try:
            ray.get([actor.ready.remote() for actor in self.actors])
        except ray.exceptions.RayActorError as error:
            self.close()
            raise TeacherError(_cause(error)) from error

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
            raise TeacherError(
                f"the teacher's processes broke off: {_cause(error)}; the same command goes on"
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
        # Few requests are spread over all processes rather than filling the batches of one.
        size = min(block_size(self._config.batch_size, requests), -(-len(requests) // len(self.actors)))
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
                # Two batches a teacher: one that it answers and one that waits at its door.
                compute=ray.data.ActorPoolStrategy(
                    size=1,
                    max_tasks_in_flight_per_actor=2 * len(self.actors),
                    max_concurrent_calls_per_actor=2 * len(self.actors),
                ),
            )
            .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        )

    def close(self) -> None:
        """End the processes and give up what they had claimed."""
        if not self.actors:
            return
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []
        self._ledger.release(self._owner)

    def __enter__(self) -> TeacherPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _cause(error: BaseException) -> str:
    """What was raised in the other process: the last line of its traceback, not Ray's words about it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    raised = [line for line in lines if _RAISED.match(line) and not line.startswith("ray.")]
    line = (raised or lines)[-1]
    for kind in PotstillError.__subclasses__():
        line = line.removeprefix(f"{kind.__module__}.{kind.__name__}: ")
    return line
