"""The table of trials and its plots."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.run.folder import Run
from jobs.search import figures as search_figures
from jobs.search import log as search_log
from jobs.search import report as search_report
from jobs.search import run as search
from jobs.search.table import Trial, TrialTable
from jobs.search.trial import Quiet
from jobs.tracking.tracker import NullTracker
from potstill.config import parse
from potstill.config.search import SearchConfig
from potstill.limits.pacer import PacerState
from tests.support.trials import point, rung

SEARCH = SearchConfig(
    space={
        "augment.shots": [1, 2],
        "augment.alpha.beta": [[5, 2], [1, 1]],
        "student.learning_rate": {"loguniform": [1e-5, 1e-3]},
    }
)


def make_table(folder: Path) -> TrialTable:
    table = TrialTable(Run(str(folder), "task-search-1"))
    for number, (shots, rate) in enumerate(((1, 1e-4), (2, 1e-4), (1, 9e-4), (2, 2e-5), (1, 2e-5))):
        trial = table.begin(point(shots, rate=rate))
        table.add(trial, 0, rung(0.4 + 0.05 * number, per_class=4))
        if number != 3:
            table.add(trial, 1, rung(0.5 + 0.05 * number, tokens=100.0 + number))
        table.end(trial, "stopped" if number == 3 else "finished")
    return table


def test_the_table_survives_a_round_trip(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    again = TrialTable.load(Run(str(tmp_path), "task-search-1"))
    assert again.trials == table.trials
    assert again.spent_usd == pytest.approx(9 * 0.25)
    assert [trial.number for trial in again.of("stopped")] == [4]
    assert len(TrialTable.load(Run(str(tmp_path), "another"))) == 0


def account(spent_usd: float, reserved_usd: float = 0.0) -> PacerState:
    return PacerState(0, 0, 0, spent_usd, reserved_usd, 1.0, None)


def test_spending_of_earlier_runs_counts_for_any_purpose(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "task-search-1")
    table = TrialTable.load(run)
    table.settle(account(3.0))  # held-back texts, before the first trial
    assert TrialTable.load(run).spent_usd == 3.0
    table.settle(account(4.0, reserved_usd=0.5))
    assert table.spent_usd == 4.0
    again = TrialTable.load(run)  # reserved dollars count as spent
    assert again.spent_usd == 4.5
    again.settle(account(1.0))
    again.settle(None)
    assert again.spent_usd == TrialTable.load(run).spent_usd == 5.5


def test_the_limiter_gets_the_remaining_budget(tmp_path: Path) -> None:
    config = parse(
        {
            "task": "demo",
            "teacher": {"kind": "openai", "model": "m", "api_key_env": "", "budget_usd": 7.0},
            "search": {"space": {"augment.shots": [1, 2]}, "budget_usd": 10.0},
        }
    )
    table = make_table(tmp_path)  # its rungs paid 2.25
    assert search._within_budget(config, table).teacher.budget_usd == 7.0
    table.settle(account(6.0))
    assert search._within_budget(config, table).teacher.budget_usd == 4.0
    assert table.rungs_usd == 2.25


def test_a_rung_that_failed_is_settled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_log, "account_of", lambda workers: account(1.5))
    config = parse({"task": "demo", "search": {"space": {"augment.shots": [1, 2]}}})
    table = TrialTable(Run(str(tmp_path), "task-search-1"))
    job: Any = SimpleNamespace(config=config, terminal=Quiet(), tracker=NullTracker())
    with search_log.SearchLog(job, table, None, 2) as log:
        trial = table.begin({"augment.shots": 1})
        log.listener.began(trial)
        table.end(trial, "failed", "no usable text")
        log.listener.ended(trial)
    assert TrialTable.load(Run(str(tmp_path), "task-search-1")).spent_usd == 1.5


def test_a_trial_is_its_point_and_a_rung_is_added_once(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    known = table.begin(point(2))
    assert (len(table), known.number) == (5, 2)
    assert not table.add(known, 1, rung(0.99))
    assert known.scores["macro_f1"] == 0.55
    assert table.begin(point(2, beta=(1, 1))).number == 6


def test_a_rung_of_two_trials_is_paid_once(tmp_path: Path) -> None:
    table = TrialTable(Run(str(tmp_path), "task-search-1"))
    first, second = table.begin(point(1)), table.begin(point(2))
    table.add(first, 0, rung(0.5))
    table.add(second, 0, rung(0.5))
    assert (first.used("requests_new"), second.used("requests_new")) == (4.0, 0.0)
    assert second.rungs[0].usage["requests_reused"] == 10.0
    assert second.scores == first.scores
    assert table.rungs_usd == TrialTable.load(Run(str(tmp_path), "task-search-1")).rungs_usd == 0.25


def test_the_arrow_table_has_one_row_per_trial_with_its_new_requests(tmp_path: Path) -> None:
    rows = make_table(tmp_path).as_arrow().to_pylist()
    assert [row["trial"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["point.augment.alpha.beta"] == "[5, 2]"
    # Each rung asked 4; the last needed 10 answers, so 2 were in the ledger.
    assert (rows[0]["requests_new"], rows[0]["requests_reused"]) == (8.0, 2.0)
    assert rows[3]["rungs"] == 1


def test_the_best_stand_first_and_stopped_ones_last(tmp_path: Path) -> None:
    columns, rows = search_report.trial_rows(make_table(tmp_path).trials, SEARCH)
    assert columns[:4] == ["trial", "shots", "alpha.beta", "learning_rate"]
    assert [row[0] for row in rows] == ["5", "3", "2", "1", "4"]
    assert rows[-1][-1] == "stopped at 4"


def test_the_plots_show_every_trial(tmp_path: Path) -> None:
    trials = make_table(tmp_path).trials
    found = search_report.figures(trials, SEARCH)
    assert set(found) == {"parallel_coordinates", "pareto", "importance"}
    (axes,) = found["parallel_coordinates"].axes
    assert len(axes.lines) == 5
    assert sum(line.get_linestyle() == "--" for line in axes.lines) == 1
    (axes,) = found["pareto"].axes
    assert {text.get_text() for text in axes.texts} >= {"1", "2", "3", "5"}
    shares = search_figures.importances(trials, SEARCH)
    assert sum(shares.values()) == pytest.approx(1.0)
    for name, figure in found.items():
        figure.savefig(tmp_path / f"{name}.png")


def test_few_or_equal_trials_give_plots_without_importance() -> None:
    trial = Trial(1, point(1), "finished", [rung(0.5)])
    assert set(search_report.figures([trial], SEARCH)) == {"parallel_coordinates", "pareto"}
    assert search_figures.importances([trial] * 5, SEARCH) == {}


@pytest.mark.parametrize(
    ("fresh", "test", "words"),
    [
        (0.65, 0.60, ["0.650 with fresh draws (-0.050)", "0.050 above test, inside"]),
        (0.72, 0.80, ["0.720 with fresh draws (+0.020)", "0.080 below test, outside"]),
    ],
)
def test_the_change_with_fresh_draws_and_the_gap_to_test_are_always_reported(
    fresh: float, test: float, words: list[str]
) -> None:
    report = search_report.SearchReport(
        winner=3,
        run="r",
        trial=0.7,
        fresh=fresh,
        test=test,
        interval=(test - 0.06, test + 0.06),
        scored_on="texts",
        finals=(),
        requests_new=30.0,
        requests_alone=100.0,
        requests_finals=7.0,
        cost_usd_new=0.0,
    )
    message = search_report.agreement(report)
    assert all(one in message for one in words), message
    assert "30 requests (30%) of the 100" in search_report.saving(report)
