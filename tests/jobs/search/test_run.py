"""A whole search on a tiny task through the test endpoint: sharing, results, resuming, growing."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tests.endpoint.client import Endpoint
from tests.support.command_line import ROOT, command, environment, family, kill, write_config

pytestmark = pytest.mark.slow

CONFIG: dict[str, Any] = {
    "task": {"preset": "demo", "max_test": 30},
    "augment": {"per_class": 4, "over_generate": 1.5, "max_rounds": 1, "max_tokens": 40},
    "student": {"min_steps": 2, "epochs": 1, "second_opinion": 0, "blend": 0, "workers": 1},
    "evaluate": {"compare": []},
    "search": {
        "space": {"augment.per_class": [2, 4], "augment.alpha.low": [0.5, 0.7]},
        "searcher": "grid",
        "concurrency": 1,
        "top_k": 1,
        "repeats": 1,
    },
}
Done = subprocess.CompletedProcess[str]


class Place:
    """A home, a config and an endpoint."""

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self.endpoint, self.folder, self.home = endpoint, folder, folder / "home"
        teacher = {
            "kind": "openai",
            "model": "scripted-1",
            "base_url": endpoint.base_url,
            "api_key_env": "",
            "requests_per_minute": 60_000,
            "price": {"prompt": 1.0, "completion": 2.0},
        }
        self.config = write_config(folder / "search.yaml", {**CONFIG, "teacher": teacher})

    def run(self, *arguments: str) -> Done:
        return subprocess.run(
            command(arguments[0], self.config, *arguments[1:]),
            cwd=ROOT,
            env=environment(self.home),
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The search in its own process group; it is killed on leaving."""
        process = subprocess.Popen(
            command("search", self.config, *arguments),
            cwd=ROOT,
            env=environment(self.home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                kill(family(process.pid))
                process.wait()

    @property
    def runs(self) -> Path:
        (found,) = (self.home / "runs").glob("demo-search-*")
        return found

    def trials(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.runs / "trials.json").read_text())
        return found

    def table(self) -> list[tuple[Any, ...]]:
        """Points and scores, without timings."""
        return [
            (
                row["point"],
                row["status"],
                [(rung["per_class"], rung["kept"], rung["scores"]["macro_f1"]) for rung in row["rungs"]],
            )
            for row in self.trials()
        ]

    def answered(self) -> int:
        """Requests that the endpoint answered, except probes of its abilities."""
        return sum(e.answered and "Is water wet?" not in e.prompt and e.route == "chat" for e in self.endpoint.book())

    def kept(self) -> int:
        """Answers in the ledger."""
        with sqlite3.connect(f"file:{self.home}/ledger.db?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM responses").fetchone()[0])


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(latency_s=0.02) as running:
        yield running


@pytest.fixture(scope="module")
def finished(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Done, int]:
    """An uninterrupted search, and the number of requests that the endpoint answered."""
    place = Place(endpoint, tmp_path_factory.mktemp("search"))
    done = place.run("search")
    assert done.returncode == 0, done.stdout + done.stderr
    return place, done, place.answered()


def test_every_trial_has_scores_and_no_request_is_paid_twice(finished: tuple[Place, Done, int]) -> None:
    place, _, answered = finished
    trials = place.trials()
    assert [row["status"] for row in trials] == ["finished"] * 4
    assert [row["point"] for row in trials] == [
        {"augment.per_class": texts, "augment.alpha.low": low} for low in (0.5, 0.7) for texts in (2, 4)
    ]
    assert answered == place.kept()
    usage = [rung["usage"] for row in trials for rung in row["rungs"]]
    new, asked = (sum(one[name] for one in usage) for name in ("requests_new", "requests"))
    assert new < 0.8 * asked  # 2 texts a class are a prefix of 4, and alphas are on one grid
    # The new requests of trials and finals add up to the endpoint's.
    (winner,) = json.loads((place.runs / "search.json").read_text())["finals"]
    (final,) = [
        json.loads(path.read_text())
        for path in (place.runs / "rungs").glob("*.json")
        if path.stem not in {rung["key"] for row in trials for rung in row["rungs"]}
    ]
    assert new + final["usage"]["requests_new"] == answered
    paid = sum(one["cost_usd_new"] for one in [*usage, final["usage"]])
    assert json.loads((place.runs / "spent.json").read_text())["usd"] == pytest.approx(paid)
    assert winner["scores"]["macro_f1"] == final["scores"]["macro_f1"]


