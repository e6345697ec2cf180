"""A crash loses no paid answer: each part of the pool is killed at a random moment (benchmarks/kill.py, shortened)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kill
from tests.endpoint.client import Endpoint


@pytest.mark.slow
def test_a_kill_costs_at_most_the_requests_in_flight(tmp_path: Path, ray_cluster: Any) -> None:
    random.seed(4)
    with Endpoint(latency_s=0.4, latency_sigma=0.5) as endpoint:
        work = kill.Work(endpoint.base_url, requests=500, concurrency=64)
        outcomes = kill.run(work, endpoint, tmp_path, kill.KINDS, times=1)
    assert [outcome.kind for outcome in outcomes] == list(kill.KINDS)
    for outcome in outcomes:
        assert outcome.passed, outcome
        assert outcome.in_flight > 0, outcome  # otherwise the kill could lose nothing
        # A dying ledger loses no answer: the processes that hold one pass it to the next ledger.
        assert outcome.kind != "ledger" or outcome.asked_twice == 0
