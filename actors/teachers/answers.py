"""One process of the teacher pool for a model of its own, and what every kind of process has in common.

Nothing leaves a process before the ledger has committed it. The pool is in ``actors/teachers/pool.py``, the process for a
teacher behind HTTP in ``actors/teachers/http.py``.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray

from actors.ledger.handle import Ledger
from potstill.errors import LedgerError
from potstill.rows import RESPONSE, Response, to_table

RENEWALS = 3  # in the time of a lease: two may fail
CHOICES_PER_TEXT = 4  # scoring the choices of 4 questions takes about as long as writing one text
ANSWER = RESPONSE.append(pa.field("reused", pa.bool_())).append(pa.field("retries", pa.int32()))


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, whether the ledger had it (so that nothing was newly asked), and how often it was asked again."""

    response: Response
    reused: bool
    retries: int = 0


def keep_leases(ledger: Ledger, owner: str) -> None:
    """Renew the leases of ``owner`` as long as this process lives."""

    def renew() -> None:
        while True:
            time.sleep(ledger.lease_s / RENEWALS)
            # A lease that could not be renewed may be asked twice; a renewer that died loses all later ones.
            with contextlib.suppress(LedgerError, ray.exceptions.RayError):
                ledger.renew(owner)

    threading.Thread(target=renew, daemon=True).start()


def block_size(batch_size: int, choices: bool) -> int:
    """Requests that are handed over, and committed, together: choices cost little each, and what their prompts
    share is read once a block."""
    return batch_size * (CHOICES_PER_TEXT if choices else 1)


def to_answer_table(answers: Sequence[Answer]) -> pa.Table:
    """Answers as a table of the ``ANSWER`` schema."""
    table = to_table([answer.response for answer in answers], Response)
    table = table.append_column("reused", pa.array([answer.reused for answer in answers], pa.bool_()))
    return table.append_column("retries", pa.array([answer.retries for answer in answers], pa.int32())).cast(ANSWER)


def to_known_table(responses: pa.Table) -> pa.Table:
    """Responses that the ledger had, as a table of the ``ANSWER`` schema."""
    table = responses.append_column("reused", pa.repeat(True, responses.num_rows))
    return table.append_column("retries", pa.repeat(0, responses.num_rows)).cast(ANSWER)
