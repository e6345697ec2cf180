"""The pool in batch mode on Ray: a driver killed during a batch, and real-time runs beside a batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from actors.ledger import tables
from actors.ledger.handle import Ledger
from actors.ledger.store import LedgerStore
from actors.teachers.pool import TeacherPool
from potstill.rows import Response, from_table
from tests.endpoint.client import ROOT, Endpoint
from tests.support.batch_asking import answered, batches_of, left_over
from tests.support.batch_requests import requests, teacher

pytestmark = pytest.mark.slow


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


@pytest.fixture(scope="module")
def bare_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Ray for this process and its drivers: the session's if it is running, else one without a dashboard."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


def drive(ray: Any, uri: str, config: Any, count: int) -> subprocess.Popen[str]:
    """Start a driver as a separate process. When it dies, Ray ends its actors."""
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "tests.support.batch_pool", uri, config.model_dump_json(), str(count)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def finish(driver: subprocess.Popen[str]) -> list[dict[str, Any]]:
    output, _ = driver.communicate(timeout=600)
    (line,) = [line for line in output.splitlines() if line.startswith("ANSWERS ")]
    return json.loads(line.removeprefix("ANSWERS "))


def wait_for(condition: Any, driver: subprocess.Popen[str] | None = None, seconds: float = 400.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert driver is None or driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)


def expire(uri: str) -> None:
    """Expire the leases of a dead process, as a minute would."""
    store = LedgerStore(uri)
    with store.database.write() as connection:
        connection.execute(sa.update(tables.batches).values(held_until=0.0))
        own = sa.not_(tables.claims.c.owner.startswith("batch-"))
        connection.execute(sa.update(tables.claims).where(own).values(expires_at=0.0))
    store.close()


def test_a_killed_drivers_batch_is_adopted_and_paid_once(endpoint: Endpoint, uri: str, bare_ray: Any) -> None:
    endpoint.script(batch_running_s=600)
    config = teacher(endpoint, batch_poll_s=0.5)
    driver = drive(bare_ray, uri, config, 300)
    try:
        wait_for(lambda: any(batch["status"] == "in_progress" for batch, _ in batches_of(endpoint)), driver)
        time.sleep(1.0)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
    # The endpoint works on the submitted batch and finishes it without a driver.
    assert len(batches_of(endpoint)) == 1
    endpoint.script(batch_running_s=0)
    expire(uri)
    first = batches_of(endpoint)[0][0]["id"]
    rerun = drive(bare_ray, uri, config, 320)
    wait_for(lambda: len(batches_of(endpoint)) == 2, rerun)
    endpoint.hurry_batches()
    answers = finish(rerun)
    assert len(answers) == 320
    assert all(answer["error"] is None and answer["text"] for answer in answers)
    assert sum(answer["reused"] for answer in answers) == 300
    batches = batches_of(endpoint)
    assert [(batch["id"] == first, len(lines)) for batch, lines in batches] == [(True, 300), (False, 20)]
    asked = Counter(line["custom_id"] for _, lines in batches for line in lines)
    assert set(asked.values()) == {1}
    booked = Counter(entry.client_request_id for entry in endpoint.book() if entry.route == "batch")
    assert booked == asked


def test_a_pool_asks_once_with_its_ledger_in_postgresql(endpoint: Endpoint, postgres_uri: str, bare_ray: Any) -> None:
    """From the driver to the database through every process between; the SQL itself is tested in tests/actors/ledger."""
    config = teacher(endpoint)
    for reused in (0, 40):
        with TeacherPool(config, Ledger(postgres_uri)) as pool:
            answers = pool.ask(requests(config, 40))
        assert answers.num_rows == 40
        assert answers["error"].null_count == 40
        assert sum(answers["reused"].to_pylist()) == reused
    assert set(answered(endpoint).values()) == {1}
    store = LedgerStore(postgres_uri)
    assert left_over(store)[:2] == (0, 0)
    store.close()


def test_a_real_time_run_waits_for_requests_in_a_batch(endpoint: Endpoint, tmp_path: Path, bare_ray: Any) -> None:
    endpoint.script(batch_running_s=600)
    uri = f"sqlite:///{tmp_path}/ledger.db"
    config = teacher(endpoint)
    wanted = requests(config, 40)
    pool = TeacherPool(config, Ledger(uri))
    pool.start()
    asking = pool.actors[0].answer.remote(wanted[:30])
    wait_for(lambda: any(batch["status"] == "in_progress" for batch, _ in batches_of(endpoint)))
    wait_for(lambda: pool.batch_progress() is not None and pool.batch_progress().states == ("in_progress",))
    assert pool.batch_progress().total == 30
    pool.close()
    with pytest.raises(bare_ray.exceptions.RayError):
        bare_ray.get(asking)
    said: list[str] = []
    real_time = config.model_copy(update={"mode": "realtime", "requests_per_minute": 60_000})
    endpoint.hurry_batches()
    with TeacherPool(real_time, Ledger(uri), said.append) as other:
        answers = from_table(other.ask(wanted).drop_columns("reused"), Response)
    assert all(answer.error is None for answer in answers)
    assert "30 requests are in batches of an earlier run (batch_00000001)" in said[0]
    asked = Counter(entry.prompt for entry in endpoint.book() if entry.prompt.startswith("Write"))
    assert len(asked) == 40
    assert set(asked.values()) == {1}
