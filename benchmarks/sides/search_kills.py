"""The search killed at random moments and resumed: what it loses, what it pays twice, and whether its table is the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from typing import Any

import psutil

from benchmarks.sides.search_place import QUICK, ROOT, Place

KILLED_AFTER_S = (5.0, 60.0)


def kills(place: Place) -> dict[str, Any]:
    """Killed and resumed, grid at concurrency 1 against an undisturbed run, and TPE. Answers must be the endpoint's."""
    found: dict[str, Any] = {"grid": [], "tpe": []}
    space = {name: values[:2] for name, values in QUICK.items()}
    for kind in ("grid", "tpe"):
        settings = {
            "space": space,
            "searcher": kind,
            "scheduler": "none" if kind == "grid" else "auto",
            "trials": 6,
            "concurrency": 1,
            "top_k": 1,
            "repeats": 1,
            "max_validation": 50,
        }
        settings["rungs"] = 1 if kind == "grid" else 2
        path = place.config(
            f"kill-{kind}",
            settings,
            student={"workers": 1, "min_steps": 2, "epochs": 1, "second_opinion": 0, "blend": 0},
        )
        place.run(f"{kind}-undisturbed", "search", path)
        undisturbed = _table(place, f"{kind}-undisturbed")
        for number in range(1 if place.options.quick else 10):
            found[kind].append(_kill(place, path, f"{kind}-killed-{number}", undisturbed if kind == "grid" else None))
            print(kind, found[kind][-1], flush=True)
    return found


def _kill(place: Place, path: str, home: str, undisturbed: Any) -> dict[str, Any]:
    since = len(place.book())
    with subprocess.Popen(
        place.command("search", path),
        cwd=ROOT,
        env=place.environment(home),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while place.found(home) is None and process.poll() is None:
            time.sleep(0.1)
        moment = random.uniform(*KILLED_AFTER_S)
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)
        for child in family:
            if child.is_running():
                child.kill()
    before = _table(place, home)
    flying = place.asked(since) - place.answers(home)
    place.run(home, "search", path, "--resume")
    after = _table(place, home)
    done = [row for row in before if row[1] in ("finished", "stopped")]
    return {
        "moment_s": moment,
        "completed_before": len(done),
        "completed_lost": sum(row not in after for row in done),
        "same_table": None if undisturbed is None else after == undisturbed,
        "in_flight": flying,
        "paid_twice": place.asked(since) - place.answers(home),
    }


def _table(place: Place, home: str) -> list[list[Any]]:
    """Points, status and scores of a home's search."""
    run = place.found(home)
    if run is None or not (run / "trials.json").exists():
        return []
    trials = json.loads((run / "trials.json").read_text())
    return [[one["point"], one["status"], [rung["scores"]["macro_f1"] for rung in one["rungs"]]] for one in trials]
