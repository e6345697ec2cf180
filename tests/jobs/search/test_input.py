"""Invalid searches are refused before anything is asked or started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.__main__ import main
from jobs.runtime import cluster
from jobs.search.run import search
from potstill.config import parse
from potstill.errors import InputError
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
    """Run a command in this process: exit code and output."""

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
        ({"space": SPACE}, ("--resume",), "--resume: no trial in "),
        ({"space": SPACE}, ("--set", "student.workers=4096"), "student.workers = 4096"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(run: Any, search: Any, more: Any, words: str) -> None:
    code, said = run("search", search, *more)
    assert code == 2
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["plan", "search", "distill", "assess"])
@pytest.mark.parametrize(
    ("space", "complaint"),
    [
        ({"augment.shot": [1]}, "search.space.augment.shot: the config has no field augment.shot"),
        ({"augment.shots": [2, 5]}, "search.space.augment.shots = 5: augment.shots = 5 is more than"),
        ({"student.seed": [1, 2]}, "search.space.student.seed: can't be searched"),
    ],
)
def test_every_command_checks_the_search_space(run: Any, command: str, space: Any, complaint: str) -> None:
    code, said = run(command, {"space": space})
    assert code == 2
    (line,) = said.splitlines()
    assert line.startswith(f"error: {complaint}"), said


def test_a_bad_search_space_is_reported_with_everything_else(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, said = run("plan", {"space": {"augment.shot": [1]}}, storage=str(tmp_path / "file/runs"))
    assert code == 2
    space, storage = said.splitlines()
    assert "search.space.augment.shot" in space
    assert storage.startswith("error: storage = ")


def test_search_called_from_python_checks_its_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "connect", lambda *_: pytest.fail("the cluster was started"))
    ledger = {"uri": f"sqlite:///{tmp_path}/ledger.db"}
    content = {"task": "demo", "storage": str(tmp_path / "runs"), "ledger": ledger, "tracking": {"uri": "none"}}
    with pytest.raises(InputError) as caught:
        search(parse({**content, "teacher": HTTP, "search": {"space": {"augment.shot": [1]}}}))
    (problem,) = caught.value.problems
    assert problem.where == "search.space.augment.shot"
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_budget_too_small_for_the_finals_is_refused(run: Any) -> None:
    code, said = run("search", {"space": SPACE, "budget_usd": 10.0, "top_k": 4})
    assert code == 2
    assert "and the finals $" in said
    assert "lower search.top_k" in said


def test_the_plan_shows_what_sharing_saves(run: Any) -> None:
    code, said = run("plan", {"space": SPACE, "searcher": "grid"})
    assert code == 0
    assert "trials unshared" in said
    assert "with sharing, the trials ask" in said
    _, bounds = run("plan", {"space": SPACE})
    assert "these are bounds" in bounds
    assert "shared, at least" in bounds
