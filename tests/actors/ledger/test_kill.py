"""A crash loses nothing that was paid for: each part of the pool killed at a random moment (benchmarks/kill.py, short)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kill
from tests.endpoint.client import Endpoint


@pytest.mark.slow
def test_a_kill_costs_at_most_what_was_on_its_way(tmp_path: Path, ray_cluster: Any) -> None:
    random.seed(4)
    with Endpoint(latency_s=0.4, latency_sigma=0.5) as endpoint:
        work = kill.Work(endpoint.base_url, requests=500, concurrency=64)
        outcomes = kill.run(work, endpoint, tmp_path, kill.KINDS, times=1)
    assert [outcome.kind for outcome in outcomes] == list(kill.KINDS)
    for outcome in outcomes:
        assert outcome.passed, outcome
        assert outcome.in_flight > 0, outcome  # or there was nothing to lose
        # A ledger that dies takes no answer with it: those who hold one hand it to the next.
        assert outcome.kind != "ledger" or outcome.asked_twice == 0
