"""A whole search on a tiny task through the test endpoint: what it shares, what it finds, how it goes on and grows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import MAILROOM, ROOT, command, environment, write_config

from tests.endpoint.client import Endpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG: dict[str, Any] = {
    "task": {"preset": str(MAILROOM), "max_test": 10},
    "augment": {"per_class": 4, "over_generate": 1.5, "max_rounds": 1, "max_tokens": 40},
    "student": {"min_steps": 2, "epochs": 1, "second_opinion": 0, "blend": 0},
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
            timeout=600,
            check=False,
        )

    @property
    def runs(self) -> Path:
        (found,) = (self.home / "runs").glob("mailroom-search-*")
        return found

    def trials(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.runs / "trials.json").read_text())
        return found

    def table(self) -> list[tuple[Any, ...]]:
        """Points and scores, without what depends on the machine's mood."""
        return [
            (row["point"], row["status"], [(rung["per_class"], rung["kept"], rung["scores"]["macro_f1"]) for rung in row["rungs"]])
            for row in self.trials()
        ]

    def paid(self) -> Counter[str]:
        """How often each prompt was answered."""
        return Counter(
            (e.prompt, e.temperature) for e in self.endpoint.book() if e.answered and "Is water wet?" not in e.prompt
        )


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(latency_s=0.02) as running:
        yield running


@pytest.fixture(scope="module")
def finished(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Done]:
    place = Place(endpoint, tmp_path_factory.mktemp("search"))
    done = place.run("search")
    assert done.returncode == 0, done.stdout + done.stderr
    return place, done
