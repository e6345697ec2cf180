"""Kill searches at random moments and resume them: lost trials, requests paid twice, equality of their tables."""

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

from benchmarks.competitors.search_place import QUICK, ROOT, Place

TIMES = 10
EARLIEST_S = 3.0  # after the search's folder appears
LATEST = 0.75  # share of the seconds of a whole search; the folder appears some time after the start


def kills(place: Place) -> dict[str, Any]:
    """Kill and resume a grid at concurrency 1 (compared with an undisturbed run) and TPE. Requires scripted answers."""
    found: dict[str, Any] = {}
    space = {name: values[:2] for name, values in QUICK.items()}
    for kind in place.options.killed.split(","):
        found[kind] = []
        settings: dict[str, Any] = {
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
        whole = place.once(f"{kind}-undisturbed", partial(_whole, place, path))
        undisturbed = _table(place, f"{kind}-undisturbed") if kind == "grid" else None
        left = 1 if place.options.quick else TIMES
        while left > 0:
            again = partial(_kill_until_done, place, path, whole["seconds"], undisturbed, left)
            found[kind].append(place.once(f"{kind}-killed-{len(found[kind])}", again))
            left -= len(found[kind][-1]["moments_s"])
            print(kind, found[kind][-1], flush=True)
    return found


def _whole(place: Place, path: str, home: str) -> dict[str, Any]:
    return {"seconds": place.run(home, "search", path)}


def _kill_until_done(
    place: Place, path: str, whole_s: float, undisturbed: Any, times: int, home: str
) -> dict[str, Any]:
    """Kill one search at random moments, at most ``times``, until a resumed run finishes."""
    since, flying = len(place.book()), 0
    moments: list[float] = []
    done: list[list[Any]] = []
    while len(moments) < times:
        moment = random.uniform(EARLIEST_S, LATEST * whole_s)
        if not _kill(place, path, moment, home):
            break
        moments.append(moment)
        done += [row for row in _table(place, home) if row[1] in ("finished", "stopped") and row not in done]
        flying = place.asked(since) - place.answers(home)  # over all kills so far
    else:
        place.run(home, "search", path)  # without --resume, which fails if no trial had begun
    after = _table(place, home)
    return {
        "moments_s": moments,
        "completed_before": len(done),
        "completed_lost": sum(row not in after for row in done),
        "same_table": None if undisturbed is None else after == undisturbed,
        "in_flight": flying,
        "paid_twice": place.asked(since) - place.answers(home),
    }


def _kill(place: Place, path: str, moment: float, home: str) -> bool:
    """Start or resume the search, kill it ``moment`` seconds after its folder appears; False if it ended before."""
    with subprocess.Popen(
        place.command("search", path),
        cwd=ROOT,
        env=place.environment(home),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while place.found(home) is None and process.poll() is None:
            time.sleep(0.1)
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        if process.poll() is not None:
            if process.returncode:
                raise SystemExit(f"the search in {home} ended with exit code {process.returncode}")
            return False
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)
        for child in family:
            if child.is_running():
                child.kill()
    return True


def _table(place: Place, home: str) -> list[list[Any]]:
    """Return points, status and scores of a home's search."""
    run = place.found(home)
    if run is None or not (run / "trials.json").exists():
        return []
    trials = json.loads((run / "trials.json").read_text())
    return [[one["point"], one["status"], [rung["scores"]["macro_f1"] for rung in one["rungs"]]] for one in trials]
