"""Compare a search's cost with running its trials one by one, and its winner with that of the whole grid.

    python benchmarks/search.py --data-dir DIR --json cost.json --folder PLACE --answers scripted --parts search,alone,empty,kills
    python benchmarks/search.py --data-dir DIR --json regret.json --folder OTHER --answers embedded --parts search,regret
    python benchmarks/search.py --data-dir DIR --json quick.json --quick

TREC-6, shots {1, 2} x alpha.low {0.5, 0.7} x per_class {25, 50, 75, 100}. ``scripted``: the test endpoint answers over HTTP
after ``--latency-s``, so requests and seconds are meaningful but scores are not; ``embedded``: the embedded teacher.
Each finished part is written to the file and not run again; delete its entry to repeat it.

- ``requests_share``: requests of the trials / requests of the 16 configs run separately (from ``alone``, else from the
  cells of ``regret``). ``..._with_finals`` includes the finals; ``..._by_plan`` divides by the estimate of ``plan``,
  which needs no run of the 16;
- ``wall_share``: seconds of the whole search / of the 16 configs run one by one with ``distill`` and its default number
  of workers, each on an empty ledger;
- ``regret_points``: test macro-F1 of the grid's winner (by validation, three training seeds per cell) minus that of the
  search's winner, times 100;
- ``empty_trial_s``: cost of one more trial that generates nothing and trains one tiny epoch: (8 trials - 2 trials) / 6;
- ``kills``: searches repeatedly killed at random moments and resumed: equal tables, lost completed trials, requests paid
  twice beyond those in flight.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.competitors.search_kills import kills
from benchmarks.competitors.search_place import Place, open_place

PARTS = ("search", "alone", "regret", "empty", "kills")
SEEDS = 3


def main() -> None:
    """Run the parts that are not in the file yet."""
    options = _options()
    file = Path(options.json)
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    folder = Path(options.folder or tempfile.mkdtemp(prefix="potstill-search-"))
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[Place], dict[str, Any]]] = {
        "search": search,
        "alone": alone,
        "regret": regret,
        "empty": empty,
        "kills": kills,
    }
    with open_place(options, folder) as place:
        for name in options.parts.split(","):
            if name not in result:
                result[name] = parts[name](place)
                result["figures"] = figures(result)
                file.write_text(json.dumps(result, indent=2))
    print(json.dumps(result["figures"], indent=2))


def figures(result: dict[str, Any]) -> dict[str, float | None]:
    """Return the figures that the finished parts allow."""
    one, other, cells = result.get("search"), result.get("alone"), result.get("regret", {}).get("cells", [])
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
    if one and (naive := other["requests"] if other else sum(cell["requests"] for cell in cells)):
        found["requests_share"] = one["trials_asked"] / naive
        found["requests_share_with_finals"] = one["asked"] / naive
    if one and other:
        found["wall_share"] = one["seconds"] / other["seconds"]
    if "regret" in result:
        found["regret_points"] = 100 * (result["regret"]["grid_test"] - result["regret"]["search_test"])
    if "empty" in result:
        found["empty_trial_s"] = (result["empty"]["8"] - result["empty"]["2"]) / 6
    return found


def search(place: Place) -> dict[str, Any]:
    """Run the whole search on an empty ledger."""
    from jobs.run.job import prepare
    from jobs.runtime.terminal import Terminal
    from jobs.search.plan import plan_search
    from potstill.config import load

    path = place.config("search", {"searcher": "grid", "top_k": 2, "repeats": SEEDS})
    naive = plan_search(prepare(load(path), Terminal())).naive.requests
    seconds = place.run("search", "search", path)
    run = place.found("search")
    assert run is not None
    trials = json.loads((run / "trials.json").read_text())
    asked = sum(rung["usage"]["requests_new"] for trial in trials for rung in trial["rungs"])
    return {
        "seconds": seconds,
        "asked": place.answers("search"),
        "trials_asked": asked,
        "planned_alone": naive,
        "rungs": [len(trial["rungs"]) for trial in trials],
        "outcome": json.loads((run / "search.json").read_text()),
    }


def alone(place: Place) -> dict[str, Any]:
    """Run the 16 configs one by one, each on an empty ledger. Finished ones are kept, so a benchmark can resume."""
    config = place.config("alone", None)

    def distill(point: dict[str, Any], home: str) -> dict[str, Any]:
        values = [word for name, value in point.items() for word in ("--set", f"{name}={value}")]
        seconds = place.run(home, "distill", config, *values)
        return {"seconds": seconds, "requests": place.answers(home), **point}

    runs = [place.once(f"alone-{number}", partial(distill, point)) for number, point in enumerate(_points(place))]
    return {
        "seconds": sum(one["seconds"] for one in runs),
        "requests": sum(one["requests"] for one in runs),
        "runs": runs,
    }


def regret(place: Place) -> dict[str, Any]:
    """Train every cell fully with three training seeds; compare the best on validation with the search's winner on test.

    Cells are rungs of a kept search, so the same command resumes an interrupted one.
    """
    os.environ["POTSTILL_HOME"] = str(place.folder / "search")
    run = place.found("search")
    assert run is not None
    winner = json.loads((run / "trials.json").read_text())[json.loads((run / "search.json").read_text())["winner"] - 1]
    points, cells = _points(place), []
    with _scene(place, place.config("search", {"searcher": "grid"})) as scene:
        for start in range(0, len(points), scene.placement.concurrency):
            cells += _whole_cells(scene, points[start : start + scene.placement.concurrency])
            print(cells[-1], flush=True)
    best = max(cells, key=lambda cell: cell["validation"])
    chosen = next(cell for cell in cells if cell["point"] == winner["point"])
    return {"grid_test": best["test"], "search_test": chosen["test"], "cells": cells}


def _whole_cells(scene: Any, points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run cells concurrently, like trials.

    Returns each cell's mean macro-F1 over training seeds on validation and test, and the requests it needs alone.
    """
    import ray

    from jobs.run.folder import Run
    from jobs.search.trial import run_rung
    from jobs.stages import finetune
    from potstill.measures.baselines import as_predictions
    from potstill.measures.scores import score
    from potstill.search import points as search_points
    from potstill.search.placement import TRIAL_CPUS

    task = ray.remote(run_rung).options(num_cpus=TRIAL_CPUS)
    configs = [search_points.apply(scene.config, point) for point in points]
    asked = [
        task.remote(scene, config, f"regret-{search_points.digest(point)}", repeats=SEEDS, keep=True)
        for point, config in zip(points, configs, strict=True)
    ]
    cells = []
    for point, config, result in zip(points, configs, ray.get(asked), strict=True):
        labels = list(scene.task.labels)
        folders = {
            name: f"{config.storage}/students/{one}/model"
            for name, one in Run(f"{scene.run.path}/runs", result.run).read_json("students").items()
            if name.startswith(finetune.DISTILLED)
        }
        texts, length = [text.text for text in scene.data.test], config.student.max_length
        probs = ray.get(scene.search_workers.predict.remote(folders, texts, labels, length, scene.placement.device))
        test = [
            score(as_predictions(scene.data.test, one, labels), labels, resamples=100).macro_f1.value
            for one in probs.values()
        ]
        cells.append(
            {
                "point": point,
                "validation": result.scores["macro_f1"],
                "test": sum(test) / len(test),
                "requests": result.usage["requests"],
            }
        )
    return cells


