"""The limiter's decisions against simulated endpoints, on a simulated clock.

Setting: a limit of 3,000 requests a minute, over two minutes, four processes, 256 in flight, 200 ms.
"""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.limits.breaker import BreakerSettings
from potstill.limits.headers import Announced, RateHeaders
from potstill.limits.pacer import HolderReport, Limits, Pacer
from potstill.limits.rate import AnswerCounts, RateControl
from potstill.limits.shares import Shares
from potstill.limits.wallet import Outcome, Wallet
from tests.support.simulation import FixedWindowServer, Simulation, SlidingWindowServer, TokenBucketServer

A_MINUTE = 3000
ALLOWED = 2 * A_MINUTE
SERVERS = {
    "a bucket of one second": lambda: TokenBucketServer(A_MINUTE, 50),
    "a bucket of a minute": lambda: TokenBucketServer(A_MINUTE, A_MINUTE),
    "a sliding window": lambda: SlidingWindowServer(A_MINUTE),
    "fixed windows": lambda: FixedWindowServer(A_MINUTE),
    "fixed windows out of step": lambda: FixedWindowServer(A_MINUTE, first=20),
}
TIGHT = lambda: TokenBucketServer(A_MINUTE, 5)  # noqa: E731


class InWholeSeconds:
    """An endpoint that rounds its Retry-After up, as most do."""

    def __init__(self, server):
        self.server = server

    def admit(self, now):
        return float(math.ceil(self.server.admit(now)))


class Open:
    """An endpoint without limits."""

    def admit(self, now):
        return 0.0


class AtRandom:
    """An endpoint that refuses a random share of requests at any rate, in addition to those ``server`` refuses."""

    def __init__(self, share, server=None, seed=1):
        self.share, self.server, self.rng = share, server or Open(), random.Random(seed)

    def admit(self, now):
        return 1.0 if self.rng.random() < self.share else self.server.admit(now)


@pytest.fixture(params=SERVERS)
def server(request):
    return SERVERS[request.param]()


@pytest.fixture(params=[0, 1])
def seed(request):
    return request.param


def most_in_a_window(times, seconds):
    start = most = 0
    for end, time in enumerate(times):
        while times[start] < time - seconds:
            start += 1
        most = max(most, end - start + 1)
    return most


@pytest.mark.slow
@pytest.mark.parametrize("known", ["configured", "announced"])
def test_a_known_limit_is_used_and_obeyed(server, seed, known):
    limits = Limits(256, requests_per_minute=A_MINUTE if known == "configured" else None)
    simulation = Simulation(Pacer(limits), server, announces=A_MINUTE if known == "announced" else None, seed=seed)
    book = simulation.run(120)
    assert len(book.ok) >= 0.95 * ALLOWED
    assert book.refused_share < 0.01
    if known == "configured":
        assert most_in_a_window(book.sent, 60) <= A_MINUTE
        assert most_in_a_window(book.sent, 0.2) <= 35  # 10 on average: not in one burst


def test_a_known_limit_is_used_even_if_bursts_are_refused(seed):
    book = Simulation(Pacer(Limits(256, requests_per_minute=A_MINUTE)), TIGHT(), seed=seed).run(120)
    assert len(book.ok) >= 0.9 * ALLOWED
    assert book.refused_share < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("tells_wait", [False, True], ids=["silent", "Retry-After"])
@pytest.mark.parametrize("refusal_latency", [(0.02, 0.08), (0.15, 0.25)], ids=["fast 429", "slow 429"])
def test_an_unknown_limit_is_found(server, seed, tells_wait, refusal_latency):
    simulation = Simulation(
        Pacer(Limits(256)), server, tells_wait=tells_wait, refusal_latency=refusal_latency, seed=seed
    )
    book = simulation.run(120)
    assert len(book.ok) >= 0.8 * ALLOWED
    assert book.refused_share < 0.03


@pytest.mark.slow
def test_an_unknown_limit_is_found_with_whole_seconds_to_wait(server, seed):
    book = Simulation(Pacer(Limits(256)), InWholeSeconds(server), tells_wait=True, seed=seed).run(120)
    assert len(book.ok) >= 0.8 * ALLOWED
    assert book.refused_share < 0.03


