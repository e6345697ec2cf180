"""Optuna behind Ray Tune: known trials are replayed first, no point is suggested twice, the objective is learned."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.run.folder import Run
from jobs.search import tuning
from jobs.search.table import TrialTable
from jobs.search.trial import RungResult
from potstill.config import Config, parse
from potstill.search import points as search_points
from potstill.search.ending import Ending

pytestmark = pytest.mark.slow  # the imports of Ray Tune and Optuna

SPACE = {"augment.shots": [1, 2], "augment.alpha.beta": [[5, 2], [1, 1]], "augment.alpha.low": [0.5, 0.6, 0.7]}


def config(**search: Any) -> Config:
    return parse({"task": "demo", "search": {"space": SPACE, "trials": 12, **search}})


def suggest_all(found: Any, wanted: Config, score: Any, most: int = 50) -> list[dict[str, Any]]:
    """All suggested points in order; the search receives each one's score."""
    from ray.tune.search import Searcher

    points = []
    for number in range(most):
        suggested = found.suggest(f"t{number}")
        if suggested == Searcher.FINISHED:
            break
        point = search_points.decode(wanted.search, suggested)
        points.append(point)
        found.on_trial_complete(f"t{number}", {name: score(point) for name in wanted.search.objective})
    return points


def test_each_point_of_a_finite_space_is_tried_once(tmp_path: Path) -> None:
    wanted = config()
    found = tuning._optuna(wanted, TrialTable(Run(str(tmp_path), "t")))
    points = suggest_all(found, wanted, lambda point: point["augment.alpha.low"])
    names = list(map(search_points.digest, points))
    assert len(names) == len(set(names)) == 12


def test_known_trials_come_first_in_their_order(tmp_path: Path) -> None:
    wanted = config()
    table = TrialTable(Run(str(tmp_path), "t"))
    tried = list(search_points.grid(wanted.search))[5:9]
    for point in tried:
        table.begin(point)
    points = suggest_all(tuning._optuna(wanted, table), wanted, lambda point: 0.5)
    assert points[:4] == tried
    assert len(points) == 12


def test_tpe_beats_random_search(tmp_path: Path) -> None:
    wanted = parse(
        {"task": "demo", "search": {"space": {"augment.temperature": {"uniform": [0.1, 2.0]}}, "trials": 30}}
    )
    found = tuning._optuna(wanted, TrialTable(Run(str(tmp_path), "t")))
    points = suggest_all(found, wanted, lambda point: -abs(point["augment.temperature"] - 1.7), most=30)
    late = [abs(point["augment.temperature"] - 1.7) for point in points[15:]]
    assert sum(late) / len(late) < 0.4  # 0.77 by chance


def test_several_objectives_are_asked_for_by_name(tmp_path: Path) -> None:
    wanted = config(objective=["macro_f1", "tokens"])
    found = tuning._optuna(wanted, TrialTable(Run(str(tmp_path), "t")))
    assert found.metric == ["macro_f1", "tokens"]
    assert len(suggest_all(found, wanted, lambda point: 0.5)) == 12


@pytest.mark.parametrize(
    "content",
    [
        {"choice": [1, 2]},
        {"uniform": [0.5, 0.9]},
        {"uniform": [0.5, 0.95], "step": 0.2},
        {"randint": [3, 10], "step": 2},
        {"loguniform": [1e-5, 1e-3]},
    ],
)
def test_optuna_draws_what_the_range_holds(content: dict[str, Any]) -> None:
    import optuna

    from potstill.config.search import Range

    one = Range(**content)
    distribution = tuning.distribution(one)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(30):
        value = study.ask({"x": distribution}).params["x"]
        listed = one.values()
        if listed is not None:
            assert min(abs(value - other) for other in listed) < 1e-9
        else:
            assert one.ends[0] <= value <= one.ends[1]


RUNGS = {"rungs": 2, "searcher": "grid", "scheduler": "asha"}


def result(wanted: Config, number: int, macro_f1: float, spent: float = 0.0) -> dict[str, Any]:
    """A trial's report of a rung, as Tune passes it on."""
    scores = {"macro_f1": macro_f1, "accuracy": macro_f1, "cost_usd": spent, "tokens": 1.0, "training_s": 1.0}
    usage = {"requests": 2.0, "requests_new": 1.0, "cost_usd_new": spent, "tokens_new": 1.0}
    found = RungResult(f"k{number}-{spent}", "run", 4, 1, scores, 0.0, 1.0, (macro_f1,), usage, 8, {"train": 1.0}, ())
    return {"rung": number, "macro_f1": macro_f1, "result": asdict(found)}


