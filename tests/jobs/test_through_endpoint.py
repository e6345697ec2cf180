"""The whole job through an HTTP endpoint that requires a key: its book against the ledger, and the key in no file.

The student is tiny: tests/jobs/test_distill.py covers the rest of the job and a second run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.endpoint.book import Entry
from tests.endpoint.client import Endpoint
from tests.support.command_line import MAILROOM, ROOT, command, environment, write_config
from tests.support.tiny_student import make_student

pytestmark = pytest.mark.slow

KEY = "sk-proj-Vy7mQ2xkT9-nowhere-else-4Zr8"
Done = subprocess.CompletedProcess[str]

# One cluster for all commands; its workers have the key from the node's environment, as on a real one.
HEAD = """
import sys
from jobs.runtime import cluster
with cluster.connect(num_cpus=2) as ray:
    print("address", ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""
# What the cluster reports of the job while the teachers run.
RECORDS = """
import sys
from ray.util import state
from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool
from jobs.runtime import cluster
from potstill.config import load
config = load(sys.argv[1])
with cluster.connect(), TeacherPool(config.teacher, Ledger(config.ledger.uri)) as pool:
    pool.start()
    for records in (state.list_jobs, state.list_actors, state.list_workers, state.list_runtime_envs, state.list_tasks):
        print(records.__name__, [one.asdict() for one in records(detail=True)])
"""


@dataclass(frozen=True)
class Place:
    """Where a job of this test runs and writes. ``ray``: Ray's session folders; ``outputs``: what commands printed."""

    endpoint: Endpoint
    folder: Path
    ray: Path
    variables: dict[str, str]
    outputs: list[str]

    def run(self, *arguments: str) -> Done:
        """A command with the key in its environment."""
        done = subprocess.run(
            arguments, cwd=ROOT, env=self.variables, capture_output=True, text=True, timeout=600, check=False
        )
        self.outputs.append(done.stdout + done.stderr)
        return done

    def asked(self) -> list[Entry]:
        """The endpoint's entries of the job, without trial requests."""
        return [e for e in self.endpoint.book() if e.route == "chat" and "Is water wet?" not in e.prompt]


@contextlib.contextmanager
def head(variables: dict[str, str]) -> Iterator[str]:
    """A running cluster, by its address."""
    with subprocess.Popen(
        [sys.executable, "-c", HEAD], cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield next(line for line in lines if line.startswith("address ")).split()[1]
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("through")
    (folder / "tmp").mkdir()
    (folder / "home").mkdir()
    (folder / "home/models").symlink_to(models)
    # Ray's sockets lie in its folder, and a socket's path may not exceed 107 characters: pytest's folders are too deep.
    ray = Path(tempfile.mkdtemp(prefix="potstill-ray-"))
    (folder / "token").write_text("0123456789abcdef" * 4)  # other processes must not join this cluster
    variables = environment(
        folder / "home",
        MAILROOM_KEY=KEY,
        RAY_TMPDIR=str(ray),
        TMPDIR=str(folder / "tmp"),
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(folder / "token"),
    )
    with Endpoint(keys=(KEY,), latency_s=0.01) as endpoint, head(variables) as address:
        content = {
            "task": {"preset": str(MAILROOM), "max_test": 10},
            "augment": {"per_class": 3, "over_generate": 1.5, "max_rounds": 1, "max_tokens": 40},
            "student": {"model": make_student(folder / "bert"), "min_steps": 2, "epochs": 1, "workers": 1},
            "evaluate": {"compare": []},
            "teacher": {
                "kind": "openai",
                "model": "scripted-1",
                "base_url": endpoint.base_url,
                "api_key_env": "MAILROOM_KEY",
                "requests_per_minute": 60_000,
                "price": {"prompt": 1.0, "completion": 2.0},
            },
        }
        write_config(folder / "config.yaml", content)
        yield Place(endpoint, folder, ray, {**variables, "RAY_ADDRESS": address}, [])
    shutil.rmtree(ray, ignore_errors=True)


@pytest.fixture(scope="module")
def distilled(place: Place) -> Place:
    """The place after the whole job."""
    done = place.run(*command("distill", str(place.folder / "config.yaml")))
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture(scope="module")
def refused(distilled: Place) -> tuple[Place, Done]:
    """The same after a job whose key the endpoint refuses, quoting it whole."""
    distilled.endpoint.script(keys=("another",), echo_key=True)
    arguments = command("generate", str(distilled.folder / "config.yaml"), "--set", "seed=1", "--verbose")
    return distilled, distilled.run(*arguments)


@pytest.fixture(scope="module")
def recorded(refused: tuple[Place, Done]) -> tuple[Place, Done]:
    """What Ray knows of a pool of teachers that hold the key."""
    place, _ = refused
    place.endpoint.script(keys=(KEY,))
    return place, place.run(sys.executable, "-c", RECORDS, str(place.folder / "config.yaml"))


def test_the_book_and_the_ledger_agree(distilled: Place) -> None:
    with sqlite3.connect(f"file:{distilled.folder}/home/ledger.db?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT request, prompt_tokens, completion_tokens, stage FROM responses").fetchall()
    entries = distilled.asked()
    assert all(entry.answered for entry in entries)
    prompts = Counter(json.loads(row[0])["messages"][-1]["content"][:2000] for row in rows)
    assert prompts == Counter(entry.prompt for entry in entries)
    assert sum(row[1] + row[2] for row in rows) == sum(e.prompt_tokens + e.completion_tokens for e in entries)
    assert {row[3] for row in rows} >= {"generate", "relabel"}
    assert "core_worker" not in distilled.outputs[0]  # Ray's own messages are not shown


def test_a_refused_key_is_one_line_that_does_not_quote_it(refused: tuple[Place, Done]) -> None:
    _, done = refused
    assert done.returncode == 1
    assert "teacher.api_key_env = 'MAILROOM_KEY'" in done.stderr
    assert "Incorrect API key provided: ***" in done.stderr


def test_the_key_is_in_nothing_that_was_written(recorded: tuple[Place, Done]) -> None:
    place, done = recorded
    assert done.returncode == 0, done.stderr
    assert "HttpTeacherActor" in done.stdout
    for output in place.outputs:
        assert KEY not in output
    files = [file for root in (place.folder, place.ray) for file in root.rglob("*") if file.is_file()]
    names = {file.name for file in files}
    # The searched files must exist, or the test proves nothing.
    assert {"ledger.db", "mlflow.db", "config.yaml", "gcs_server.out", "raylet.out"} <= names
    assert any("runs" in file.parts and file.suffix == ".parquet" for file in files)
    assert any("mlartifacts" in file.parts for file in files)
    assert any(name.startswith("python-core-driver") for name in names)
    assert any("HttpTeacherActor" in file.read_text(errors="replace") for file in files if "logs" in file.parts)
    leaking = [str(file) for file in files if not file.is_symlink() and KEY.encode() in file.read_bytes()]
    assert leaking == []
