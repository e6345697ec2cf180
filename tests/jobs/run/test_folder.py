"""Runs: what their names depend on, where they are stored, and how paths are shown."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import yaml

from actors.backends import embedded
from jobs import preflight
from jobs.report.printed import print_places
from jobs.run import folder as runs
from jobs.run import job as job_module
from jobs.run.folder import Run, name_run
from jobs.run.job import Job, prepare
from jobs.runtime.terminal import Terminal
from jobs.stages import relabel
from jobs.stages.ask import Usage
from jobs.stages.evaluate import digest_examples
from jobs.tracking.outbox import outbox_folder
from jobs.tracking.registry import StudentVersion
from jobs.tracking.tracker import NullTracker
from potstill.config import parse
from potstill.errors import TeacherError
from potstill.rows import RESPONSE, Example, Request, Sampling
from potstill.task import LabelledText, Task, TaskData

CONFIG = parse({"task": "t"})
TASK = {
    "name": "pets",
    "description": "Which pet it is.",
    "classes": {"cat": "A cat.", "dog": {"description": "A dog.", "prompt_name": "hound"}},
    "contexts": {"styles": ["polite"]},
    "data": {"files": {"test": "test.csv"}},
}
TEXTS = (LabelledText("1", "she purrs", "cat"),)
DATA = TaskData(TEXTS, (), (), TEXTS)


def name(weights: str | None = "w", data: TaskData = DATA, **changes: Any) -> str:
    return name_run(CONFIG, Task.model_validate({**TASK, **changes}), data, weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "Whose pet it is."},
        {"source": "letters"},
        {"text_kind": "letter"},
        {"contexts": {"styles": ["rude"]}},
        {"classes": {"cat": "A cat.", "dog": "A dog."}},
        {"classes": dict(reversed(TASK["classes"].items()))},  # type: ignore[attr-defined]
        {"weights": "other"},
        {"weights": None},
        {"data": TaskData((), (), (), TEXTS)},
        {"data": TaskData(TEXTS, (), (), ())},
    ],
)
def test_fields_that_change_the_result_change_the_name(changes: dict[str, Any]) -> None:
    assert name(**changes).startswith("pets-")
    assert name(**changes) != name()


def test_other_fields_do_not_change_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {"licence": "CC0", "language": "de", "data": {"files": {"test": "/x/test.csv"}}}
    assert name_run(CONFIG, Task.model_validate({**TASK, **elsewhere}), DATA, "w") == name()
    here = name()
    monkeypatch.setattr(runs, "RECIPE", runs.RECIPE + 1)
    assert name() != here


def mailroom(tmp_path: Path, **changes: Any) -> Any:
    preset = str(Path(__file__).parents[2] / "fixtures/tasks/mailroom")
    return parse({"task": preset, "storage": str(tmp_path / "runs"), "tracking": {"uri": "none"}, **changes})


def test_a_job_is_named_by_its_teachers_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(weights: str) -> str:
        monkeypatch.setattr(job_module, "identify", lambda teacher: SimpleNamespace(weights_digest=weights))
        return prepare(mailroom(tmp_path), Terminal()).run.name

    assert named("a") != named("b")


def test_a_missing_teacher_is_reported_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(teacher: object) -> None:
        raise TeacherError("teacher.model = 'x' needs the package y")

    for module in (embedded, job_module, preflight):
        monkeypatch.setattr(module, "identify", missing)
    (tmp_path / "file").touch()
    config = mailroom(tmp_path, ledger={"uri": f"sqlite:///{tmp_path}/file/ledger.db"})
    ledger, teacher = (str(problem) for problem in preflight.problems(config, ["finetune"]))
    assert "ledger" in ledger
    assert "needs the package y" in teacher
    run = Run(config.storage, "mailroom-0")  # a known run needs no teacher
    assert prepare(config, Terminal(), run=run).run is run


@pytest.mark.parametrize("storage", ["memory://potstill-test/runs", "memory://potstill-test/runs/"])
def test_a_runs_path_is_the_same_on_every_node(storage: str) -> None:
    run = Run(storage, "pets-1")
    assert run.path == "memory://potstill-test/runs/pets-1"
    run.write_json("report", {"a": 1})
    with fsspec.open(f"{run.path}/report.json", "r") as file:
        assert json.load(file) == run.read_json("report") == {"a": 1}
    run.write_config(CONFIG)
    found = Run.find(run.path, "/nowhere")
    assert found is not None
    assert found[0].read_json("report") == {"a": 1}
    assert outbox_folder(run.path).parent.name == "tracking-spool"  # not in a folder named without the protocol


def test_a_local_runs_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run("runs", "pets-1").path == f"{tmp_path}/runs/pets-1"
    assert Run(f"file://{tmp_path}/runs", "pets-1").path == f"file://{tmp_path}/runs/pets-1"


@pytest.mark.parametrize("storage", ["", "memory://potstill-next/runs"])
def test_the_next_command_finds_the_run(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path))
    config = parse({"task": "t", "storage": storage, "tracking": {"uri": "none"}})
    run = Run(config.storage, "pets-1")
    for stage in ("generate", "relabel"):
        run.write_json(stage, {"usage": asdict(Usage())})
    terminal, shown = Terminal(), io.StringIO()
    monkeypatch.setattr(terminal, "say", lambda text="": print(text, file=shown))
    print_places(Job(config, Task.model_validate(TASK), DATA, run, terminal, NullTracker()), "/students/1", None)
    expected = "memory://potstill-next/runs/pets-1" if storage else "pets-1"
    assert f"next      potstill report {expected}\n" in shown.getvalue()
    assert "promote" not in shown.getvalue(), "nothing was registered"
    at_server = parse({"task": "t", "storage": storage, "tracking": {"uri": "http://me:secret@mlflow:5000"}})
    job = Job(at_server, Task.model_validate(TASK), DATA, run, terminal, NullTracker())
    version = StudentVersion("pets-student", "3", "models:/pets-student/3", True)
    print_places(job, "/students/1", version)
    assert "potstill promote pets-student --tracking-uri http://me@mlflow:5000" in shown.getvalue()


def test_the_data_set_is_identified_by_its_rows() -> None:
    rows = [Example("1", "she purrs", "cat"), Example("2", "she barks", "dog")]
    assert digest_examples(rows) == digest_examples([Example("9", "she purrs", "cat", alpha=0.5), rows[1]])
    for other in (Example("1", "he purrs", "cat"), Example("1", "she purrs", "dog")):
        assert digest_examples([other, rows[1]]) != digest_examples(rows)
    assert digest_examples([Example("1", "she purrs", "cat", kept=False), rows[1]]) != digest_examples(rows)


def test_examples_name_the_request_that_relabelled_them() -> None:
    requests = [
        Request("relabel", "pets", "relabel", "list", "embedded", "m", None, (), Sampling(), occurrence=i)
        for i in range(6)
    ]
    examples = [Example("1", "she purrs", "cat"), Example("2", "she barks", "dog")]
    named = relabel.name_requests(examples, [request.request_id for request in requests])
    assert [one.relabel_request_id for one in named] == [requests[0].request_id, requests[3].request_id]
    assert relabel.name_requests(examples, []) == tuple(examples)


@pytest.mark.parametrize("password", ["secret", "se/cr@et"])
def test_a_run_s_config_holds_no_password(tmp_path: Path, password: str) -> None:
    uri = f"postgresql://me:{password}@db:5432/x?sslmode=require"
    config = parse({"task": "t", "storage": str(tmp_path), "ledger": {"uri": uri}, "tracking": {"uri": uri}})
    Run(config.storage, "pets-1").write_config(config)
    written = yaml.safe_load((tmp_path / "pets-1/config.yaml").read_text())
    assert written["ledger"]["uri"] == written["tracking"]["uri"] == "postgresql://me@db:5432/x?sslmode=require"


def test_a_failed_write_raises_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(str(tmp_path), "pets-1")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run._fs, "open", full)
    with pytest.raises(OSError, match="No space left"), run.stream("response", "relabel", RESPONSE):
        pytest.fail("there is no file to write to")
