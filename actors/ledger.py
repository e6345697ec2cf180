"""One ledger for the whole cluster: a named actor that owns the store, and how to find it.

SQLite takes one writing machine, so a detached actor on the node of the file owns it and every job and
node of the cluster talks to that actor. Its name holds the schema version and the URI: after an edit of
the code a new version starts beside an old one, and both are safe since claims live in the database.
It ends by itself when nobody has asked for ``IDLE_S``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.ledger_store import SCHEMA_VERSION, LedgerStore, Taken, redact
from potstill.draws import digest
from potstill.errors import LedgerError
from potstill.rows import Request, Response

NAMESPACE = "potstill"
IDLE_S = 300.0
TRIES = 5


class LedgerActor:
    """A ``LedgerStore`` in a process of its own; calls run one after another."""

    def __init__(self, uri: str, idle_s: float = IDLE_S) -> None:
        self._store = LedgerStore(uri)
        self._last_call = time.monotonic()
        threading.Thread(target=self._end_when_idle, args=(idle_s,), daemon=True).start()

    def call(self, method: str, *args: Any) -> Any:
        """Run a method of the store."""
        self._last_call = time.monotonic()
        return getattr(self._store, method)(*args)

    def _end_when_idle(self, idle_s: float) -> None:
        while time.monotonic() - self._last_call < idle_s:
            time.sleep(min(5.0, idle_s / 4))
        # A caller that meets the dying actor starts a new one (Ledger.call).
        ray.kill(ray.get_runtime_context().current_actor)


class Ledger:
    """A handle on the ledger that survives the owning actor's end. Cheap to send to other processes."""

    def __init__(self, uri: str, node_id: str | None = None, idle_s: float = IDLE_S) -> None:
        self.uri = uri
        self._idle_s = idle_s
        self._node_id = node_id or ray.get_runtime_context().get_node_id()
        self._actor: Any = None

    def __reduce__(self) -> tuple[type, tuple[str, str, float]]:
        return Ledger, (self.uri, self._node_id, self._idle_s)

    def take(self, request_ids: Sequence[str], owner: str) -> Taken:
        """See ``LedgerStore.take``."""
        return self.call("take", list(request_ids), owner)

    def commit(self, requests: Sequence[Request], responses: Sequence[Response]) -> None:
        """See ``LedgerStore.commit``."""
        self.call("commit", list(requests), list(responses))

    def fetch(self, request_ids: Sequence[str]) -> list[Response]:
        """See ``LedgerStore.fetch``."""
        return self.call("fetch", list(request_ids))

    def count_known(self, request_ids: Sequence[str]) -> int:
        """See ``LedgerStore.count_known``."""
        return self.call("count_known", list(request_ids))

    def renew(self, owner: str) -> None:
        """See ``LedgerStore.renew``."""
        self.call("renew", owner)

    def release(self, owner: str) -> None:
        """See ``LedgerStore.release``."""
        self.call("release", owner)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the store; a dead owner is replaced, and every method is safe to repeat."""
        for attempt in range(TRIES):
            # A variable of this call: another thread may drop the handle it finds dead.
            actor = self._actor or self._find()
            self._actor = actor
            try:
                return ray.get(actor.call.remote(method, *args))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError) as error:
                self._actor = None
                message = _last_line(str(error))
                if "LedgerError" in str(error):
                    raise LedgerError(message) from error
                time.sleep(0.2 * 2**attempt)
        raise LedgerError(f"ledger.uri = {redact(self.uri)!r}: its process dies again and again: {message}")

    def _find(self) -> Any:
        return (
            ray.remote(LedgerActor)
            .options(
                name=f"ledger-v{SCHEMA_VERSION}-{digest(self.uri, size=6)}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                # In soft mode another node would open a file of its own if this node went away.
                scheduling_strategy=NodeAffinitySchedulingStrategy(self._node_id, soft=False),
            )
            .remote(self.uri, self._idle_s)
        )


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].removeprefix("potstill.errors.LedgerError: ")
