"""A study's cells, what they share, resuming, and its tables."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from actors.backends.identity import identify
from jobs.runtime.terminal import Terminal
from jobs.study import report as study_report
from jobs.study import run as study_job
from jobs.study.cells import groups, plan_cells
from jobs.study.folder import StudyFolder
from jobs.study.run import study
from jobs.study.texts import read_texts
from potstill.errors import InputError, Problem, StageError
from potstill.rows import Example
from potstill.strategies import wordnet
from potstill.study.config import load, parse_study
from potstill.study.sources import SOURCES
from potstill.study.tables import TABLES, read_study
from tests.support.study_fakes import FakeStudy

TASKS = Path(__file__).parents[2] / "fixtures/tasks"
SMALL = {
    "name": "small",
    "tasks": [str(TASKS / "mailroom"), str(TASKS / "mood" / "mood.yaml")],
    "sources": ["real", "k_shot", "zero_shot", "promptmix_a1", "promptmix", "nn_llm"],
    "repeats": 2,
    "max_test": 10,
    "augment": {"per_class": 3, "over_generate": 1.5},
    "evaluate": {"resamples": 100},
    "tracking": {"uri": "none"},
}


@pytest.fixture
def config(tmp_path):
    def make(**changes):
        places = {"storage": str(tmp_path / "runs"), "ledger": {"uri": f"sqlite:///{tmp_path}/ledger.db"}}
        return parse_study({**SMALL, **places, **changes})

    return make


@pytest.fixture
def fake_study(monkeypatch):
    return FakeStudy().install(monkeypatch)


def _folder(config):
    return StudyFolder.of(config, plan_cells(config, Terminal()))


def _rows(config, name):
    return read_study(_folder(config).run.path)[1][name].to_pylist()


def test_every_cell_is_there_and_every_table_has_its_columns(config, fake_study):
    config = config()
    study(config)
    told, tables = read_study(_folder(config).run.path)
    assert told.finished
    assert set(tables) == set(TABLES)
    assert all(table.schema == TABLES[name] for name, table in tables.items())
    cells = tables["cells"].to_pylist()
    # Two tasks, two repeats, six sources; k-shot has its regression too.
    assert Counter(cell["source"] for cell in cells) == {**dict.fromkeys(SMALL["sources"], 4), "k_shot": 8}
    assert {cell["student"] for cell in cells if cell["source"] == "nn_llm"} == {"teacher"}
    assert all(0.0 <= cell["macro_f1_low"] <= cell["macro_f1"] <= cell["macro_f1_high"] <= 1.0 for cell in cells)
    assert {cell["teacher"] for cell in cells if cell["source"] in ("real", "k_shot")} == {None}
    assert all((cell["share_changed"] is not None) == (cell["source"] == "promptmix") for cell in cells)
    confusions = Counter()
    for row in tables["confusions"].to_pylist():
        confusions[row["cell"]] += row["count"]
    assert confusions == {cell["cell"]: cell["test_texts"] for cell in cells}
    spread = [row for row in tables["diversity"].to_pylist() if row["label"] is None]
    assert Counter(row["source"] for row in spread) == dict.fromkeys(
        ["real", "zero_shot", "promptmix_a1", "promptmix"], 4
    )
    assert all(0.0 <= row["chamfer"] <= row["remote_clique"] <= 2.0 for row in spread)


def test_sources_with_the_same_texts_share_their_folder_and_their_requests(config, fake_study):
    config = config(repeats=1)
    study(config)
    runs = {cell["source"]: cell["run"] for cell in _rows(config, "cells") if cell["task"] == "mailroom"}
    assert runs["promptmix"] == runs["promptmix_a1"]
    assert len(set(runs.values())) == len(runs) - 1
    assert len({request.request_id for request in fake_study.asked}) == len(fake_study.asked)


def test_every_source_of_a_task_is_trained_in_one_fit(config, fake_study):
    study(config(repeats=1))
    assert fake_study.fits == 2
    arms = ["seeds_only", "real", "zero_shot-embedded", "promptmix_a1-embedded", "promptmix-embedded"]
    assert fake_study.trained == arms * 2


def test_a_stopped_study_resumes_and_repeats_no_request(config, fake_study):
    config = config()
    fake_study.break_at = 3
    with pytest.raises(KeyboardInterrupt):
        study(config)
    asked = len(fake_study.asked)
    done = len(_rows(config, "cells"))
    assert 0 < done < len(plan_cells(config, Terminal()))
    assert not read_study(_folder(config).run.path)[0].finished
    study(config)
    assert len(fake_study.asked) == asked
    assert fake_study.fits == 5  # two, the broken one, and the two that remained
    assert read_study(_folder(config).run.path)[0].finished
    study(config)
    assert fake_study.fits == 5


def test_a_failed_source_does_not_stop_the_others(config, fake_study):
    """It is missing in the tables; the command reports it, fails, and retries it in the next run."""
    config = config(repeats=1)
    fake_study.silent = "zero_shot"
    with pytest.raises(StageError, match=r"2 part\(s\) failed .*mailroom zero_shot.*no usable text"):
        study(config)
    assert {cell["source"] for cell in _rows(config, "cells")} == set(SMALL["sources"]) - {"zero_shot"}
    assert not read_study(_folder(config).run.path)[0].finished
    fake_study.silent, fake_study.trained = None, []
    study(config)
    assert set(fake_study.trained) == {"zero_shot-embedded"}
    assert {cell["source"] for cell in _rows(config, "cells")} == set(SMALL["sources"])


@pytest.mark.parametrize("broken", [StageError("out of memory"), InputError([Problem("arm 'x'", "out of memory")])])
def test_a_failed_fit_does_not_stop_the_others(config, fake_study, broken):
    """Its cells are missing in the tables; the command reports it, fails, and retries it in the next run."""
    config = config(repeats=1)
    fake_study.break_at, fake_study.broken = 1, broken
    with pytest.raises(StageError, match=r"1 part\(s\) failed .*training mailroom repeat 1 embedded.*out of memory"):
        study(config)
    # The teacher as classifier needs no training.
    done = [cell["source"] for cell in _rows(config, "cells") if cell["task"] == "mailroom"]
    assert done == ["nn_llm"]
    assert len([cell for cell in _rows(config, "cells") if cell["task"] == "mood"]) == 7
    assert not read_study(_folder(config).run.path)[0].finished
    fake_study.break_at = None
    study(config)
    assert len(_rows(config, "cells")) == 14
    assert read_study(_folder(config).run.path)[0].finished


def test_a_study_whose_only_fit_fails_still_ends_with_its_tables(config, fake_study):
    config = config(repeats=1, sources=["real", "k_shot"], tasks=SMALL["tasks"][:1])
    fake_study.break_at, fake_study.broken = 1, StageError("out of memory")
    with pytest.raises(StageError, match="training mailroom repeat 1 embedded"):
        study(config)
    assert _rows(config, "cells") == []


@pytest.mark.parametrize("kept", ["none", "of one class"])
def test_untrainable_texts_of_one_source_do_not_stop_the_others_fit(config, fake_study, monkeypatch, kept):
    def read(cell, student):
        texts = read_texts(cell, student)
        if cell.source.name != "zero_shot":
            return texts
        if kept == "none":
            raise StageError("no text was kept")
        return replace(texts, rows=texts.rows[:1])

    monkeypatch.setattr(study_job, "read_texts", read)
    config = config(repeats=1, tasks=SMALL["tasks"][:1])
    expected = (
        r"1 part\(s\) failed .*mailroom zero_shot repeat 1 embedded.*(no text was kept|all its texts are of one class)"
    )
    with pytest.raises(StageError, match=expected):
        study(config)
    assert {cell["source"] for cell in _rows(config, "cells")} == set(SMALL["sources"]) - {"zero_shot"}


def test_training_resources_do_not_change_the_study(config):
    def names(**student):
        return {cell.name for cell in plan_cells(config(repeats=1, student={"zero_stage": 1, **student}), Terminal())}

    assert names() == names(threads=4, workers=3) == names(offload_optimizer=True)
    assert names().isdisjoint(names(epochs=3))


def test_a_local_teacher_is_named_as_in_its_requests(config, fake_study, tmp_path):
    folder = tmp_path / "teachers/tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    teacher = {"kind": "embedded", "model": str(folder)}
    config = config(teachers={"mine": teacher}, sources=["real", "k_shot"], tasks=SMALL["tasks"][:1], repeats=1)
    study(config)
    assert read_study(_folder(config).run.path)[0].models == (identify(config.teachers["mine"]).model,) == ("tiny",)


def test_another_source_does_not_change_existing_cells(config, fake_study):
    before = {cell.name for cell in plan_cells(config(), Terminal())}
    more = {cell.name for cell in plan_cells(config(sources=[*SMALL["sources"], "few_shot"]), Terminal())}
    assert before < more


def test_every_known_source_runs(config, fake_study):
    config = config(sources=sorted(SOURCES), repeats=1, tasks=SMALL["tasks"][:1])
    study(config)
    cells = {cell["source"]: cell for cell in _rows(config, "cells") if cell["student"] != "regression"}
    assert set(cells) == set(SOURCES)
    hidden = {name for name, source in SOURCES.items() if source.seeds != "train" or source.kind == "classifier"}
    assert {name for name, cell in cells.items() if not cell["seeds"]} == hidden
    assert {name for name, cell in cells.items() if not cell["requests"]} == {
        name for name, source in SOURCES.items() if not source.asks
    }


def test_zero_shot_and_real_sources_do_not_see_the_seeds(config, fake_study):
    config = config(sources=["real", "zero_shot", "promptmix_zero_shot"], repeats=1, tasks=SMALL["tasks"][:1])
    seeds = {row.text for cell in plan_cells(config, Terminal()) for row in cell.job.data.seeds}
    study(config)
    prompts = [message.content for request in fake_study.asked for message in request.messages]
    assert seeds
    assert prompts
    assert not any(seed in prompt for seed in seeds for prompt in prompts)


def test_texts_to_annotate_carry_no_labels(config, fake_study):
    config = config(sources=["real", "annotate"], repeats=1, tasks=SMALL["tasks"][:1])
    cell = next(cell for cell in plan_cells(config, Terminal()) if cell.source.name == "annotate")
    study(config)
    assert all(row.target_label is None for row in cell.job.run.read(Example, "relabelled"))


def test_human_judgements_order_the_tasks(config, fake_study, tmp_path):
    file = tmp_path / "judgements.csv"
    file.write_text("judge,task_a,task_b,more_subjective\nann,mailroom,mood,mailroom\nbob,mood,mailroom,mailroom\n")
    config = config(repeats=1, judgements=str(file))
    study(config)
    tasks = read_study(_folder(config).run.path)[0].tasks
    assert [(task.name, task.subjectivity, task.order_from) for task in tasks] == [
        ("mood", 1, "judgements"),
        ("mailroom", 2, "judgements"),
    ]
    file.write_text("judge,task_a,task_b,more_subjective\nann,mailroom,moods,mailroom\n")
    with pytest.raises(InputError, match="moods"):
        study(config)


def test_two_teachers_share_the_cells_that_need_no_teacher(config, fake_study):
    teachers = {"one": {"kind": "embedded"}, "two": {"kind": "embedded", "precision": "float32"}}
    config = config(teachers=teachers, repeats=1, tasks=SMALL["tasks"][:1])
    study(config)
    counted = Counter(cell["teacher"] for cell in _rows(config, "cells"))
    assert counted == {None: 3, "one": 4, "two": 4}
    titles = [table.caption for table in study_report.shown(*read_study(_folder(config).run.path))]
    assert "Teachers" in titles


def test_each_student_is_a_separate_group(config, fake_study):
    config = config(students={"short": {"max_length": 16}, "long": {}}, repeats=1)
    assert len(list(groups(plan_cells(config, Terminal())))) == 4
    study(config)
    assert Counter(cell["student"] for cell in _rows(config, "cells")) == {
        "short": 10, "long": 10, "regression": 2, "teacher": 2,
    }  # fmt: skip


def test_the_tables_agree_with_the_cells(config, fake_study):
    config = config(repeats=1)
    study(config)
    told, tables = read_study(_folder(config).run.path)
    one, promptmix, diversity = study_report.shown(told, tables)
    cells = {
        (cell["task"], cell["source"]): cell for cell in tables["cells"].to_pylist() if cell["student"] != "regression"
    }
    rows = dict(zip([source.title for source in told.sources], told.sources, strict=True))
    task = ""
    for row in one.rows:
        task = row[0] or task
        if row[1] in rows:
            assert row[2] == f"{cells[task, rows[row[1]].name]['macro_f1']:.3f}"
    assert {row[1] for row in promptmix.rows} >= {"PromptMix (A2)", "PromptMix without relabelling (A1)", "NN + LLM"}
    assert len(diversity.rows) == 8
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    study_report.print_tables(Terminal(console), told, tables)
    assert "PromptMix (A2)" in console.export_text()
    assert study_report.as_markdown(told, tables).count("\n## ") == 3


def test_gains_are_over_the_stronger_k_shot_baseline(config, fake_study):
    """Also if k-shot is the reference of Table 1's differences."""
    config = config(repeats=2, reference="k_shot", sources=["k_shot", "promptmix"], tasks=SMALL["tasks"][:1])
    study(config)
    told, tables = read_study(_folder(config).run.path)
    cells = tables["cells"].to_pylist()
    means = {
        student: sum(cell["macro_f1"] for cell in cells if cell["student"] == student and cell["source"] == "k_shot")
        for student in ("embedded", "regression")
    }
    stronger = max(means, key=means.get)
    (gain,) = [
        row["macro_f1"]
        for row in tables["differences"].to_pylist()
        if row["source"] == "promptmix" and row["reference_student"] == stronger
    ]
    assert gain == pytest.approx(
        (sum(cell["macro_f1"] for cell in cells if cell["source"] == "promptmix") - means[stronger]) / 2
    )
    row = next(row for row in study_report.shown(told, tables)[1].rows if row[1] == "PromptMix (A2)")
    assert row[-1].startswith(f"{gain:+.3f} [")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sources": ["magic"]}, r"'magic': no such source; known: annotate, eda, few_shot"),
        ({"sources": ["real", "real"]}, "'real' is listed twice"),
        ({"reference": "eda"}, "must be one of the study's sources: real"),
        ({"students": {"regression": {}}}, "'regression' is reserved"),
        ({"students": {"big": {"epochs": 0}}}, r"students\.big: epochs = 0"),
        (
            {"sources": ["real", {"name": "hot", "of": "promptmix", "set": {"augment.temperature": 9}}]},
            "temperature = 9",
        ),
        (
            {"sources": ["real", {"name": "hot", "of": "promptmix", "set": {"augment.heat": 1}}]},
            "augment.heat: no such field",
        ),
        ({"tasks": []}, "at least 1 item"),
        ({"repeats": 0}, "repeats = 0"),
        ({"student": {"repeats": 2}}, "use the study's `repeats`"),
        ({"tsks": ["trec6"]}, "tsks: no such field"),
    ],
)
def test_a_bad_study_is_one_line_a_problem(config, changes, expected):
    with pytest.raises(InputError, match=expected):
        config(**changes)