@pytest.mark.slow
def test_slow_answers_leave_little_of_a_rate_unused(server, seed):
    """Four seconds an answer: the window must be 200 before the allowed rate is reached."""
    book = Simulation(Pacer(Limits(256)), server, latency=(2.0, 6.0), seed=seed).run(120)
    assert len(book.ok) >= 0.78 * ALLOWED
    assert book.refused_share < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("tells_wait", [False, True], ids=["silent", "Retry-After"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5])
def test_refusals_at_any_rate_do_not_slow_requests_for_long(share, tells_wait, seed):
    book = Simulation(Pacer(Limits(64)), AtRandom(share), tells_wait=tells_wait, seed=seed).run(120)
    assert len(book.ok) >= 0.7 * (1 - share) * 120 * 64 / 0.2
    assert book.stop is None


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_refusals_at_any_rate_leave_a_known_limit_in_use(share, seed):
    simulation = Simulation(Pacer(Limits(256, requests_per_minute=A_MINUTE)), AtRandom(share, TIGHT()), seed=seed)
    assert len(simulation.run(60).ok) >= 0.75 * (1 - share) * A_MINUTE


def test_refusing_every_third_request_does_not_block_the_others():
    """Requests succeed in every interval, and no process polls the limiter in a loop."""
    simulation = Simulation(Pacer(Limits(64)), AtRandom(0.33), tells_wait=True)
    book = simulation.run(60)
    assert all(sum(start <= time < start + 10 for time in book.ok) > 3 for start in range(0, 60, 10))
    assert book.exchanges < 60 * 4 * 40


def test_a_limit_that_appears_among_random_refusals_is_found():
    class Late:
        def __init__(self):
            self.open, self.limit = AtRandom(0.1), AtRandom(0.1, TokenBucketServer(A_MINUTE, 50))

        def admit(self, now):
            return (self.open if now < 60 else self.limit).admit(now)

    book = Simulation(Pacer(Limits(64)), Late()).run(180)
    ok, refused = (sum(90 <= time < 180 for time in times) for times in (book.ok, book.refused))
    assert ok >= 0.7 * 90 * 50
    assert refused < 0.3 * (ok + refused)


def test_a_rate_that_other_clients_halve_is_found_again():
    class Shared(TokenBucketServer):
        def admit(self, now):
            self.rate = 25 if 40 <= now < 80 else 50
            return super().admit(now)

    book = Simulation(Pacer(Limits(256, requests_per_minute=A_MINUTE)), Shared(A_MINUTE, 50)).run(140)
    assert book.refused_share < 0.03
    assert 0.85 * 25 * 20 < sum(60 <= time < 80 for time in book.ok) <= 25 * 20 + 50
    assert sum(120 <= time < 140 for time in book.ok) > 0.9 * 50 * 20


def test_without_limits_only_concurrency_bounds():
    simulation = Simulation(Pacer(Limits(256)), Open())
    book = simulation.run(40)
    assert book.most_in_flight == 256
    assert sum(30 <= time < 40 for time in book.ok) > 0.9 * 10 * 256 / 0.2
    assert book.exchanges < len(book.ok) / 10


def test_retry_after_is_obeyed_by_all():
    simulation = Simulation(Pacer(Limits(256)), FixedWindowServer(1000), tells_wait=True)
    book = simulation.run(170)
    for end in (60, 120):
        first = min(time for time in book.refused if end - 60 <= time < end)
        # Earlier grants may be used until each process's next exchange.
        assert not [time for time in book.sent if first + 0.6 < time < end - 0.05]
    assert len(book.ok) >= 0.9 * 3000


def test_a_retry_after_of_hours_stops_the_job():
    pacer = Pacer(Limits(4))
    pacer.settle(HolderReport("one", answers=AnswerCounts(refused=1, retry_after_s=7200.0)), 0.0)
    assert pacer.grant(HolderReport("one", wanted=1), 1.0).stop == (
        "the endpoint asks to wait 7199 s (Retry-After), more than 900 s"
    )


