"""The output of `potstill plan` for a study."""

import io
import re
import sys
from pathlib import Path

import pytest
import yaml

from jobs.__main__ import main
from jobs.runtime.terminal import Terminal
from jobs.study import plan as study_plan
from jobs.study.cells import plan_cells
from jobs.study.run import study
from potstill.errors import InputError
from potstill.study.config import is_study, parse_study
from tests.support.study_fakes import FakeStudy

ROOT = Path(__file__).parents[3]
TASKS = ROOT / "tests/fixtures/tasks"


@pytest.fixture
def content(tmp_path):
    return {
        "name": "small",
        "tasks": [str(TASKS / "mailroom"), str(TASKS / "mood" / "mood.yaml")],
        "sources": ["real", "promptmix_a1", "promptmix", "nn_llm"],
        "repeats": 2,
        "max_test": 10,
        "augment": {"per_class": 3, "over_generate": 1.5},
        "evaluate": {"resamples": 100},
        "tracking": {"uri": "none"},
        "storage": str(tmp_path / "runs"),
        "ledger": {"uri": f"sqlite:///{tmp_path}/ledger.db"},
    }


@pytest.fixture
def plan(content, tmp_path, monkeypatch, capsys):
    """The output of ``potstill plan`` for the study with changes."""

    def call(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}))
        monkeypatch.setattr(sys, "argv", ["potstill", "plan", str(path)])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert not ended.value.code, shown.err
        return shown.out

    return call


def requests(shown, name):
    return [int(found.replace(",", "")) for found in re.findall(rf"^\s*{name}[^\d\n]*? ([\d,]+) ", shown, re.M)]


def test_a_study_s_requests_by_source_and_by_task_add_up(plan, tmp_path):
    shown = plan()
    first, second = requests(shown, "total")
    by_task = requests(shown, "mailroom")[0] + requests(shown, "mood")[0]
    assert first == second == by_task > 0
    # Ten test texts a task and repeat, each asked about once.
    assert requests(shown, "NN")[0] == 40
    assert not (tmp_path / "ledger.db").exists()
    assert not (tmp_path / "runs").exists()


def test_sources_that_share_their_requests_are_counted_once(content):
    alone, both = (
        study_plan.plan_sources(plan_cells(parse_study({**content, "sources": sources}), Terminal()))
        for sources in (["real", "promptmix"], ["real", "promptmix_a1", "promptmix"])
    )
    assert [one.stages for one in both] == [one.stages for one in alone]


def test_the_plan_of_a_finished_study_has_no_requests(content, plan, monkeypatch):
    with monkeypatch.context() as faked:
        FakeStudy().install(faked)
        study(parse_study(content))
    assert "the study is finished" in plan()
    assert "no remaining source needs a teacher" in plan(sources=["real"], name="another")


def test_an_expensive_study_asks_for_confirmation(content, monkeypatch):
    teacher = {"kind": "openai", "model": "gpt-4o-mini", "price": {"prompt": 1000.0, "completion": 1000.0}}
    cells = plan_cells(parse_study({**content, "teachers": {"dear": teacher}}), Terminal())
    planned = study_plan.plan_sources(cells)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(InputError, match=r"the job may cost about \$"):
        study_plan.confirm(planned, yes=False)
    study_plan.confirm(planned, yes=True)


def test_which_configs_are_studies(tmp_path):
    assert all(is_study(ROOT / f"conf/{name}.yaml") for name in ("study-small", "study-forecast", "promptmix-bar"))
    assert not any(is_study(ROOT / f"conf/{name}.yaml") for name in ("demo", "demo-search"))
    (tmp_path / "broken.yaml").write_text("tasks: [")
    assert not is_study(tmp_path / "broken.yaml")
    assert not is_study(tmp_path / "absent.yaml")
