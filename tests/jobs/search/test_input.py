"""What a user may get wrong about a search: told before anything is asked or started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.__main__ import main
from tests.support.command_line import write_config

HTTP = {
    "kind": "openai",
    "model": "m",
    "base_url": "http://127.0.0.1:9/v1",
    "api_key_env": "",
    "price": {"prompt": 100.0, "completion": 100.0},
}
SPACE = {"augment.shots": [1, 2], "augment.per_class": [5, 10]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A command in this process: exit code and everything it said."""

    def call(name: str, search: dict[str, Any] | None, *more: str, **content: Any) -> tuple[int, str]:
        monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        whole = {"task": "demo", "teacher": HTTP, "tracking": {"uri": "none"}, **content}
        whole |= {"search": search} if search is not None else {}
        config = write_config(tmp_path / "config.yaml", whole)
        monkeypatch.setattr("sys.argv", ["potstill", name, config, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return call


@pytest.mark.parametrize(
    ("search", "more", "words"),
    [
        (None, (), "search: the config has no such section"),
        ({"space": {"augment.shot": [1]}}, (), "the config has no field augment.shot"),
        ({"space": SPACE, "objective": "f1"}, (), "search.objective.0 = 'f1'"),
        ({"space": SPACE, "budget_usd": 0.001}, (), "search.budget_usd = 0.001: one trial may cost about $"),
        ({"space": {"augment.shots": [2, 5]}}, (), "augment.shots = 5 is more than task.seeds_per_class = 2"),
        ({"space": SPACE}, ("--resume",), "--resume: there is no trial yet"),
        ({"space": SPACE}, ("--set", "student.workers=4096"), "student.workers = 4096"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(run: Any, search: Any, more: Any, words: str) -> None:
    code, said = run("search", search, *more)
    assert code == 2
    assert words in said
    assert "Traceback" not in said


def test_a_budget_that_one_trial_fits_into_but_not_the_finals_says_so(run: Any) -> None:
    code, said = run("search", {"space": SPACE, "budget_usd": 10.0, "top_k": 4})
    assert code == 2
    assert "and the finals $" in said
    assert "lower search.top_k" in said


def test_the_plan_shows_what_sharing_saves(run: Any) -> None:
    code, said = run("plan", {"space": SPACE, "searcher": "grid"})
    assert code == 0
    assert "trials unshared" in said
    assert "shared, the trials ask" in said
    _, bounds = run("plan", {"space": SPACE})
    assert "these are bounds" in bounds
    assert "shared, at least" in bounds
