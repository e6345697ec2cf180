"""The search killed at random moments and resumed: what it loses, what it pays twice, and whether its table is the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from functools import partial
from typing import Any

import psutil

from benchmarks.sides.search_place import QUICK, ROOT, Place

TIMES = 10
EARLIEST_S = 3.0  # after the search's folder is there
LATEST = 0.75  # of the seconds of a whole search: that folder comes some time after the start


def kills(place: Place) -> dict[str, Any]:
    """Killed and resumed, grid at concurrency 1 against an undisturbed run, and TPE. Answers must be the endpoint's."""
    found: dict[str, Any] = {}
    space = {name: values[:2] for name, values in QUICK.items()}
    for kind in place.options.killed.split(","):
        found[kind] = []
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
        whole = place.once(f"{kind}-undisturbed", lambda home, path=path: {"seconds": place.run(home, "search", path)})
        undisturbed = _table(place, f"{kind}-undisturbed") if kind == "grid" else None
        for number in range(1 if place.options.quick else TIMES):
            kill = partial(_kill, place, path, whole["seconds"], undisturbed)
            found[kind].append(place.once(f"{kind}-killed-{number}", kill))
            print(kind, found[kind][-1], flush=True)
    return found


def _kill(place: Place, path: str, whole_s: float, undisturbed: Any, home: str) -> dict[str, Any]:
    """Killed at a random moment of the ``whole_s`` seconds that a search takes, and resumed."""
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
        moment = random.uniform(EARLIEST_S, LATEST * whole_s)
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        alive = process.poll() is None
        family = psutil.Process(process.pid).children(recursive=True) if alive else []
        if alive:
            os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)
        for child in family:
            if child.is_running():
                child.kill()
    before = _table(place, home)
    flying = place.asked(since) - place.answers(home)
    place.run(home, "search", path)  # without --resume, which complains where no trial had begun
    after = _table(place, home)
    done = [row for row in before if row[1] in ("finished", "stopped")]
    return {
        "killed": alive,
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
