"""The command line: help, and one line per error."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.__main__ import main
from tests.support.command_line import MAILROOM, ROOT, environment, write_config

COMMANDS = ("plan", "distill", "generate", "relabel", "finetune", "evaluate", "report", "promote", "ledger")
HEAVY = ("torch", "ray", "mlflow", "transformers", "deepspeed", "datasets", "sklearn", "pandas")
HELP = """
import contextlib, io, sys
from jobs.__main__ import app
for arguments in (["--help"], *([command, "--help"] for command in sys.argv[1:])):
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        app(arguments)
    print(shown.getvalue())
print(sorted(name for name in %r if name in sys.modules))
"""


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def refused(home, monkeypatch, capsys):
    """Run a command in this process (a new one takes seconds to import everything) and return its errors."""

    def call(*arguments):
        monkeypatch.setenv("POTSTILL_HOME", str(home))
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(sys, "argv", ["potstill", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return errors(ended.value.code, capsys.readouterr().err)

    return call


def errors(code, text):
    """The error lines of a command that must have refused to start."""
    assert code == 2, text
    assert "Traceback" not in text
    assert all(line.startswith("error: ") for line in text.splitlines()), text
    return [line.removeprefix("error: ") for line in text.splitlines()]


def task(folder, **splits):
    """A layout folder with two classes; ``splits`` replace the valid texts."""
    folder.mkdir()
    good = {label: json.loads((MAILROOM / "classes.json").read_text())[label] for label in ("invoice", "application")}
    (folder / "classes.json").write_text(json.dumps(good))
    sound = {
        split: [(f"{split} {i} {label}", label) for label in good for i in range(3)] for split in ("train", "test")
    }
    for split, rows in {**sound, **splits}.items():
        columns = {"text": pa.array([text for text, _ in rows]), "label": pa.array([label for _, label in rows])}
        if all(label is None for _, label in rows):
            columns.pop("label")
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return str(folder)


def test_help_names_every_command_and_loads_nothing_slow():
    result = subprocess.run(
        [sys.executable, "-c", HELP % (HEAVY,), *COMMANDS],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120", "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    *shown, heavy = result.stdout.splitlines()
    text = "\n".join(shown)
    for command in COMMANDS:
        assert f"\n│ {command} " in text
        assert f"Usage: potstill {command} " in text or f" {command} [OPTIONS]" in text
    for option in ("--set", "--verbose", "--force", "--rollback", "--help"):
        assert option in text
    assert heavy == "[]"


@pytest.mark.parametrize("arguments", [["brew"], ["distill"], ["plan", "conf/demo.yaml", "--nonsense"]])
def test_a_mistyped_command_is_an_error(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["potstill", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Usage" in capsys.readouterr().err


def test_a_broken_config_gives_one_line_per_error_and_the_rest_is_checked_too(refused, tmp_path):
    """Unknown field, unknown task, more shots than seeds, storage, MLflow, ledger, teacher, CPUs: all at once."""
    (tmp_path / "file").write_text("in the way")
    config = write_config(
        tmp_path / "c.yaml",
        {
            "task": "no-such-task",
            "storage": str(tmp_path / "file/runs"),
            "ledger": {"uri": f"sqlite:///{tmp_path}/file/ledger.db"},
            "teacher": {"model": "/no/such/model"},
            "augment": {"shots": 7, "per_klass": 3},
            "student": {"workers": 1000},
            "tracking": {"uri": "http://127.0.0.1:1"},
        },
    )
    found = refused("distill", config, "--set", "student.epochs=0")
    expected = [
        "augment.per_klass: no such field",
        "student.epochs",
        "augment.shots = 7 is more than task.seeds_per_class = 2",
        "task.preset = 'no-such-task': no such task; use one of ag_news",
        f"storage = '{tmp_path}/file/runs': can't be written",
        "ledger.uri = ",
        "teacher.model = '/no/such/model'",
        "tracking.uri = 'http://127.0.0.1:1'",
        "student.workers = 1000: needs 1000 CPUs",
    ]
    for part in expected:
        assert sum(part in line for line in found) == 1, (part, found)
    assert len(found) == len(expected)


@pytest.mark.parametrize("command", ["plan", "relabel", "finetune", "evaluate"])
def test_every_command_reports_all_errors_of_a_config(command, refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = write_config(
        tmp_path / "c.yaml",
        {
            "task": "no-such-task",
            "storage": str(tmp_path / "file/runs"),
            "augment": {"per_klass": 3},
            "tracking": {"uri": "none"},
        },
    )
    found = refused(command, config)
    for part in ("augment.per_klass: no such field", "task.preset = 'no-such-task'", "storage = "):
        assert sum(part in line for line in found) == 1, (part, found)


def test_bad_texts_are_reported_with_everything_else(refused, tmp_path):
    """Empty and non-string texts, labels not among the classes, too few seeds; and storage."""
    (tmp_path / "file").write_text("in the way")
    preset = task(
        tmp_path / "pets",
        train=[("", "invoice"), ("one", "invoice"), ("two", "invoice"), ("three", "parrot")],
        test=[("a", "invoice"), ("", "application")],
    )
    config = write_config(tmp_path / "c.yaml", {"task": preset, "storage": str(tmp_path / "file/runs")})
    found = refused("generate", config, "--set", "tracking.uri=none")
    for part in (
        "train.parquet: text is empty in 1 row(s), the first is row 0",
        "train.parquet: labels not among the classes invoice, application: 'parrot' (1)",
        "test.parquet: text is empty in 1 row(s), the first is row 1",
        "class 'application' has 0 labelled example(s)",
        "storage = ",
    ):
        assert sum(part in line for line in found) == 1, (part, found)
    assert len(found) == 5


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"test": [("a text", None)]}, "has no column 'label'"),
        ({"test": []}, "no test split with labels"),
        ({"test": [(1, "invoice"), (2, "application")]}, "text is of type int in 2 row(s)"),
        ({"train": [("one", "invoice"), ("two", "invoice")]}, "class 'application' has 0 labelled example(s)"),
    ],
)
def test_one_error_is_one_line(refused, tmp_path, splits, expected):
    config = write_config(tmp_path / "c.yaml", {"task": task(tmp_path / "pets", **splits)})
    (line,) = refused("plan", config)
    assert expected in line


def test_a_class_that_occurs_twice(refused, tmp_path):
    content = {"name": "t", "description": "some texts", "data": {"files": {"test": "t.csv"}}}
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(content) + "classes:\n  cat: About cats.\n  cat: About other cats.\n  dog: A dog.\n")
    (line,) = refused("plan", write_config(tmp_path / "c.yaml", {"task": str(path)}))
    assert "'cat' appears twice" in line
    path.write_text(yaml.safe_dump(content) + "classes:\n  cat: About cats.\n  Cat: About other cats.\n")
    (line,) = refused("plan", write_config(tmp_path / "c.yaml", {"task": str(path)}))
    assert "'cat' and 'Cat' differ only in case or spacing" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "absent.yaml"], "absent.yaml: no such file"),
        (["plan", "conf/demo.yaml", "--set", "nonsense"], "--set nonsense: must look like field.name=value"),
        (["finetune", "no-such-run"], "no-such-run: is neither a config (.yaml) nor a run's folder or name"),
    ],
)
def test_arguments_that_name_nothing(refused, arguments, expected):
    assert any(expected in line for line in refused(*arguments))


def test_a_teacher_of_more_processes_than_cpus_is_refused_before_ray_starts(refused, tmp_path):
    config = write_config(tmp_path / "c.yaml", {"task": str(MAILROOM), "teacher": {"actors": 999}})
    (line,) = refused("generate", config, "--set", "tracking.uri=none")
    assert line.startswith("teacher.actors = 999: the cluster has ")


@pytest.mark.slow
def test_more_cpus_than_the_cluster_has_is_an_error_not_a_hang(home, tmp_path):
    """RAY_OVERRIDE_RESOURCES stands for a machine that gives Ray less than it has."""
    config = write_config(
        tmp_path / "c.yaml", {"task": str(MAILROOM), "teacher": {"actors": 1}, "student": {"workers": 2}}
    )
    result = subprocess.run(
        [sys.executable, "-m", "jobs", "finetune", config, "--set", "tracking.uri=none"],
        cwd=ROOT,
        env=environment(home, RAY_OVERRIDE_RESOURCES='{"CPU": 1}'),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    (line,) = errors(result.returncode, result.stderr)
    assert line.startswith("student.workers = 2: needs 2 CPUs and the cluster has 1")
