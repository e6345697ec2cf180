"""The process of the pool for a model that runs in it: asks the ledger first, then the model."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa

from actors.ledger.handle import Ledger
from actors.teachers.answers import Answer, block_size, keep_leases, to_answer_table
from potstill.config import EmbeddedTeacher
from potstill.rows import Request, Response, from_table
from potstill.teacher import TeacherBackend


class TeacherActor:
    """One process of the pool: asks the ledger first, the model then."""

    def __init__(self, config: EmbeddedTeacher, ledger: Ledger, owner: str) -> None:
        from actors.backends.embedded import EmbeddedBackend

        self._backend: TeacherBackend = EmbeddedBackend(config)
        self._batch_size = config.batch_size
        self._ledger = ledger
        self._owner = owner
        keep_leases(ledger, owner)

    def ready(self) -> bool:
        """True once the model is loaded."""
        return True

    def answer_table(self, requests: pa.Table) -> pa.Table:
        """``answer`` for tables: ``REQUEST`` in, ``ANSWER`` out."""
        return to_answer_table(self.answer(from_table(requests, Request)))

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
            size = block_size(self._batch_size, any(request.choices for request in mine))
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
