"""Simulated endpoints with three kinds of rate limit, and processes that share a pacer, on a virtual clock."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count

from potstill.limits.headers import Announced, RateHeaders
from potstill.limits.pacer import Pacer
from potstill.limits.wallet import Outcome, Wallet


class TokenBucketServer:
    """Tokens accrue evenly at ``per_minute``; the bucket holds at most ``burst``."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self.rate, self.burst, self.level, self.at = per_minute / 60, burst, burst, 0.0

    def admit(self, now: float) -> float:
        """Return 0 if the request is admitted, otherwise seconds until one would be."""
        self.level, self.at = min(self.burst, self.level + (now - self.at) * self.rate), now
        if self.level < 1:
            return (1 - self.level) / self.rate
        self.level -= 1
        return 0.0


class SlidingWindowServer:
    """At most ``per_minute`` in any 60 s."""

    def __init__(self, per_minute: int) -> None:
        self.limit, self.times = per_minute, deque()

    def admit(self, now: float) -> float:
        while self.times and self.times[0] <= now - 60:
            self.times.popleft()
        if len(self.times) >= self.limit:
            return self.times[0] + 60 - now
        self.times.append(now)
        return 0.0


class FixedWindowServer:
    """At most ``per_minute`` in each minute of the clock; the first one ends after ``first`` seconds."""

    def __init__(self, per_minute: int, first: float = 60.0) -> None:
        self.limit, self.ends, self.used = per_minute, first, 0

    def admit(self, now: float) -> float:
        while now >= self.ends:
            self.ends, self.used = self.ends + 60, 0
        if self.used >= self.limit:
            return self.ends - now
        self.used += 1
        return 0.0


@dataclass
class Book:
    """What the endpoint saw: send times by outcome."""

    ok: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    most_in_flight: int = 0
    exchanges: int = 0
    stop: str | None = None
    stopped_at: float | None = None

    @property
    def sent(self) -> list[float]:
        return sorted(self.ok + self.refused + self.failed)

    @property
    def refused_share(self) -> float:
        return len(self.refused) / max(1, len(self.sent))


@dataclass
class Simulation:
    """``clients`` processes with endless work share one ``pacer`` and one ``server``."""

    pacer: Pacer
    server: object
    clients: int = 4
    latency: tuple[float, float] = (0.1, 0.3)
    refusal_latency: tuple[float, float] = (0.02, 0.08)
    tells_wait: bool = False
    announces: float | None = None
    tokens: float = 0.0
    usd: float = 0.0
    down: tuple[float, float] = (0.0, 0.0)  # every request in this interval fails
    most: int | None = None  # total requests to answer
    seed: int = 0

    def run(self, seconds: float) -> Book:
        """Simulate ``seconds`` and return what the endpoint saw."""
        rng, book, order = random.Random(self.seed), Book(), count()
        wallets = [Wallet(f"client {i}") for i in range(self.clients)]
        events: list[tuple[float, int, str, object]] = []
        planned = dict.fromkeys(range(self.clients), 0)  # number of the latest planned exchange, by client

        def at(time: float, kind: str, what: object) -> None:
            heapq.heappush(events, (time, next(order), kind, what))

        def plan(client: int, time: float) -> None:
            planned[client] += 1
            at(time, "exchange", (client, planned[client]))

        def waiting() -> int:
            return 1000 if self.most is None else max(0, self.most - len(book.ok) - sum(w.in_flight for w in wallets))

        def send(client: int, now: float) -> None:
            while waiting() and wallets[client].take(self.tokens, self.usd, now):
                outcome, latency = self._answer(now, rng, book)
                at(now + latency, "answer", (client, now, outcome))
            if not wallets[client].lacks(self.usd) and wallets[client].next_at > now:
                at(wallets[client].next_at + 0.002, "ripe", client)
            book.most_in_flight = max(book.most_in_flight, sum(wallet.in_flight for wallet in wallets))

        for client in range(self.clients):
            plan(client, rng.random() / 100)
        while events and events[0][0] <= seconds:
            now, _, kind, what = heapq.heappop(events)
            if kind == "answer":
                client, sent_at, outcome = what
                wallets[client].finish(outcome, self.tokens, self.usd, sent_at, now)
                send(client, now)
                if outcome.kind == "refused" and wallets[client].held:
                    plan(client, now + 0.002)
                continue
            if kind == "ripe":
                send(what, now)
                continue
            client, number = what
            if number != planned[client]:
                continue
            wallet = wallets[client]
            left = waiting()
            if not left and wallet.is_empty:
                continue
            book.exchanges += 1
            grant = self.pacer.exchange(wallet.report(left, self.usd, self.usd, self.tokens, now), now)
            wallet.receive(grant)
            if grant.stop and book.stop is None:
                book.stop, book.stopped_at = grant.stop, now
            send(client, now)
            starved = wallet.lacks(self.usd)
            plan(client, now + (min(1.0, max(grant.wait_s, 0.005)) if starved else 0.1) + rng.random() / 500)
        return book

    def _answer(self, now: float, rng: random.Random, book: Book) -> tuple[Outcome, float]:
        rates = None if self.announces is None else RateHeaders(requests=Announced(self.announces))
        arrives = now + rng.random() * 0.02
        if self.down[0] <= now < self.down[1]:
            book.failed.append(now)
            return Outcome("failed", error="connection refused"), rng.uniform(*self.refusal_latency)
        wait = self.server.admit(arrives)
        if wait:
            book.refused.append(now)
            return Outcome("refused", retry_after_s=wait if self.tells_wait else None, rates=rates), rng.uniform(
                *self.refusal_latency
            )
        book.ok.append(now)
        return Outcome("ok", self.tokens, self.usd * rng.random(), rates=rates), rng.uniform(*self.latency)
