"""The finals: which draws change, which trial wins, and the line of a trial."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.search import log as search_log
from jobs.search.finals import FRESH_SEED, Final, final_config, name_winner, print_warnings
from jobs.search.table import Trial
from jobs.search.trial import Quiet
from potstill.config import Config, parse
from tests.support.trials import point, rung

CONFIG = {"task": {"preset": "demo"}, "seed": 5, "search": {"space": {"augment.shots": [1, 2]}}}


@pytest.fixture
def config() -> Config:
    return parse(CONFIG)


def final(config: Config, number: int, *by_seed: float) -> Final:
    mean = sum(by_seed) / len(by_seed)
    result = replace(rung(mean), by_seed=by_seed)
    return Final(Trial(number, point(1), "finished", [rung(0.5)]), config, result)


def test_a_final_has_fresh_draws_and_the_same_labelled_examples(config: Config) -> None:
    found = final_config(config, {"augment.shots": 1})
    assert found.augment.shots == 1
    assert found.seed == config.seed + FRESH_SEED
    assert found.task_seed == config.task_seed
    assert found.search is None
    assert found.evaluate == config.evaluate
    # Its distill run is not the run of a trial.
    assert parse(found.model_dump(mode="json")).digest() == found.digest() != config.digest()


def test_the_fresh_score_decides(config: Config) -> None:
    lucky, steady = final(config, 1, 0.70, 0.60), final(config, 2, 0.66, 0.68)
    lucky.trial.rungs[0].scores["macro_f1"] = 0.9
    assert name_winner([lucky, steady], ("macro_f1",)) is steady
    assert steady.deviation == pytest.approx(0.0141, abs=1e-4)
    assert final(config, 3, 0.5).deviation == 0.0


def test_the_winner_s_warnings_are_printed(config: Config) -> None:
    terminal = Quiet()
    print_warnings(final(config, 1, 0.7), terminal)
    assert terminal.warnings == ["trial 1, fresh draws: w"]


def test_a_line_has_scores_point_and_status() -> None:
    trial = Trial(7, point(2), "finished", [rung(0.6123)])
    assert search_log.in_words(trial, ("macro_f1", "cost_usd")).startswith("trial 7   macro_f1 0.612, cost_usd $0.50  ")
    assert "shots" in search_log.in_words(trial, ("macro_f1",))
    stopped = replace(trial, status="stopped")
    assert "(stopped at 8 texts a class, 5 epochs)" in search_log.in_words(stopped, ("macro_f1",))
    assert search_log.show("tokens", 12345.6) == "12,346"
