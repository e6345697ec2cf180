"""One limiter for the whole cluster: a named actor around a ``Pacer``, and the allowances that draw on it.

Spending outlives the actor: under a budget the accounts are written to a file before each grant, and a restarted actor
resumes from it. The file is on the driver's node, where the actor is pinned. Each report contains its sender's whole
account, so an exchange that is repeated after a restart neither counts twice nor forgets. The file also holds what is
known of the endpoint (rate, a pause asked for by Retry-After).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.teachers.allowance import Allowance
from potstill.errors import TeacherError
from potstill.limits.accounts import LEASE_S
from potstill.limits.breaker import BreakerSettings
from potstill.limits.pacer import Grant, HolderReport, Limits, Pacer, PacerState

MAX_RESTARTS = 20
WRITE_S = 1.0  # between writes if no budget is set


class Limiter:
    """The actor. Calls run one at a time."""

    def __init__(self, limits: Limits, breaker: BreakerSettings, folder: str, lease_s: float = LEASE_S) -> None:
        self._pacer = Pacer(limits, breaker, lease_s)
        self._has_budget = limits.budget_usd is not None
        self._file = Path(folder) / "limiter.json"
        self._written_at = self._now()
        self._held = False
        if self._file.exists():
            self._pacer.recall(json.loads(self._file.read_text()), self._now())

    def exchange(self, report: HolderReport) -> Grant:
        """Record a report and return the grant."""
        now = self._now()
        grant = self._pacer.exchange(report, now)
        if self._has_budget or grant.hold != self._held or now - self._written_at > WRITE_S:
            self._held, self._written_at = grant.hold, now
            beside = self._file.with_suffix(".new")
            beside.write_text(json.dumps(self._pacer.memo()))
            os.replace(beside, self._file)
        return grant

    def state(self) -> PacerState:
        """The state for a progress line."""
        return self._pacer.state(self._now())

    @staticmethod
    def _now() -> float:
        return time.monotonic()  # counts from the node's start, so it continues after a restart


@dataclass(frozen=True, slots=True)
class LimiterHandle:
    """The driver's handle on the limiter; cheap to send to the processes that send requests."""

    name: str
    actor: Any
    folder: str

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        # By name: Ray warns about every restartable actor that is passed another actor's handle.
        return _find, (self.name, self.folder)

    @classmethod
    def start(
        cls, limits: Limits, job: str, breaker: BreakerSettings | None = None, lease_s: float = LEASE_S
    ) -> LimiterHandle:
        """Start the limiter of ``job`` on this node. It ends with the job or with ``close``."""
        folder = tempfile.mkdtemp(prefix="potstill-limiter-")
        node, name = ray.get_runtime_context().get_node_id(), f"limiter-{job}"
        actor = (
            ray.remote(Limiter)
            .options(
                name=name,
                num_cpus=0,
                max_restarts=MAX_RESTARTS,
                max_task_retries=MAX_RESTARTS,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),  # where its file is
            )
            .remote(limits, breaker or BreakerSettings(), folder, lease_s)
        )
        return cls(name, actor, folder)

    def allowance(self, holder: str) -> Allowance:
        """An allowance for the running event loop. ``holder``: a name that no other process of the job has had."""
        return Allowance(self._exchange, holder)

    def _exchange(self, report: HolderReport) -> Awaitable[Grant]:
        return _ask(self.actor, report)

    def state(self) -> PacerState:
        """The state for a progress line. Raises ``TeacherError`` if the limiter is gone."""
        try:
            return ray.get(self.actor.state.remote())
        except ray.exceptions.RayError as error:
            raise TeacherError(_gone(error)) from error

    def close(self) -> None:
        """End the limiter. Close the allowances first."""
        ray.kill(self.actor)
        shutil.rmtree(self.folder, ignore_errors=True)


def _find(name: str, folder: str) -> LimiterHandle:
    return LimiterHandle(name, ray.get_actor(name), folder)


async def _ask(actor: Any, report: HolderReport) -> Grant:
    try:
        return await actor.exchange.remote(report)
    except ray.exceptions.RayError as error:
        raise TeacherError(_gone(error)) from error


def _gone(error: Exception) -> str:
    return f"the limiter's process can't be asked: {str(error).strip().splitlines()[-1]}"