class RecordingListener:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.listener = tuning.Listener(
            lambda trial: self.words.append(f"began {trial.number}"),
            lambda trial: self.words.append(f"rung {trial.number}.{len(trial.rungs)}"),
            lambda trial: self.words.append(f"ended {trial.number} {trial.status}"),
        )


def watch(wanted: Config, folder: Path, ending: Ending) -> tuple[Any, TrialTable, RecordingListener, list[Any]]:
    points = search_points.fixed_points(wanted.search)
    table, heard = TrialTable(Run(str(folder), "t")), RecordingListener()
    trials = [SimpleNamespace(trial_id=f"t{i}", config={"number": i}) for i in range(len(points or ()))]
    return tuning._make_watch(wanted, points, table, ending, heard.listener), table, heard, trials


def test_the_table_follows_the_trials(tmp_path: Path) -> None:
    wanted = config(**RUNGS)
    watching, table, heard, (one, two, *_) = watch(wanted, tmp_path, Ending())
    for trial in (one, two):
        watching.on_trial_start(0, [], trial)
    watching.on_trial_result(0, [], one, result(wanted, 0, 0.5))
    watching.on_trial_result(0, [], two, result(wanted, 0, 0.4))
    watching.on_trial_complete(0, [], two)  # ASHA stopped it
    watching.on_trial_result(0, [], one, result(wanted, 1, 0.6))
    watching.on_trial_complete(0, [], one)
    assert heard.words == [
        "began 1", "began 2", "rung 1.1", "rung 2.1", "ended 2 stopped", "rung 1.2", "ended 1 finished",
    ]  # fmt: skip
    assert [trial.status for trial in TrialTable.load(Run(str(tmp_path), "t")).trials] == ["finished", "stopped"]
    # A resumed search replays the same results: no new rungs.
    again, same, silent, (one, *_) = watch(wanted, tmp_path, Ending())
    same._by_key = table._by_key
    again.on_trial_start(0, [], one)
    for number in (0, 1):
        again.on_trial_result(0, [], one, result(wanted, number, 0.99))
    again.on_trial_complete(0, [], one)
    assert silent.words == ["began 1", "ended 1 finished"]
    assert same.trials[0].scores["macro_f1"] == 0.6


def test_three_equal_failures_end_the_search_and_are_retried_in_the_next_run(tmp_path: Path) -> None:
    wanted, ending = config(**RUNGS), Ending()
    watching, table, heard, trials = watch(wanted, tmp_path, ending)
    for trial in trials[:3]:
        assert not watching.stopper.stop_all()
        watching.on_trial_start(0, [], trial)
        watching.on_trial_result(0, [], trial, {"rung": 0, "macro_f1": float("nan"), "error": "no such model"})
        watching.on_trial_complete(0, [], trial)
    assert watching.stopper.stop_all()
    assert ending.error == "no such model"
    assert heard.words[-1] == "ended 3 failed"
    again, same, _, trials = watch(wanted, tmp_path, Ending())
    same._by_key = table._by_key
    again.on_trial_start(0, [], trials[0])
    assert (same.trials[0].status, same.trials[0].error) == ("running", None)


def test_running_trials_are_not_stopped_when_the_budget_is_spent(tmp_path: Path) -> None:
    wanted, ending = config(**RUNGS), Ending(budget_usd=0.3)
    watching, table, _, (one, two, *_) = watch(wanted, tmp_path, ending)
    for trial, spent in ((one, 0.1), (two, 0.25)):
        watching.on_trial_start(0, [], trial)
        watching.on_trial_result(0, [], trial, result(wanted, 0, 0.5, spent))
    assert watching.stopper.stop_all()
    for trial in (one, two):
        watching.on_trial_complete(0, [], trial)
    assert [trial.status for trial in table.trials] == ["running", "running"]  # the next run resumes them
    assert "search.budget_usd" in (ending.reason or "")


def test_tune_can_pickle_its_arguments(tmp_path: Path) -> None:
    import cloudpickle

    watching, *_ = watch(config(**RUNGS), tmp_path, Ending())
    cloudpickle.loads(cloudpickle.dumps([watching, watching.stopper]))
    cloudpickle.loads(cloudpickle.dumps(tuning._optuna(config(), TrialTable(Run(str(tmp_path), "t")))))