def empty(place: Place) -> dict[str, Any]:
    """Time 2 and 8 trials that send no requests and train one step each, with Ray and the training process running."""
    from jobs.search.table import TrialTable
    from jobs.search.tuning import Listener, run_trials
    from potstill.search.ending import Ending

    os.environ["POTSTILL_HOME"] = str(place.folder / "empty")
    decays = [round(0.001 * number, 4) for number in range(1, 11)]
    base = {
        "augment": {"per_class": 2, "over_generate": 1.0, "max_rounds": 1},
        "student": {"workers": 1, "min_steps": 1, "epochs": 1, "second_opinion": 0, "blend": 0},
    }
    quiet = Listener(lambda trial: None, lambda trial: None, lambda trial: None)
    seconds = {}
    path = place.config(
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
    with _scene(place, path) as scene:
        # The first run fills the ledger and warms up the kept processes; the others use different decays.
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


def _points(place: Place) -> list[dict[str, Any]]:
    return [dict(zip(place.space, values, strict=True)) for values in itertools.product(*place.space.values())]


@contextmanager
def _scene(place: Place, path: str) -> Iterator[Any]:
    """Set up what trials need, as ``jobs.search.run`` does, without a search."""
    from actors.ledger.handle import Ledger
    from actors.search_workers import start_search_workers
    from jobs.run.folder import Run
    from jobs.run.job import prepare
    from jobs.runtime import cluster, paths
    from jobs.runtime.terminal import Terminal
    from jobs.search import run as search
    from jobs.search.trial import Scene
    from jobs.search.validation import make_validation
    from potstill.config import load
    from potstill.search.placement import place as find_room

    config = paths.make_absolute(load(path))
    job = prepare(config, Terminal())
    job = replace(job, run=Run(config.storage, search.name_search(job)))
    with cluster.connect() as ray:
        placement, found = find_room(config, cluster.resources(), 16)
        assert placement is not None, found
        ledger = Ledger(config.ledger.uri)
        workshop = start_search_workers(placement, config.teacher, ledger, f"{job.run.path}/logs")
        ray.get(workshop.start.remote())
        validation = make_validation(job, workshop, ledger)
        try:
            yield Scene(config, job.task, job.data, validation, job.run, workshop, ledger, placement)
        finally:
            ray.get(workshop.close.remote())
            ray.kill(workshop)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of tasks, DIR/trec6/{train,test}.parquet")
    parser.add_argument("--json", required=True, help="file of figures; parts already in it are not run again")
    parser.add_argument("--folder", help="folder that keeps the homes, to resume a benchmark; default: a new one")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--answers", choices=("embedded", "scripted"), default="embedded")
    parser.add_argument("--latency-s", type=float, default=0.2, help="latency of scripted answers")
    parser.add_argument("--killed", default="grid,tpe", help="searchers of the kills part")
    parser.add_argument("--quick", action="store_true", help="smoke run: few texts, one tiny epoch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