def test_a_daily_limit_is_not_a_rate_but_its_reset_is_awaited():
    rates = RateControl(None, None)
    rates.settle(AnswerCounts(1, rates=RateHeaders(requests=Announced(14400, 100, 7000.0))), 0.0)
    assert math.isinf(rates.requests_per_s)
    rates.settle(AnswerCounts(1, rates=RateHeaders(requests=Announced(14400, 0, 300.0))), 1.0)
    assert rates.allowed(10, 0, 0, 2.0) == 0
    assert rates.hold_s(2.0) == pytest.approx(299.0)
    assert rates.allowed(10, 0, 0, 301.1) == 1


def test_token_limits_are_obeyed_and_corrected_by_actual_use():
    rates = RateControl(None, 60_000)
    rates._window = math.inf
    sent = 0
    for step in range(1, 1201):
        now = step / 10
        count = rates.allowed(100, 500, 0, now)
        rates.take(count, 500 * count, now)
        rates.take(0, -250 * count, now)  # half of the estimate
        sent += count
    assert 0.95 * 120 * 1000 / 250 <= sent <= 1.0 * 120 * 1000 / 250 + 2
    assert rates.allowed(1, 1e9, 0, 200.0) == 1  # larger than the bucket: sent, leaving a debt
    rates.take(1, 1e9, 200.0)
    assert rates.allowed(1, 1, 0, 300.0) == 0


def test_few_processes_use_all_of_the_concurrency_and_no_more():
    simulation = Simulation(Pacer(Limits(7, requests_per_minute=1e6)), Open(), clients=3)
    book = simulation.run(20)
    assert book.most_in_flight == 7
    assert len(book.ok) > 0.9 * 20 * 7 / 0.2


@given(
    st.integers(1, 20),
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.sampled_from(["ask", "tell", "start", "end"])), max_size=120
    ),
)
def test_shares_never_exceed_the_total(total, steps):
    shares, in_use, known, answer = Shares(total), [0] * 4, [0] * 4, {}
    for holder, demand, step in steps:
        if step == "ask" and holder not in answer:
            wants = demand + in_use[holder]
            if not wants:
                known[holder] = 0
            answer[holder] = shares.update(f"{holder}", in_use[holder], wants)
        elif step == "tell" and holder in answer:
            known[holder] = answer.pop(holder)
        elif step == "start" and in_use[holder] < known[holder]:
            in_use[holder] += 1
        elif step == "end" and in_use[holder]:
            in_use[holder] -= 1
        assert sum(in_use) <= total


def test_other_processes_get_an_idle_process_s_places():
    shares = Shares(8)
    assert shares.update("one", 0, 100) == 8
    assert shares.update("two", 0, 100) == 0  # "one" may be using all
    assert shares.update("one", 8, 100) == 4
    assert shares.update("one", 4, 100) == 4
    assert shares.update("two", 0, 100) == 4
    assert shares.update("one", 0, 0) == 0
    assert shares.update("two", 4, 100) == 8


# --- dollars


class Client:
    """A process with a share of the budget, driven by hypothesis."""

    def __init__(self, name):
        self.wallet, self.sent, self.paid = Wallet(name), [], 0.0