def test_two_tasks_of_one_name_are_refused(config, tmp_path):
    twin = tmp_path / "mailroom"
    shutil.copytree(TASKS / "mailroom", twin)
    with pytest.raises(InputError, match="'mailroom': two tasks have this name"):
        plan_cells(config(tasks=[SMALL["tasks"][0], str(twin)]), Terminal())


def test_all_missing_tasks_are_reported(config):
    with pytest.raises(InputError) as caught:
        plan_cells(config(tasks=["trek6", "agnews"]), Terminal())
    assert len(caught.value.problems) == 2


def test_an_impossible_source_is_refused_before_the_study_starts(config, fake_study, monkeypatch):
    monkeypatch.setattr(wordnet, "find", lambda: None)
    with pytest.raises(InputError, match="needs WordNet"):
        study(config(sources=["real", "promptmix", "eda"], repeats=1))
    assert not fake_study.asked


def test_a_task_without_texts_for_a_source_is_reported(config, tmp_path):
    """Seeds, but no other real texts: enough for PromptMix, nothing for the source of real data."""
    task = yaml.safe_load((TASKS / "mood/mood.yaml").read_text())
    task["data"]["files"] = {"test": str(TASKS / "mood" / task["data"]["files"]["test"])}
    task["seeds"] = [{"text": f"{label} words {i}", "label": label} for label in task["classes"] for i in range(2)]
    path = tmp_path / "mood.yaml"
    path.write_text(yaml.safe_dump(task))
    plan_cells(config(tasks=[str(path)], sources=["k_shot", "promptmix"], reference="k_shot"), Terminal())
    with pytest.raises(InputError, match="source real: task mood has no training texts"):
        plan_cells(config(tasks=[str(path)]), Terminal())


def test_a_jobs_config_is_not_a_study(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("task: trec6\n")
    with pytest.raises(InputError, match="a job's config, for potstill distill"):
        load(path)


@pytest.mark.parametrize(("name", "reference"), [("study-small", "real"), ("promptmix-bar", "k_shot")])
def test_the_shipped_studies_are_valid(name, reference):
    shipped = load(Path(study_job.__file__).parents[2] / f"conf/{name}.yaml")
    assert shipped.data_dir is None  # data beside this repository is not beside the user's
    assert len(shipped.tasks) == 4
    assert shipped.reference == reference
