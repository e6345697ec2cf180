"""Permission to send, inside an asyncio process: ``async with allowance.slot(tokens, usd) as slot``.

Permissions are fetched ahead and outcomes reported in bulk, so a slot costs microseconds rather than a call to the
limiter. Start a request's timeout inside the slot: the wait for it does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice

from potstill.errors import TeacherError, TeacherStopped
from potstill.limits.pacer import Grant, HolderReport
from potstill.limits.wallet import Outcome, Wallet

Exchange = Callable[[HolderReport], Awaitable[Grant]]

SOONEST_S = 0.002
REPORT_S = 0.1  # between reports of outcomes
BEAT_S = 1.0  # between heartbeats while requests are in flight
LOOK_AHEAD = 256  # waiting requests whose costs are reported


class Slot:
    """One permission. ``finish`` reports the outcome; without it the worst case counts as spent."""

    __slots__ = ("_allowance", "_open", "sent_at", "tokens", "usd")

    def __init__(self, allowance: Allowance, tokens: float, usd: float) -> None:
        self._allowance, self.tokens, self.usd = allowance, tokens, usd
        self._open = False
        self.sent_at = 0.0

    async def __aenter__(self) -> Slot:
        if not self._allowance.try_take(self.tokens, self.usd):
            await self._allowance.wait(self.tokens, self.usd)
        self._open = True
        self.sent_at = self._allowance.now()
        return self

    def finish(self, outcome: Outcome) -> None:
        """Report the outcome. Further calls do nothing."""
        if self._open:
            self._open = False
            self._allowance.finish(outcome, self)

    async def __aexit__(self, *exception: object) -> None:
        self.finish(Outcome("abandoned", usd=None))


class Allowance:
    """One per event loop that sends requests. ``exchange`` sends a report to the limiter and returns its grant."""

    def __init__(self, exchange: Exchange, holder: str) -> None:
        self._exchange = exchange
        self._wallet = Wallet(holder)
        self._waiting: deque[tuple[asyncio.Future[None], float, float]] = deque()
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._wake = asyncio.Event()
        self._ask_at = 0.0  # not before this time
        self._low = 0  # ask for more at this number of permissions
        self._ripening = False
        self._quiet = False  # nothing to report before the next heartbeat
        self._end: TeacherError | None = None
        self._task = self._loop.create_task(self._run())

    @property
    def in_flight(self) -> int:
        """Requests of this process that are in flight."""
        return self._wallet.in_flight

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def slot(self, tokens: float = 0.0, usd: float = 0.0) -> Slot:
        """Wait for permission to send a request of about ``tokens`` that costs at most ``usd``.

        Entering raises ``TeacherStopped`` once nothing more may be sent.
        """
        return Slot(self, tokens, usd)

    def try_take(self, tokens: float, usd: float) -> bool:
        """Take a permission without waiting, unless others already wait. For ``Slot``."""
        if self._waiting or self._end or not self._wallet.take(tokens, usd, self.now()):
            return False
        if self._wallet.requests <= self._low:
            self._low = -1
            self._ask()
        return True

    async def wait(self, tokens: float, usd: float) -> None:
        """Wait for a permission, in turn. For ``Slot``."""
        if self._end:
            raise self._end
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((future, tokens, usd))
        if len(self._waiting) == 1:
            self._pump()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                now = self.now()
                self._wallet.finish(Outcome("abandoned", usd=0.0), tokens, usd, now, now)  # never sent
            raise

    def finish(self, outcome: Outcome, slot: Slot) -> None:
        """Account for a slot. For ``Slot``."""
        self._wallet.finish(outcome, slot.tokens, slot.usd, slot.sent_at, self.now())
        if outcome.kind == "refused" and self._wallet.held:
            self._ask_at = 0.0  # tell the limiter at once
            self._wake.set()
            return
        if self._quiet:
            self._quiet = False
            self._loop.call_later(REPORT_S, self._wake.set)
        if self._waiting:
            self._pump()

    async def close(self) -> None:
        """Return all permissions. Finish or cancel the requests in flight first, or theirs are never returned."""
        self._fail(TeacherStopped("the allowance is closed"))
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        with contextlib.suppress(TeacherError):
            await self._exchange(self._wallet.close(self.now()))

    def _ask(self) -> None:
        if self.now() >= self._ask_at:
            self._wake.set()

    def _pump(self) -> None:
        """Hand permissions to the waiting requests, in turn."""
        now = self.now()
        while self._waiting:
            future, tokens, usd = self._waiting[0]
            if not future.done():
                if not self._wallet.take(tokens, usd, now):
                    break
                future.set_result(None)
            self._waiting.popleft()
        else:
            return
        if self._wallet.lacks(usd):
            self._ask()
        elif self._wallet.next_at > now and not self._ripening:
            self._ripening = True
            self._loop.call_at(self._wallet.next_at, self._ripen)

    def _ripen(self) -> None:
        self._ripening = False
        self._pump()

    def _fail(self, error: TeacherError) -> None:
        self._end = self._end or error
        while self._waiting:
            future = self._waiting.popleft()[0]
            if not future.done():
                future.set_exception(type(self._end)(*self._end.args))

    def _report(self) -> HolderReport:
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()  # cancelled
        first = list(islice(self._waiting, LOOK_AHEAD))
        return self._wallet.report(
            len(self._waiting),
            first[0][2] if first else 0.0,
            max((usd for _, _, usd in first), default=0.0),
            max((tokens for _, tokens, _ in first), default=0.0),
            self.now(),
        )

    async def _run(self) -> None:
        """Exchange reports for grants as long as there is something to report or to ask for."""
        while True:
            if not self._waiting and self._wallet.is_empty:
                await self._wake.wait()
            self._wake.clear()
            try:
                grant = await self._exchange(self._report())
            except TeacherError as error:
                self._fail(error)
                return
            self._wallet.receive(grant)
            if grant.stop:
                self._fail(TeacherStopped(grant.stop))
            self._pump()
            await self._rest(grant)

    async def _rest(self, grant: Grant) -> None:
        """Wait until the next exchange is due or asked for."""
        wallet = self._wallet
        self._low = min(wallet.requests, wallet.ahead()) // 2
        pause = min(BEAT_S, max(SOONEST_S, grant.wait_s))
        self._ask_at = self.now() + pause
        starved = self._waiting and wallet.lacks(self._waiting[0][2])
        if not starved:
            self._quiet = not (self._waiting or wallet.has_news or wallet.requests)
            pause = max(pause, BEAT_S if self._quiet else REPORT_S)
        timer = self._loop.call_later(pause, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        # Asking again before a grant is used up would be too soon.
        await asyncio.sleep(SOONEST_S if self._ask_at == 0.0 else max(0.0, min(pause, self._ask_at - self.now())))
