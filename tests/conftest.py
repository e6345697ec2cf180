"""Shared expensive fixtures: one Ray for all tests in this process, one copy of the teacher's weights."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from potstill.config import home

# The same examples on every run, and no deadline, since the machine may be shared.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


FOLDER = Path(__file__).parent
DURATIONS = FOLDER / "durations.json"
"""Seconds per test file, written by ``pytest --record-durations``. Files under a second are omitted."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-durations",
        action="store_true",
        help="note the seconds of each file in tests/durations.json; without -n, on an idle machine",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())


def read_durations() -> dict[str, float]:
    return json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}


class Recorder:
    """Updates the durations of the files that ran and keeps the others."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.split("::")[0].removeprefix("tests/")] += report.duration

    def pytest_sessionfinish(self) -> None:
        merged = {**read_durations(), **{name: round(seconds) for name, seconds in self.seconds.items()}}
        longest_first = sorted(merged.items(), key=lambda item: (-item[1], item[0]))
        kept = {name: seconds for name, seconds in longest_first if seconds and (FOLDER / name).exists()}
        DURATIONS.write_text(json.dumps(kept, indent=2) + "\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that none is still running when the other processes have finished."""
    durations = read_durations()
    items.sort(key=lambda item: -durations.get(item.path.relative_to(FOLDER).as_posix(), 0.0))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the teacher's dequantised weights: the user's if present, since dequantising takes 25 s."""
    mine = home() / "models"
    if mine.is_dir():
        return mine
    # All pytest-xdist processes share the parent folder: the first to need the weights writes them for all.
    shared = tmp_path_factory.getbasetemp().parent / f"models-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture
def potstill_home(tmp_path: Path, models: Path) -> Path:
    """A new POTSTILL_HOME that contains only the teacher's weights."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "models").symlink_to(models)
    return folder


@pytest.fixture(scope="session")
def ray_cluster(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A quiet local Ray with two CPUs, shared by the session's tests that need one in this process."""
    from jobs.runtime import cluster

    folder = tmp_path_factory.mktemp("ray") / "home"
    folder.mkdir()
    (folder / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_HOME", str(folder))  # inherited by Ray's workers
        patch.delenv("RAY_ADDRESS", raising=False)
        with cluster.connect(num_cpus=2) as ray:
            yield ray
