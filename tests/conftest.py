"""Fixtures that cost seconds are shared: one Ray for all tests in this process, one copy of the teacher's weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from potstill.config import home

# How long an example takes says more of the machine's load than of the code.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


LONGEST = (
    "test_search.py",
    "test_distill.py",
    "test_training.py",
    "test_lost_node.py",
    "test_through_endpoint.py",
    "test_http_teacher.py",
    "test_batch_recovery.py",
    "test_teacher.py",
    "test_interrupt.py",
    "test_study_whole.py",
    "test_search_nodes.py",
    "test_kill.py",
    "test_tracking.py",
    "test_gpu_nodes.py",
    "test_assess.py",
    "test_batch_pool.py",
    "test_anchor.py",
    "test_resume.py",
    "test_fits.py",
    "test_fanout.py",
    "test_llama_cpp.py",
)
"""Files that take half a minute or more: first, so that no process is left with one of them when the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the rest as they were."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the teacher's dequantised weights are: the user's place, where it is filled, since that takes 25 s."""
    mine = home() / "models"
    if mine.is_dir():
        return mine
    # The folder above is that of all processes of pytest-xdist: the first to need the weights makes them for all.
    shared = tmp_path_factory.getbasetemp().parent / f"models-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture
def potstill_home(tmp_path: Path, models: Path) -> Path:
    """A new POTSTILL_HOME with nothing in it but the teacher's weights."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "models").symlink_to(models)
    return folder


@pytest.fixture(scope="session")
def ray_cluster(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A local Ray of two CPUs, quiet, for every test of the session that needs one in its own process."""
    from jobs.runtime import cluster

    folder = tmp_path_factory.mktemp("ray") / "home"
    folder.mkdir()
    (folder / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_HOME", str(folder))  # which Ray's workers inherit
        patch.delenv("RAY_ADDRESS", raising=False)
        with cluster.connect(num_cpus=2) as ray:
            yield ray