@settings(max_examples=150)
@given(
    st.floats(0.05, 2.0),
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["ask", "ask, reply lost", "send", "send", "end", "end", "die", "restart", "wait"]),
            st.floats(0.0, 0.2),
            st.floats(0.0, 1.0),
        ),
        max_size=100,
    ),
)
def test_the_budget_is_never_exceeded(budget, steps):
    limits = Limits(64, requests_per_minute=1e7, budget_usd=budget)
    pacer, now, paid_by_dead = Pacer(limits), 0.0, 0.0
    clients = [Client(f"{i}") for i in range(3)]
    for number, (index, step, usd, share) in enumerate(steps):
        now += 0.05
        client = clients[index]
        if step.startswith("ask"):
            grant = pacer.exchange(client.wallet.report(5, usd, max(usd, 0.1), 10, now), now)
            if step == "ask":
                client.wallet.receive(grant)
        elif step == "send" and client.wallet.take(10, usd, now):
            client.sent.append(usd)
        elif step == "end" and client.sent:
            worst = client.sent.pop()
            client.paid += worst * share
            client.wallet.finish(Outcome("ok", 10, worst * share), 10, worst, now, now)
        elif step == "die":  # all requests in flight are billed
            paid_by_dead += client.paid + sum(client.sent)
            clients[index] = Client(f"{index} after {number}")
        elif step == "restart":
            memo, pacer = pacer.memo(), Pacer(limits)
            pacer.recall(memo, now)
        else:
            now += 20
        worst_case = paid_by_dead + sum(client.paid + sum(client.sent) for client in clients)
        state = pacer.state(now)
        assert worst_case <= budget * (1 + 1e-8)
        assert state.spent_usd + state.reserved_usd <= budget * (1 + 1e-8)


def test_an_exhausted_budget_stops_with_a_message_after_settling():
    book = Simulation(Pacer(Limits(64, requests_per_minute=60_000, budget_usd=3.0)), Open(), usd=0.01).run(60)
    assert "budget_usd = 3 reached: $2.99" in book.stop
    assert "the next request may cost $0.0100" in book.stop
    assert max(book.ok) < book.stopped_at
    assert len(book.ok) > 500  # each costs half of its worst case


def test_a_cheaper_request_still_fits():
    pacer = Pacer(Limits(8, requests_per_minute=1e6, budget_usd=1.0))
    pacer.exchange(HolderReport("one", wanted=1), 0.0)
    grant = pacer.exchange(HolderReport("one", spent_usd=0.9, wanted=5, usd_each=0.5, usd_next=0.1), 1.0)
    assert (grant.requests, grant.usd, grant.stop) == (1, 0.1, None)
    assert (
        "may cost $0.2000"
        in pacer.exchange(HolderReport("one", spent_usd=0.9, wanted=5, usd_each=0.5, usd_next=0.2), 2.0).stop
    )


# --- the breaker


def test_an_outage_is_survived_with_few_probes():
    simulation = Simulation(Pacer(Limits(64, requests_per_minute=A_MINUTE)), Open(), down=(20, 60))
    book = simulation.run(120)
    assert len([time for time in book.failed if time > 22]) <= 8
    assert book.stop is None
    assert not [time for time in book.ok if 20 < time < 60]
    assert sum(time > 90 for time in book.ok) > 0.95 * 49 * 30  # within one longest pause


def test_an_outage_without_end_is_given_up():
    settings = BreakerSettings(give_up_s=100)
    simulation = Simulation(Pacer(Limits(64, requests_per_minute=A_MINUTE), settings), Open(), down=(20, 1e9))
    book = simulation.run(200)
    assert 119 < book.stopped_at < 131
    assert "the endpoint has let nothing through for" in book.stop
    assert "connection refused" in book.stop
    assert not [time for time in book.sent if time > book.stopped_at + 1]


@pytest.mark.slow
def test_an_endpoint_that_always_refuses_is_given_up():
    class Closed:
        def admit(self, now):
            return 30.0

    book = Simulation(Pacer(Limits(64), BreakerSettings(give_up_s=100)), Closed()).run(400)
    assert "429" in book.stop
    assert 150 < book.stopped_at < 260
    assert len(book.sent) < 120


def test_errors_of_single_requests_do_not_open_the_breaker():
    pacer = Pacer(Limits(8, requests_per_minute=1e6))
    for step in range(200):
        pacer.settle(HolderReport("one", rejected=1), step / 10)
        pacer.settle(HolderReport("one", failed={"500": 1}), step / 10)
    assert pacer.state(30.0).held_because is None


def test_the_state_names_what_holds_requests_back():
    pacer = Pacer(Limits(8))
    pacer.settle(HolderReport("one", failed={"timeout": 30, "500": 10}), 0.0)
    assert pacer.state(0.5).held_because == (
        "nothing gets through; most common error (30 of 40): timeout; next try in 0 s"
    )
