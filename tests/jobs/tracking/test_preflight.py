"""Problems of ``tracking`` found before a job starts: MLflow's addresses, databases and servers."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.tracking.server import problems
from jobs.tracking.tracker import open_tracker
from potstill.config import TrackingConfig, parse
from potstill.errors import InputError


def complaints(**tracking: Any) -> list[str]:
    start = time.monotonic()
    found = problems(TrackingConfig.model_validate(tracking))
    assert time.monotonic() - start < 60
    assert all("\n" not in str(problem) for problem in found)
    return [str(problem) for problem in found]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:///tmp/mlruns", "does not support file stores"),
        ("mlruns", "does not support file stores"),
        ("sqlite://", "names no database file"),
        ("sqlite:///:memory:", "names no database file"),
        ("sqlite:////proc/nowhere/mlflow.db", "no permission|can't be"),
        ("ftp://host/x", "is not an MLflow tracking URI"),
        ("http://", "has no host"),
        ("http://127.0.0.1:9", "connection refused"),
        ("http://user:hush@no-such-host.invalid:5000", "host name is unknown|no answer"),
    ],
)
def test_preflight_names_what_is_wrong(
    uri: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path))
    if "/proc/" in uri and os.access("/proc", os.W_OK):
        (tmp_path / "file").write_text("")
        uri, expected = f"sqlite:///{tmp_path}/file/mlflow.db", "is a file, not a folder"
    found = complaints(uri=uri)
    assert len(found) == 1
    assert found[0].startswith("tracking.uri = ")
    assert re.search(expected, found[0])
    assert "hush" not in found[0]


def test_preflight_reads_the_database(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    old = client.create_experiment("old", (tmp_path / "artifacts").as_uri())
    client.delete_experiment(old)
    assert complaints(uri=uri) == []
    assert complaints(uri=f"sqlite:///{tmp_path}/new/mlflow.db") == []
    assert not (tmp_path / "new").exists()

    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("CREATE TABLE responses (id TEXT)")
    assert "another program's database (tables responses)" in complaints(uri=f"sqlite:///{tmp_path}/ledger.db")[0]
    (tmp_path / "notes.db").write_text("these are no tables at all, only a text that somebody wrote")
    assert "can't be read as an SQLite database" in complaints(uri=f"sqlite:///{tmp_path}/notes.db")[0]

    found = complaints(uri=uri, experiment="old", register_as="a/b")
    assert [line.partition(" = ")[0] for line in found] == ["tracking.register_as", "tracking.experiment"]
    with pytest.raises(InputError, match="was deleted"):
        open_tracker(
            parse({"task": "trec6", "tracking": {"uri": uri, "experiment": "old"}}),
            command="distill",
            task_name="trec6",
            run_dir=tmp_path / "run",
            run_digest="ab12",
            warn=pytest.fail,
        )


def test_preflight_gives_up_on_a_silent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no answer" in complaints(uri=f"http://127.0.0.1:{silent.getsockname()[1]}")[0]


def test_preflight_notices_another_kind_of_server() -> None:
    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = complaints(uri=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert "not an MLflow server" in found[0]