def test_the_terminal_shows_trials_finals_and_the_winner(finished: tuple[Place, Done, int]) -> None:
    place, done, _ = finished
    for words in (
        "best trials",
        "with fresh draws",
        "winner: trial",
        "on the test texts",
        "registered now",
        "best.yaml",
    ):
        assert words in done.stdout, done.stdout
    for noise in ("Traceback", "WARNING", "(pid=", "Tune", "core_worker", "optuna"):
        assert noise not in done.stdout + done.stderr
    table = pq.read_table(place.runs / "table/trials.parquet")
    assert table.num_rows == 4
    assert {"point.augment.per_class", "macro_f1", "requests_new", "requests_reused", "status"} <= set(
        table.column_names
    )
    assert {path.stem for path in (place.runs / "figures").glob("*.png")} >= {"parallel_coordinates", "pareto"}
    assert not (place.runs / "students").exists()


def test_mlflow_has_a_parent_and_a_child_a_trial(finished: tuple[Place, Done, int]) -> None:
    from mlflow import MlflowClient

    place, _, _ = finished
    client = MlflowClient(f"sqlite:///{place.home}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "potstill.trial" in run.data.tags]
    assert len(children) == 4
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)
    assert all({"macro_f1", "requests_new", "cost_usd_new", "tokens"} <= set(run.data.metrics) for run in children)
    assert {run.data.params["augment.per_class"] for run in children} == {"2", "4"}
    assert {"macro_f1", "validation_minus_test", "requests_alone"} <= set(parent.data.metrics)
    top = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"best.yaml", "search.md", "figures", "tables"} <= top


def test_distill_accepts_the_best_config(finished: tuple[Place, Done, int]) -> None:
    from potstill.config import load

    place, _, _ = finished
    best = load(place.runs / "best.yaml")
    report = json.loads((place.runs / "search.json").read_text())
    winner = place.trials()[report["winner"] - 1]["point"]
    assert best.augment.per_class == winner["augment.per_class"]
    assert best.search is None
    assert best.seed != best.task_seed == 0
    assert (place.home / "runs" / report["run"] / "report.json").exists()


def test_killed_resumed_and_grown_it_is_the_same_search(
    finished: tuple[Place, Done, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    undisturbed, _, _ = finished
    with Endpoint(latency_s=0.02) as endpoint:
        place = Place(endpoint, tmp_path_factory.mktemp("killed"))
        with place.running("--set", "search.trials=2") as process:
            wait_for(process, lambda: any((place.home / "runs").glob("demo-search-*/rungs/*.json")))
            processes = family(process.pid)
            process.kill()
            process.wait()
            _, left = psutil.wait_procs(processes, timeout=10)
            kill(left)
        before, kept = place.answered(), place.kept()
        # Stopped before its finals, which this test does not need.
        with place.running("--resume", "--set", "search.trials=3") as process:
            wait_for(process, lambda: [row["status"] for row in place.trials()] == ["finished"] * 3)
            stopped = time.time()
            os.killpg(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=300)
        assert process.returncode == 130, output
        assert "resumes with" in output
        assert place.table() == undisturbed.table()[:3]
        # Only requests in flight when the driver died are repeated; only those in flight at the stop are lost.
        late = sum(entry.ended is None or entry.ended > stopped - 10.0 for entry in endpoint.book())
        assert place.answered() - place.kept() <= before - kept + late


def test_trials_that_all_fail_alike_end_it_after_three(tmp_path: Path) -> None:
    with Endpoint(latency_s=0.02) as endpoint:
        endpoint.script(poison={"\n": 400})  # all but the one-line probe
        place = Place(endpoint, tmp_path)
        done = place.run("search")
        assert done.returncode == 1, done.stdout + done.stderr
        assert [row["status"] for row in place.trials()] == ["failed"] * 3
        assert done.stderr.count("HTTP 400") == 1, done.stderr
        assert "first 3 trials failed with the same error" in done.stderr


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Wait for the event; fail if the process ends first."""
    deadline = time.monotonic() + 800
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
