"""Allowances and a pacer in one process, on a virtual clock: a request's whole path except Ray."""

import asyncio
import random

import pytest

from actors.teachers.allowance import Allowance
from potstill.errors import TeacherError, TeacherStopped
from potstill.limits.pacer import Limits, Pacer
from potstill.limits.wallet import Outcome
from tests.support.simulation import FixedWindowServer, SlidingWindowServer, TokenBucketServer
from tests.support.virtual_time import run


class Cluster:
    """A pacer that takes 3 ms to reply."""

    def __init__(self, limits):
        self.pacer, self.exchanges = Pacer(limits), 0

    async def exchange(self, report):
        self.exchanges += 1
        await asyncio.sleep(0.0015)
        grant = self.pacer.exchange(report, asyncio.get_running_loop().time())
        await asyncio.sleep(0.0015)
        return grant

    def allowance(self, holder="one"):
        return Allowance(self.exchange, holder)


async def saturate(cluster, server, seconds, tells_wait=False, processes=4, workers=80):
    """Return the numbers of requests answered and refused within ``seconds``."""
    rng, now, ok, refused = random.Random(1), asyncio.get_running_loop().time, 0, 0

    async def work(allowance):
        nonlocal ok, refused
        while now() < seconds:
            async with allowance.slot(100) as slot:
                wait = server.admit(now())
                if wait:
                    await asyncio.sleep(rng.uniform(0.02, 0.08))
                    refused += 1
                    slot.finish(Outcome("refused", retry_after_s=wait if tells_wait else None))
                else:
                    await asyncio.sleep(rng.uniform(0.1, 0.3))
                    ok += 1
                    slot.finish(Outcome("ok", 100))

    allowances = [cluster.allowance(f"{i}") for i in range(processes)]
    tasks = [asyncio.create_task(work(allowance)) for allowance in allowances for _ in range(workers)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for allowance in allowances:
        await allowance.close()
    return ok, refused


SERVERS = [
    lambda: TokenBucketServer(3000, 50),
    lambda: TokenBucketServer(3000, 3000),
    lambda: SlidingWindowServer(3000),
    lambda: FixedWindowServer(3000),
]


@pytest.mark.parametrize("server", SERVERS, ids=["bucket of a second", "bucket of a minute", "sliding", "fixed"])
def test_a_known_limit_is_used(server):
    cluster = Cluster(Limits(256, requests_per_minute=3000))
    ok, refused = run(saturate(cluster, server(), 120))
    assert ok >= 0.95 * 6000
    assert refused < 0.01 * ok
    assert cluster.exchanges < 0.6 * ok
    print(f"\n{ok / 6000:.3f} used, {refused} refused, {cluster.exchanges / ok:.2f} exchanges a request")


@pytest.mark.slow
@pytest.mark.parametrize("tells_wait", [False, True])
@pytest.mark.parametrize("server", SERVERS, ids=["bucket of a second", "bucket of a minute", "sliding", "fixed"])
def test_an_unknown_limit_is_found(server, tells_wait):
    cluster = Cluster(Limits(256))
    ok, refused = run(saturate(cluster, server(), 120, tells_wait))
    assert ok >= 0.8 * 6000
    assert refused < 0.03 * (ok + refused)
    print(f"\n{ok / 6000:.3f} used, {refused / (ok + refused):.4f} refused")


@pytest.mark.slow
def test_places_are_reused_without_asking():
    class Open:
        def admit(self, now):
            return 0.0

    cluster = Cluster(Limits(256, requests_per_minute=1e6))
    ok, _ = run(saturate(cluster, Open(), 20))
    assert ok > 0.95 * 20 * 256 / 0.2
    assert cluster.exchanges < ok / 20


def test_an_unreported_slot_costs_its_worst_case_and_a_cancelled_wait_nothing():
    async def go():
        cluster = Cluster(Limits(1, requests_per_minute=1e6, budget_usd=1.0))
        allowance = cluster.allowance()

        async def ask(usd, hold_s):
            async with allowance.slot(100, usd):
                await asyncio.sleep(hold_s)

        first = asyncio.create_task(ask(0.25, 10))
        await asyncio.sleep(0.5)
        waiting = asyncio.create_task(ask(0.5, 10))
        await asyncio.sleep(0.5)
        assert (allowance.in_flight, allowance.queued) == (1, 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await first
        async with allowance.slot(100, 0.75) as slot:  # all that is left, so nothing else is reserved
            slot.finish(Outcome("ok", 100, 0.5))
        await asyncio.sleep(1)
        assert cluster.pacer.state(20.0).spent_usd == 0.75
        await allowance.close()
        assert cluster.pacer.state(20.0).reserved_usd == 0.0

    run(go())


def test_a_slot_granted_to_a_task_being_cancelled_is_not_lost():
    async def go():
        cluster = Cluster(Limits(1, requests_per_minute=1e6))
        allowance = cluster.allowance()

        async def ask():
            async with allowance.slot():
                pass

        holder = allowance.slot()
        await holder.__aenter__()
        task = asyncio.create_task(ask())
        await asyncio.sleep(1)
        holder.finish(Outcome("ok"))  # passes the slot to the task, which is cancelled before it runs
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert allowance.in_flight == 0
        await asyncio.wait_for(ask(), 5)

    run(go())


def test_a_stop_reaches_every_waiting_task():
    async def go():
        cluster = Cluster(Limits(8, requests_per_minute=1e6, budget_usd=0.1))
        allowance = cluster.allowance()

        async def ask():
            async with allowance.slot(0, 0.03) as slot:
                await asyncio.sleep(1)
                slot.finish(Outcome("ok", 0, 0.03))

        results = await asyncio.gather(*(ask() for _ in range(6)), return_exceptions=True)
        assert [type(result) for result in results].count(TeacherStopped) == 3
        with pytest.raises(TeacherStopped, match=r"budget_usd = 0.1 reached: \$0.0900 spent"):
            await ask()

    run(go())


def test_an_unreachable_limiter_is_an_error_for_every_task():
    async def go():
        async def broken(report):
            raise TeacherError("gone")

        allowance = Allowance(broken, "one")
        for _ in range(2):
            with pytest.raises(TeacherError, match="gone"):
                await allowance.slot().__aenter__()

    run(go())
