"""The search benchmark's environment: homes, configs, commands and the source of answers.

The embedded teacher runs in its own processes with its own prompts: over HTTP it would get chat prompts, which a model of
135M parameters handles badly (6 usable lines of 30). Scripted answers come from the test endpoint over HTTP after
``latency_s``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.endpoint.book import Entry
from tests.endpoint.client import Endpoint

ROOT = Path(__file__).resolve().parents[2]
WHOLE: dict[str, list[Any]] = {
    "augment.shots": [1, 2],
    "augment.alpha.low": [0.5, 0.7],
    "augment.per_class": [25, 50, 75, 100],
}
QUICK: dict[str, list[Any]] = {
    "augment.shots": [1, 2],
    "augment.alpha.low": [0.5, 0.7],
    "augment.per_class": [3, 6, 9, 12],
}


@dataclass(frozen=True)
class Place:
    """A folder of homes and configs. ``endpoint`` gives scripted answers; None if the embedded teacher answers."""

    options: argparse.Namespace
    folder: Path
    endpoint: Endpoint | None

    @property
    def space(self) -> dict[str, list[Any]]:
        return QUICK if self.options.quick else WHOLE

    def config(self, name: str, search: dict[str, Any] | None, **changes: Any) -> str:
        """Write a config file and return its path."""
        quick = self.options.quick
        content: dict[str, Any] = {
            "task": {
                "preset": "trec6",
                "data_dir": str(Path(self.options.data_dir).resolve()),
                "max_test": 100 if quick else None,
            },
            "teacher": self._teacher(),
            "student": {"min_steps": 4, "epochs": 1} if quick else {},
            "evaluate": {"compare": []},
            "tracking": {"uri": "none"},
            **changes,
        }
        if search is not None:
            content["student"] = {"workers": 1, **content["student"]}
            content["search"] = {"space": self.space, "scheduler": "asha", "trials": 16, **search}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    def _teacher(self) -> dict[str, Any]:
        if self.endpoint is None:
            return {"kind": "embedded"}
        return {
            "kind": "openai",
            "model": "scripted-1",
            "base_url": self.endpoint.base_url,
            "provider": "search-benchmark",  # constant, since the endpoint's port changes
            "api_key_env": "",
            "requests_per_minute": 60_000,
            "price": {"prompt": 1.0, "completion": 2.0},
        }

    def run(self, home: str, *arguments: str) -> float:
        """Run a command with the given home; return its seconds."""
        started = time.monotonic()
        subprocess.run(self.command(*arguments), cwd=ROOT, env=self.environment(home), check=True)
        return time.monotonic() - started

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "jobs", *arguments, "--yes"]

    def environment(self, home: str) -> dict[str, str]:
        """Return this process's environment with another home that shares the user's unpacked teacher weights."""
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        place = self.folder / home
        place.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (self.folder / "models").mkdir(exist_ok=True)
            (place / "models").symlink_to(self.folder / "models")
        return {**kept, "POTSTILL_HOME": str(place), "COLUMNS": "160"}

    def once(self, home: str, work: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of ``work``, stored in the home so an interrupted benchmark can resume."""
        done = self.folder / home / "done.json"
        if not done.exists():
            shutil.rmtree(self.folder / home, ignore_errors=True)
            done.write_text(json.dumps(work(home)))
        found: dict[str, Any] = json.loads(done.read_text())
        return found

    def asked(self, since: int) -> int:
        """Count the requests answered from entry ``since`` of the endpoint's log on, without capability probes."""
        return sum(
            entry.answered and entry.route == "chat" and "Is water wet?" not in entry.prompt
            for entry in self.book(since)
        )

    def book(self, since: int = 0) -> list[Entry]:
        """Return the endpoint's log."""
        if self.endpoint is None:
            raise SystemExit("this part counts requests at the endpoint; it needs --answers scripted")
        return self.endpoint.book(since)

    def answers(self, home: str) -> int:
        """Count the answers in a home's ledger; equals the requests sent if there was no kill."""
        place = self.folder / home / "ledger.db"
        if not place.exists():
            return 0
        with sqlite3.connect(f"file:{place}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM responses").fetchone()[0])

    def found(self, home: str) -> Path | None:
        """Return the folder of a home's search; None if there is none."""
        return next((self.folder / home / "runs").glob("trec6-search-*"), None)


@contextlib.contextmanager
def open_place(options: argparse.Namespace, folder: Path) -> Iterator[Place]:
    """Open the place, with the endpoint running if answers are scripted."""
    if options.answers == "embedded":
        yield Place(options, folder, None)
        return
    with Endpoint(latency_s=options.latency_s) as endpoint:
        yield Place(options, folder, endpoint)
