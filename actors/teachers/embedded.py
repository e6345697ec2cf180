"""Teacher processes that run a local model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from actors.ledger.handle import Ledger
from actors.teachers.answers import RESTARTED, Answer, PoolContext, TeacherActor, TeacherKind
from potstill.config import EmbeddedTeacher
from potstill.rows import Request, Response
from potstill.teacher import TeacherBackend

CHOICES_PER_TEXT = 4  # scoring the choices of 4 questions takes about as long as writing one text


class EmbeddedTeacherActor(TeacherActor):
    """Asks the model in blocks, each committed as a whole. Serves one call at a time."""

    def __init__(self, config: EmbeddedTeacher, ledger: Ledger, owner: str) -> None:
        from actors.backends.embedded import EmbeddedBackend

        self._backend: TeacherBackend = EmbeddedBackend(config)
        self._batch_size = config.batch_size
        super().__init__(ledger, owner)

    async def ready(self) -> None:
        """Returns once the model is loaded."""

    async def _ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        answers: list[Answer] = []
        size = block_size(self._batch_size, any(request.choices for request in requests))
        for start in range(0, len(requests), size):
            block = requests[start : start + size]
            texts = [request for request in block if not request.choices]
            choices = [request for request in block if request.choices]
            responses: list[Response] = []
            if texts:
                responses += self._backend.generate(texts)
            if choices:
                responses += self._backend.choose(choices)
            await self._ledger.acommit(block, responses)
            answers += [Answer(response, reused=False) for response in responses]
        return answers


def block_size(batch_size: int, choices: bool) -> int:
    """Requests that are handed over and committed together.

    Choices are cheap, and the prefix that their prompts share is read once per block.
    """
    return batch_size * (CHOICES_PER_TEXT if choices else 1)


class EmbeddedKind(TeacherKind):
    """One process per GPU, or per CPU if there are no GPUs."""

    def __init__(self, config: EmbeddedTeacher, pool: PoolContext) -> None:
        self._config, self._pool = config, pool

    def start(self) -> list[Any]:
        """Start the processes; each loads the model."""
        cluster = ray.cluster_resources()
        gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
        # Half a CPU although each keeps a core busy: what a stage starts beside the pool needs some too.
        resources = {"num_gpus": self._pool.gpus_each, "num_cpus": 0} if gpus else {"num_cpus": 0.49 if cpus > 1 else 0}
        environment = {"env_vars": {"OMP_NUM_THREADS": str(self._config.threads), "TOKENIZERS_PARALLELISM": "false"}}
        actor = ray.remote(EmbeddedTeacherActor).options(
            **resources, **RESTARTED, runtime_env=environment, max_concurrency=1
        )
        owners = [f"{self._pool.owner}-{i}" for i in range(self._config.actors or gpus or cpus)]
        return [actor.remote(self._config, self._pool.ledger, owner) for owner in owners]

    def batches(self, requests: pa.Table, processes: int) -> tuple[int, int]:
        """A few requests are spread over all processes. Each process answers one batch while another one waits."""
        choices = pc.max(pc.list_value_length(requests["choices"])).as_py() > 0
        size = min(block_size(self._config.batch_size, choices), -(-requests.num_rows // processes))
        return size, 2 * processes
