"""The limiter on a real Ray: several processes share it, and it dies."""

import asyncio
import os
import signal
import time

import pytest

from actors.teachers.limiter import LimiterHandle
from potstill.errors import TeacherError, TeacherStopped
from potstill.limits.breaker import BreakerSettings
from potstill.limits.pacer import Limits
from potstill.limits.wallet import Outcome

pytestmark = pytest.mark.slow


@pytest.fixture
def start(ray_cluster, request):
    """Start a limiter that ends with the test."""
    handles = []

    def start(limits, **settings):
        handles.append(LimiterHandle.start(limits, f"{request.node.name}-{len(handles)}", **settings))
        return handles[-1]

    yield start
    for handle in handles:
        handle.close()


def clients(ray, handle, count):
    """Start processes that send requests of ``latency_s`` and return each request's start and end."""

    class Client:
        def __init__(self, handle, holder):
            self.handle, self.holder, self.allowance = handle, holder, None

        def pid(self):
            return os.getpid()

        async def send(self, requests, latency_s=0.0, usd=0.0, cost=0.0, workers=64, close=True):
            self.allowance = self.allowance or self.handle.allowance(self.holder)
            left, spans, stop = [requests], [], []

            async def work():
                while left[0] and not stop:
                    left[0] -= 1
                    try:
                        async with self.allowance.slot(100, usd) as slot:
                            began = time.monotonic()
                            await asyncio.sleep(latency_s)
                            slot.finish(Outcome("ok", 100, cost))
                            spans.append((began, time.monotonic()))
                    except TeacherStopped as error:
                        stop.append(str(error))

            await asyncio.gather(*(work() for _ in range(workers)))
            if close:
                await self.allowance.close()
                self.allowance = None
            return spans, stop[0] if stop else None

        async def hold(self, usd):
            self.allowance = self.handle.allowance(self.holder)
            await self.allowance.slot(100, usd).__aenter__()
            await asyncio.sleep(0.3)

    actor = ray.remote(Client).options(num_cpus=0)
    return [actor.remote(handle, f"client {i}") for i in range(count)]


def most_at_a_time(spans):
    changes = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def test_several_processes_share_rate_and_concurrency(ray_cluster, start):
    handle = start(Limits(concurrency=12, requests_per_minute=3000))
    senders = clients(ray_cluster, handle, 3)
    ray_cluster.get([sender.pid.remote() for sender in senders])
    began = time.monotonic()
    replies = ray_cluster.get([sender.send.remote(150, 0.1) for sender in senders])
    spans = sorted(span for sent, _ in replies for span in sent)
    assert len(spans) == 450
    assert most_at_a_time(spans) <= 12
    elapsed = spans[-1][0] - began
    assert 450 / elapsed < 50 * 1.1
    print(f"\n3 processes: {450 / elapsed:.1f} requests/s of 50 allowed")
    state = handle.state()
    assert (state.succeeded, state.refused, state.failed) == (450, 0, 0)


def test_the_budget_is_shared_and_a_dead_processs_share_stays_reserved(ray_cluster, start):
    handle = start(Limits(concurrency=64, requests_per_minute=1e6, budget_usd=1.0), lease_s=10.0)
    one, two, dying = clients(ray_cluster, handle, 3)
    ray_cluster.get(dying.hold.remote(0.25))
    os.kill(ray_cluster.get(dying.pid.remote()), signal.SIGKILL)
    replies = ray_cluster.get([client.send.remote(500, 0.01, usd=0.01, cost=0.004) for client in (one, two)])
    sent = sum(len(spans) for spans, _ in replies)
    assert 0.004 * sent <= 0.75 + 1e-9
    assert sent == 186  # 0.744; one more might cost 0.01
    for _, stop in replies:
        assert "budget_usd = 1 reached: $0.9940 spent, of which up to $0.2500 by processes that died" in stop


def test_a_restarted_limiter_keeps_its_spend(ray_cluster, start):
    handle = start(Limits(concurrency=64, requests_per_minute=1e6, budget_usd=1.0))
    one, two = clients(ray_cluster, handle, 2)
    # The client leaves afterwards, so only the file has the record.
    spans, stop = ray_cluster.get(one.send.remote(50, usd=0.01, cost=0.01))
    assert (len(spans), stop) == (50, None)
    sending = two.send.remote(500, 0.2, usd=0.01, cost=0.01, workers=4)
    deadline = time.monotonic() + 300
    while handle.state().succeeded < 55 and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = ray_cluster.get(handle.actor.__ray_call__.remote(lambda actor: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    spans, stop = ray_cluster.get(sending)
    assert ray_cluster.get(handle.actor.__ray_call__.remote(lambda actor: os.getpid())) != pid
    assert len(spans) == 50, stop
    assert handle.state().spent_usd == pytest.approx(1.0)
    assert stop.startswith("budget_usd = 1 reached: $1.0000 spent;")


def test_a_limiter_that_is_gone_for_good_is_an_error(ray_cluster, start):
    handle = start(Limits(concurrency=8))
    handle.close()

    async def send():
        async with handle.allowance("here").slot():
            pass

    with pytest.raises(TeacherError, match="the limiter's process can't be asked"):
        asyncio.run(asyncio.wait_for(send(), 300))
    with pytest.raises(TeacherError):
        handle.state()


def test_an_endpoint_that_always_fails_ends_in_an_error(ray_cluster, start):
    handle = start(Limits(concurrency=8), breaker=BreakerSettings(failures=8, first_pause_s=0.1, give_up_s=1.0))

    async def send():
        allowance = handle.allowance("here")
        sent = 0
        while True:
            async with allowance.slot() as slot:
                sent += 1
                slot.finish(Outcome("failed", error="connection refused"))
            assert sent < 200

    with pytest.raises(TeacherStopped, match=r"let nothing through for .* s; most common error .*: connection refused"):
        asyncio.run(asyncio.wait_for(send(), 300))


def test_cpu_time_per_slot(ray_cluster, start):
    handle = start(Limits(concurrency=256))

    async def send(seconds, workers):
        allowance = handle.allowance(f"here {workers}")
        done = 0

        async def work():
            nonlocal done
            while time.monotonic() < end:
                async with allowance.slot(100, 1e-6) as slot:
                    await asyncio.sleep(0)
                    slot.finish(Outcome("ok", 100, 1e-6))
                done += 1

        for _ in range(2):  # the first time the search opens up
            done, end = 0, time.monotonic() + seconds
            cpu = time.process_time()
            await asyncio.gather(*(work() for _ in range(workers)))
        cpu = time.process_time() - cpu
        await allowance.close()
        return done / seconds, cpu / max(done, 1)

    per_s, cpu = asyncio.run(asyncio.wait_for(send(2.0, 64), 300))
    print(f"\n{per_s:.0f} slots/s in one process, {1e6 * cpu:.1f} us CPU each")
    assert cpu < 1e-3  # seconds of CPU, which another process's load hardly changes
