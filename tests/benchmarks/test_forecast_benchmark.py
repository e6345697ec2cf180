"""The arithmetic of benchmarks/forecast.py against a slow reference."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import forecast

from jobs.runtime.terminal import Terminal
from potstill import draws
from potstill.errors import InputError
from potstill.study.config import load
from potstill.study.forecast import FEWEST, FEWEST_FOR_TWO, PREDICTORS, Studied


def made_up(count: int, slope: float = -0.4) -> list[Studied]:
    """Tasks whose gap depends on alpha, with noise."""
    random = np.random.default_rng(count)
    found = []
    for number in range(count):
        alpha, entropy, noise = random.uniform(size=3)
        gap = -0.1 + slope * alpha + 0.1 * noise
        found.append(Studied(f"task{number}", float(gap), {"alpha": float(alpha), "entropy": float(entropy)}))
    return found


def left_out(tasks: list[Studied], names: tuple[str, ...]) -> list[float]:
    """One forecast per task, from the normal equations of the other tasks."""
    said = []
    for one in tasks:
        rest = [other for other in tasks if other is not one]
        x = np.array([[1.0, *(other.diagnostics[name] for name in names)] for other in rest])
        line = np.linalg.inv(x.T @ x) @ x.T @ np.array([other.gap for other in rest])
        said.append(float(line @ [1.0, *(one.diagnostics[name] for name in names)]))
    return said


@pytest.mark.parametrize("count", [FEWEST, FEWEST_FOR_TWO - 1, FEWEST_FOR_TWO, 14])
def test_the_figures_are_what_a_loop_finds(count: int) -> None:
    tasks = made_up(count)
    names = PREDICTORS if count >= FEWEST_FOR_TWO else PREDICTORS[:1]
    figures = forecast.judge(tasks)
    assert (figures["tasks"], figures["predictors"]) == (count, list(names))
    said = left_out(tasks, names)
    errors = [abs(value - one.gap) for value, one in zip(said, tasks, strict=True)]
    of_mean = [abs(statistics.fmean(o.gap for o in tasks if o is not one) - one.gap) for one in tasks]
    assert figures["error"] == pytest.approx(statistics.fmean(errors))
    assert figures["error_of_mean"] == pytest.approx(statistics.fmean(of_mean))
    assert [row["forecast"] for row in figures["rows"]] == pytest.approx(said)
    assert [row["error"] for row in figures["rows"]] == pytest.approx(errors)

    less, rhos = [], []
    for pick in draws.generator(0, "forecast").integers(count, size=(forecast.RESAMPLES, count)):
        less.append(statistics.fmean(errors[i] - of_mean[i] for i in pick))
        if len(set(pick.tolist())) > 1:
            ranks = [rankdata([values[i] for i in pick]) for values in (said, [one.gap for one in tasks])]
            rhos.append(pearsonr(*ranks).statistic)
    found = figures["error_minus_mean"]
    assert found["value"] == pytest.approx(statistics.fmean(errors) - statistics.fmean(of_mean))
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(less, [0.025, 0.975]).tolist())
    found = figures["rank_correlation"]
    assert found["rho"] == pytest.approx(pearsonr(rankdata(said), rankdata([one.gap for one in tasks])).statistic)
    assert 0.0 <= found["p"] <= 1.0
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(rhos, [0.025, 0.975]).tolist())


def test_only_informative_votes_beat_the_mean() -> None:
    telling = forecast.judge(made_up(14, slope=-1.0))
    assert telling["error_minus_mean"]["high"] < 0
    assert telling["rank_correlation"]["low"] > 0
    silent = forecast.judge(made_up(14, slope=0.0))
    assert silent["error_minus_mean"]["high"] > 0


def test_too_few_tasks_give_rows_without_figures(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = made_up(FEWEST)
    tasks[1] = Studied("no alpha", -0.2, {"entropy": 0.5})
    figures = forecast.judge(tasks)
    assert figures["tasks"] == FEWEST - 1
    assert all(figures[name] is None for name in ("error", "error_of_mean", "error_minus_mean", "rank_correlation"))
    assert [row["gap"] for row in figures["rows"]] == [one.gap for one in tasks]
    assert (figures["rows"][1]["alpha"], figures["rows"][1]["forecast"]) == (None, None)
    assert f"{FEWEST - 1} of {FEWEST} tasks have all inputs" in shown(figures, capsys)
    assert f"{FEWEST} tasks, by alpha: mean error" in shown(forecast.judge(made_up(FEWEST)), capsys)


def former(path: Path, settings: dict[str, Any], tasks: list[Studied]) -> Path:
    """A file as ``--json`` writes it."""
    rows = [{**row, "texts": 50, "earlier": False} for row in forecast.judge(tasks)["rows"]]
    path.write_text(json.dumps({"settings": settings, "rows": rows}))
    return path


def test_tasks_of_an_earlier_file_are_read_as_they_were_written(tmp_path: Path) -> None:
    tasks = [*made_up(FEWEST), Studied("no alpha", -0.2, {"entropy": 0.5})]
    settings = forecast.to_settings(load(forecast.CONFIG, []))
    found = forecast.read_earlier(former(tmp_path / "forecast.json", settings, tasks), settings)
    assert [one for one, _ in found.values()] == tasks
    assert {texts for _, texts in found.values()} == {50}


def test_an_earlier_file_of_other_settings_or_another_format_is_refused(tmp_path: Path) -> None:
    settings = forecast.to_settings(load(forecast.CONFIG, []))
    path = former(tmp_path / "forecast.json", forecast.to_settings(load(forecast.CONFIG, ["max_test=200"])), made_up(5))
    with pytest.raises(InputError, match=r"another max_test than this run"):
        forecast.read_earlier(path, settings)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"--earlier = .* is not a --json file of this script"):
        forecast.read_earlier(path, settings)


def test_an_earlier_file_is_judged_in_full_in_part_and_without_each_task(tmp_path: Path) -> None:
    tasks = made_up(FEWEST + 1)
    path = former(tmp_path / "forecast.json", forecast.to_settings(load(forecast.CONFIG, [])), tasks)
    whole = forecast.measure_again(path, None)
    assert whole["error"] == forecast.judge(tasks)["error"]
    assert whole["without"]["task0"]["error"] == forecast.judge(tasks[1:])["error"]
    part = forecast.measure_again(path, ",".join(one.task for one in tasks[1:]))
    assert part["error"] == whole["without"]["task0"]["error"]
    named_twice = ",".join([*(one.task for one in tasks), "task0"])
    assert forecast.measure_again(path, named_twice)["tasks"] == len(tasks)
    with pytest.raises(InputError, match=r"--tasks = 'task0,other': other: must be some of"):
        forecast.measure_again(path, "task0,other")


def test_earlier_tasks_are_refused_with_judge(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["forecast.py", "--judge", "a.json", "--earlier", "b.json"])
    with pytest.raises(SystemExit):
        forecast.main()
    assert "--earlier adds tasks to a run, and --judge runs nothing" in capsys.readouterr().err


def shown(figures: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    rows = [{**row, "texts": 100, "earlier": False} for row in figures["rows"]]
    forecast.show(Terminal(), {**figures, "rows": rows, "missing": []})
    said = capsys.readouterr().out
    assert all(row["task"] in said for row in rows)
    return said
