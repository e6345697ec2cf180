"""Tracking against a real MLflow: SQLite stores, and a real server that is killed during a run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.runtime.progress import Meter
from jobs.tracking.outbox import outbox_folder
from jobs.tracking.server import TrackingError, problems
from jobs.tracking.tracker import NullTracker, Tracker, open_tracker
from potstill.config import Config, TrackingConfig, parse
from potstill.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
TEXTS = pa.table({"text": ["where is it", "who was it"], "label": ["location", "human"], "score": [0.5, float("nan")]})


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its schema written, which takes 3 s; tests copy it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def config(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path))
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return parse({"task": "trec6", "ledger": {"uri": "postgresql://me:secret@db/ledger"}, "tracking": {"uri": uri}})


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def start(config: Config, tmp_path: Path, warnings: list[str]) -> Callable[..., Tracker]:
    def start(changed: Config | None = None) -> Tracker:
        return open_tracker(
            changed or config,
            command="distill",
            task_name="trec6",
            run_dir=tmp_path / "run",
            run_digest=(changed or config).digest(),
            warn=warnings.append,
        )

    return start


def client(config: Config) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(config.tracking.uri)


def child_of(config: Config, tracker: Tracker, name: str) -> Any:
    runs = client(config).search_runs(["1"], f"tags.mlflow.parentRunId = '{tracker.run_id}'")
    return next(run for run in runs if run.info.run_name == name)


def test_a_job_is_a_run_and_its_stages_are_child_runs(config: Config, start: Callable[..., Tracker]) -> None:
    with start() as tracker:
        with tracker.stage("generate") as stage:
            stage.params({"strategy": "promptmix"})
            stage.metrics({"requests_new": 12, "cost_usd": 0.25, "f1/what's $this?": 0.5})
            stage.table("example", TEXTS)
            stage.text("report.md", "# Report")
            stage.dataset("trec6/seeds", TEXTS, "abc123", "training", source="/data/trec6")
        with tracker.stage("finetune") as stage:
            stage.curves({"loss": [3.0, 2.0, 1.0], "learning_rate": [0.1, 0.2, 0.1]}, steps=[0, 10, 20])

    parent = client(config).get_run(tracker.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["student.learning_rate"] == "auto"
    assert parent.data.params["augment.alpha.beta"] == "[5.0, 2.0]"
    assert "secret" not in json.dumps(parent.data.params)
    assert parent.data.tags["potstill.run_digest"] == config.digest()
    assert not (ROOT / ".git").exists() or len(parent.data.tags["mlflow.source.git.commit"]) == 40
    assert parent.data.tags["potstill.version"]

    generate = child_of(config, tracker, "generate")
    assert generate.info.status == "FINISHED"
    assert generate.data.metrics == {"requests_new": 12, "cost_usd": 0.25, "f1/what_s _this_": 0.5}
    assert generate.inputs.dataset_inputs[0].dataset.digest == "abc123"
    artifacts = Path(generate.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(os.environ["POTSTILL_HOME"])
    assert pq.read_table(artifacts / "tables" / "example.parquet").num_rows == 2
    assert json.loads((artifacts / "tables" / "example.preview.json").read_text())["data"][1] == [
        "who was it",
        "human",
        "nan",
    ]
    assert (artifacts / "report.md").read_text() == "# Report"

    history = client(config).get_metric_history(child_of(config, tracker, "finetune").info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.0), (10, 2.0), (20, 1.0)]
    assert not outbox_folder(os.environ["POTSTILL_HOME"] + "/run").exists()


def test_progress_is_a_curve_over_the_seconds_of_its_stage(config: Config, start: Callable[..., Tracker]) -> None:
    seconds = iter([0.0, 4.0, 10.0, 10.0, 16.0, 22.0, 22.0])
    with start() as tracker, tracker.stage("generate") as stage:
        meter = Meter(stage.metrics, clock=lambda: next(seconds))
        for _ in range(4):
            meter.count(new=10, tokens=1000, cost_usd=0.25)
    run = child_of(config, tracker, "generate").info.run_id
    history = {
        name: [(point.step, point.value) for point in client(config).get_metric_history(run, f"progress/{name}")]
        for name in ("requests", "cost_usd", "tokens_per_s")
    }
    assert history["requests"] == [(10, 20), (22, 40)]
    assert history["cost_usd"] == [(10, 0.5), (22, 1.0)]
    assert history["tokens_per_s"] == [(10, 200.0), (22, pytest.approx(4000 / 22))]


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("no luck"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_an_error_ends_stage_and_job(
    config: Config, start: Callable[..., Tracker], error: BaseException, status: str
) -> None:
    tracker = start()
    with pytest.raises(type(error)), tracker, tracker.stage("generate"):
        raise error
    for run in (client(config).get_run(tracker.run_id), child_of(config, tracker, "generate")):
        assert run.info.status == status
        assert type(error).__name__ in run.data.tags["potstill.error"]


def test_a_run_id_from_outside_is_not_written_to(
    start: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with start() as tracker:
        assert tracker.run_id != "0" * 32
        assert "MLFLOW_RUN_ID" not in os.environ


def test_entries_that_mlflow_refuses_are_warned_of_and_skipped(
    config: Config, start: Callable[..., Tracker], warnings: list[str]
) -> None:
    with start() as tracker:
        tracker.params({"rounds": 1})
        tracker.params({"rounds": 2})
        tracker.metrics({"kept": 3})
    assert client(config).get_run(tracker.run_id).data.metrics == {"kept": 3}
    assert len(warnings) == 1
    assert "refused params" in warnings[0]


def test_an_unwritable_artifact_store_does_not_block_metrics(
    config: Config, start: Callable[..., Tracker], warnings: list[str], tmp_path: Path
) -> None:
    with start() as tracker:
        shutil.rmtree(tmp_path / "mlartifacts")
        (tmp_path / "mlartifacts").write_text("a file where the folder should be")
        tracker.table("example", TEXTS)
        tracker.metrics({"kept": 3})
    assert client(config).get_run(tracker.run_id).data.metrics == {"kept": 3}
    assert "refused artifact example.parquet" in warnings[-1]


def test_registering_during_an_outage_is_postponed(start: Callable[..., Tracker], warnings: list[str]) -> None:
    def register(**student: Any) -> Any:
        raise TrackingError("connection refused")

    with start() as tracker:
        assert tracker.register(register, name="trec6-student") is None
    assert "run the same command again" in warnings[0]


def test_without_tracking_nothing_happens(config: Config, start: Callable[..., Tracker], tmp_path: Path) -> None:
    off = config.model_copy(update={"tracking": TrackingConfig.model_validate({"uri": "none"})})
    assert problems(off.tracking) == []
    before = sorted(tmp_path.iterdir())
    with start(off) as tracker, tracker.stage("generate") as stage, stage.stage("trial") as trial:
        trial.metrics({"kept": 3})
        trial.table("example", TEXTS)
        trial.dataset("seeds", TEXTS, "abc", "training")
        assert tracker.register(lambda **student: pytest.fail("nothing to register")) is None
    assert isinstance(tracker, NullTracker)
    assert tracker.run_id is None
    assert sorted(tmp_path.iterdir()) == before


# Outages


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real MLflow server in a process group of its own; killed at the end."""
    import signal

    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen([*command, *store], cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(960):
            try:
                # It accepts connections before its application is loaded, and a busy machine delays its first answer.
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=120):
                    break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.25)
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_a_server_that_dies_in_mid_run_costs_nothing_but_a_warning(
    config: Config,
    start: Callable[..., Tracker],
    warnings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # One test with four jobs, since a server takes 15 s to start: all begin before it dies.
    port = free_port()
    remote = config.model_copy(update={"tracking": TrackingConfig.model_validate({"uri": f"http://127.0.0.1:{port}"})})
    run_dir = tmp_path / "run"
    with mlflow_server(tmp_path, port):
        deadline = time.monotonic() + 120  # on a busy machine one answer may take longer than preflight waits
        while (found := problems(remote.tracking)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert found == []
        first, interrupted, patient = start(remote), start(remote), start(remote)
        with first.stage("generate") as stage:
            stage.metrics({"kept": 1})

    begin = time.monotonic()
    with first, first.stage("relabel") as stage:
        stage.metrics({"changed": 2})
        stage.table("example", TEXTS)
        stage.dataset("seeds", TEXTS, "abc", "training")
    ended = time.time()
    assert time.monotonic() - begin < 60  # MLflow itself would retry for minutes
    assert len(warnings) == 2  # one when it went down, one at the end
    assert "can't be reached" in warnings[0]
    assert "HTTPConnectionPool" not in warnings[0]
    assert f"python -m jobs.tracking.tracker {run_dir}" in warnings[1]
    patient.metrics({"kept": 1})
    with pytest.raises(InputError, match="connection refused"):
        start(remote)

    with socket.create_server(("127.0.0.1", port)):  # accepts connections and never answers
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt), interrupted:
            raise KeyboardInterrupt
        assert time.monotonic() - begin < 60

    warnings.clear()
    with mlflow_server(tmp_path, port):
        with start(remote) as second:  # the next run of the job sends what the first could not log
            assert "entries of an earlier run" in warnings[0]
        relabel = child_of(remote, first, "relabel")
        assert relabel.info.status == "FINISHED"
        assert relabel.data.metrics == {"changed": 2}
        assert relabel.info.start_time <= relabel.info.end_time <= 1000 * ended  # its own times, not the replay's
        assert relabel.inputs.dataset_inputs[0].dataset.digest == "abc"
        tables = client(remote).list_artifacts(relabel.info.run_id, "tables")
        assert [Path(item.path).name for item in tables] == ["example.parquet", "example.preview.json"]
        statuses = [client(remote).get_run(job.run_id).info.status for job in (first, second, interrupted, patient)]
        assert statuses == ["FINISHED", "FINISHED", "KILLED", "RUNNING"]

        patient._next_try = 0.0  # its pause is over
        patient.metrics({"texts": 2})
        assert "answers again" in warnings[-1]
        assert patient.close() is None
        assert client(remote).get_run(patient.run_id).data.metrics == {"kept": 1, "texts": 2}
        assert not outbox_folder(run_dir).exists()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_driver_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from potstill.config import parse\n"
        "from jobs.tracking.tracker import open_tracker\n"
        "config = parse({'task': 'trec6'})\n"
        "names = {'command': 'distill', 'task_name': 'trec6', 'run_dir': sys.argv[1], 'run_digest': 'ab12'}\n"
        "with open_tracker(config, **names, warn=print) as tracker:\n"
        "    with tracker.stage('generate') as stage: stage.metrics({'kept': 1})\n"
        "print([name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules])\n"
    )
    environment = {**os.environ, "POTSTILL_HOME": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert answer.stdout.strip() == "[]"
    assert answer.stderr == ""
