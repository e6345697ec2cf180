"""The assessment as a command, with a scripted teacher; with the real one as a slow test."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from jobs import assess, preflight
from jobs.__main__ import main
from jobs.runtime import cluster
from potstill.config import parse
from potstill.measures.scores import Interval
from potstill.study import assessment
from potstill.study.forecast import Forecast
from potstill.study.tables import TABLES
from tests.support.command_line import write_config
from tests.support.study_fakes import FakeStudy, _embed, _Pool

ROOT = Path(__file__).parents[2]
MAILROOM = str(ROOT / "tests/fixtures/tasks/mailroom")


@pytest.fixture
def fake_study(monkeypatch):
    found = FakeStudy()
    monkeypatch.setattr(assess, "TeacherPool", lambda *_: _Pool(found))
    monkeypatch.setattr(assess, "Ledger", lambda uri: uri)
    monkeypatch.setattr(assess, "embed", _embed)
    monkeypatch.setattr(cluster, "connect", lambda verbose=False: contextlib.nullcontext())
    monkeypatch.setattr(preflight, "check_cluster", lambda job, stages: None)
    return found


def make_config(tmp_path, **changes):
    content = {
        "task": MAILROOM,
        "storage": str(tmp_path / "runs"),
        "ledger": {"uri": f"sqlite:///{tmp_path}/ledger.db"},
        "tracking": {"uri": "none"},
    }
    return parse({**content, **changes})


def make_task(tmp_path, texts):
    """The YAML of a task with two classes, its own seeds and ``texts`` per split."""
    content = {
        "name": "bare",
        "description": "What a note is about.",
        "classes": {"food": "The note is about food.", "work": "The note is about work."},
        "data": {"files": {split: f"{split}.csv" for split in texts}},
        "seeds": [
            {"text": "buy some bread", "label": "food"},
            {"text": "cook the rice", "label": "food"},
            {"text": "write the report", "label": "work"},
            {"text": "call the boss", "label": "work"},
        ],
    }
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(content))
    for split, count in texts.items():
        rows = "\n".join(f"{split} note {i},{'food' if i % 2 else 'work'}" for i in range(count))
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{rows}\n")
    return str(tmp_path / "bare.yaml")


def test_it_asks_four_questions_per_text_and_shows_the_advice(tmp_path, fake_study, capsys):
    found = assess.assess(make_config(tmp_path))
    votes = [request for request in fake_study.asked if request.stage == "assess"]
    assert len(votes) == assessment.VOTES * (found.diagnosis.texts + found.seeds)
    assert 0.0 <= found.seed_accuracy <= 1.0
    shown = capsys.readouterr().out
    assert shown.index("mailroom with") < shown.index("diagnostics")
    assert "real data: 0 tasks were both studied and assessed with this teacher; a forecast needs 5" in shown
    (folder,) = (tmp_path / "runs").glob("assess-mailroom-*")
    kept = json.loads((folder / "assess.json").read_text())
    assert kept["diagnosis"]["texts"] == found.diagnosis.texts
    assert kept["advice"]["say"] == found.advice.say


def test_fewer_texts_are_a_subset(tmp_path, fake_study):
    config = make_config(tmp_path, task=make_task(tmp_path, {"train": 40, "test": 12}))
    whole = assess.assess(config)
    asked = {request.request_id for request in fake_study.asked}
    fake_study.asked.clear()
    found = assess.assess(config, most_texts=assessment.FEWEST_TEXTS)
    assert found.diagnosis.texts == assessment.FEWEST_TEXTS < whole.diagnosis.texts
    assert len(fake_study.asked) == assessment.VOTES * (assessment.FEWEST_TEXTS + found.seeds)
    assert {request.request_id for request in fake_study.asked} < asked


@pytest.mark.parametrize("texts", [assessment.FEWEST_TEXTS - 1, assessment.MOST_TEXTS + 1])
def test_a_number_of_texts_out_of_range_is_reported_with_everything_else(
    tmp_path, fake_study, monkeypatch, capsys, texts
):
    (tmp_path / "file").write_text("in the way")
    content = {"task": MAILROOM, "storage": str(tmp_path / "file/runs"), "tracking": {"uri": "none"}}
    config = write_config(tmp_path / "config.yaml", content)
    monkeypatch.setattr(sys, "argv", ["potstill", "assess", config, "--texts", str(texts)])
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: --texts = {texts}: must be from 10 to 10,000"
    assert second.startswith("error: storage = ")
    assert not fake_study.asked


def test_other_tasks_are_shown_and_studied_ones_give_a_forecast(tmp_path, fake_study, capsys):
    first = assess.assess(make_config(tmp_path))
    (folder,) = (tmp_path / "runs").glob("assess-mailroom-*")
    kept = json.loads((folder / "assess.json").read_text())
    study = tmp_path / "runs/study-x-1"
    (study / "study").mkdir(parents=True)
    rows = []
    for number in range(6):
        name, alpha = f"task{number}", 0.1 + 0.15 * number
        place = tmp_path / f"runs/assess-{name}-1"
        place.mkdir()
        other = {**kept, "task": name, "diagnosis": {**kept["diagnosis"], "alpha": alpha}}
        (place / "assess.json").write_text(json.dumps(other))
        gaps = {"promptmix": alpha - 1.0, "zero_shot": alpha - 1.5, "annotate": 0.5, "k_shot": 0.5}
        for source, gap in gaps.items():  # the last two have human texts
            rows.append({"teacher": "t", "task": name, "source": source, "student": "s", "reference": "real",
                         "reference_student": "s", "macro_f1": gap})  # fmt: skip
    names = [{"name": name} for name in ("real", "promptmix", "zero_shot", "annotate", "k_shot")]
    header = {"name": "x", "digest": "1", "layout": 1, "tasks": [], "sources": [], "students": ["s"], "teachers": ["t"],
              "models": [first.teacher], "repeats": 1, "reference": "real", "finished": True, "seconds": 1.0, "config": {"sources": names}}  # fmt: skip
    (study / "study.json").write_text(json.dumps(header))
    pa.parquet.write_table(pa.Table.from_pylist(rows, TABLES["differences"]), study / "study/differences.parquet")
    found = assess.assess(make_config(tmp_path)).forecast
    assert isinstance(found, Forecast)
    assert (found.tasks, found.useful, found.predictors) == (6, True, ("alpha",))
    assert found.gap.value == pytest.approx(first.diagnosis.alpha - 1.0, abs=1e-6)
    shown = capsys.readouterr().out
    assert "(6)" in shown
    assert "Forecast of synthetic minus real, macro-F1" in shown


@pytest.mark.parametrize("useful", [True, False])
def test_the_forecast_gives_a_rank_correlation_for_predictors_only(useful):
    found = Forecast(Interval(-0.1, -0.2, 0.0), ("alpha",) if useful else (), 9, 0.05, 0.04, -0.5, useful)
    said = assess.forecast_in_words(found)
    assert "-0.10 [-0.20, +0.00]" in said
    assert ("rank correlation -0.50" in said, "the mean of 9 studied tasks" in said) == (useful, not useful)


def test_texts_are_generated_for_a_task_without_any(tmp_path, fake_study, capsys):
    config = make_config(tmp_path, task=make_task(tmp_path, {"test": 12}))
    found = assess.assess(config)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith(("gen", "total"))][
        :2
    ] == [
        "generate",
        "total",
    ]
    assert "written by the teacher" in found.texts_from
    assert found.diagnosis.texts > 10
    assert {request.stage for request in fake_study.asked} == {"generate", "assess"}
    assert assess.assess(config, most_texts=10).diagnosis.texts <= 10


@pytest.mark.slow
def test_the_real_teacher_assesses_a_task(potstill_home, tmp_path):
    place = tmp_path / "config.yaml"
    place.write_text(yaml.safe_dump({"task": MAILROOM}))
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "assess", str(place)],
        cwd=ROOT,
        env={**os.environ, "POTSTILL_HOME": str(potstill_home)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "alpha among votes" in done.stdout
    (folder,) = (potstill_home / "runs").glob("assess-mailroom-*")
    kept = json.loads((folder / "assess.json").read_text())
    assert 0.0 <= kept["seed_accuracy"] <= 1.0
    assert np.isfinite(kept["diagnosis"]["entropy"])
