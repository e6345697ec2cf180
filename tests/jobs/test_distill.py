"""The whole job on a tiny task by `ray job submit`: real Ray, embedded teacher, DeepSpeed, MLflow on SQLite."""

import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from potstill.rows import Example, Prediction, Request, Response, from_table
from tests.support.command_line import ROOT, command, environment, write_config
from tests.support.head_node import copy_of_repository, head_node, submit

pytestmark = pytest.mark.slow

CONFIG = {
    "task": "mailroom",
    "augment": {"per_class": 3, "over_generate": 1.5, "max_tokens": 40},
    "relabel": {"votes": 1},
    "student": {"min_steps": 4, "epochs": 1},
    "teacher": {"actors": 1},
}


class Finished(NamedTuple):
    """A home with one run, the output of two jobs, and a refused third job."""

    home: Path
    folder: Path
    first: str
    second: str
    refused: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, models):
    """A distill job submitted twice with the same config, the second time after an edit to the code."""
    place = tmp_path_factory.mktemp("distill")
    home = place / "home"
    home.mkdir()
    (home / "models").symlink_to(models)
    tree = copy_of_repository(place / "tree")
    write_config(tree / "tiny.yaml", CONFIG)
    with head_node(home, place) as head:
        first = submit(head, tree, "distill", "tiny.yaml")
        assert first.returncode == 0, first.stdout + first.stderr
        # A changed file makes another package in another folder on the node.
        with (tree / "jobs/__init__.py").open("a") as file:
            file.write("\n# edited\n")
        second = submit(head, tree, "distill", "tiny.yaml")
        assert second.returncode == 0, second.stdout + second.stderr
        refused = submit(head, tree, "generate", "tiny.yaml", "--set", "storage=runs")
    (folder,) = (home / "runs").glob("mailroom-*")
    return Finished(home, folder, first.stdout, second.stdout, refused)


def count_generated(home):
    with sqlite3.connect(f"file:{home}/ledger.db?mode=ro", uri=True) as connection:
        return connection.execute("select count(*) from responses where stage = 'generate'").fetchone()[0]


def job_said(printed):
    """The job's own output, without that of ``ray job submit``."""
    lines = printed.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("mailroom: 3 classes"))
    end = next(number for number, line in enumerate(lines) if line.startswith("next "))
    return lines[begin : end + 1]


def read(folder, kind, part):
    return from_table(pq.read_table(folder / kind.__name__.lower() / f"{part}.parquet"), kind)


def test_every_row_traces_back_to_its_request(finished):
    folder = finished.folder
    requests = {
        row.request_id: row
        for part in sorted((folder / "request").glob("generate-*"))
        for row in read(folder, Request, part.stem)
    }
    responses = {
        row.request_id: row
        for part in sorted((folder / "response").glob("generate-*"))
        for row in read(folder, Response, part.stem)
    }
    examples = read(folder, Example, "relabelled")
    assert examples
    for example in examples:
        request = requests[example.request_id]
        assert (request.target_label, request.alpha) == (example.target_label, example.alpha)
        assert " ".join(example.text.split())[:12] in " ".join(responses[example.request_id].text.split())
        assert example.kept == (example.dropped_because is None)
    for example in examples:
        if example.kept:
            assert sum(example.label_probs) == pytest.approx(1, abs=1e-3)


def test_the_second_run_asks_nothing_and_trains_nothing(finished):
    assert re.search(r"new requests: [1-9]", finished.first)
    assert "new requests: 0" in finished.second
    assert "of the same digest reused" in finished.second
    assert "registered before" in finished.second
    assert [path.name for path in (finished.home / "runs").glob("mailroom-*")] == [finished.folder.name]
    usage = json.loads((finished.folder / "generate.json").read_text())["usage"]
    assert usage["requests"] == count_generated(finished.home) > usage["new_requests"] == 0


def test_storage_inside_the_submitted_copy_is_refused(finished):
    assert finished.refused.returncode != 0
    assert (
        "is inside this submitted job's copy of the repository and lost after the next edit" in finished.refused.stdout
    )


def test_the_report_agrees_with_the_predictions(finished):
    folder, first = finished.folder, finished.first
    report = json.loads((folder / "report.json").read_text())
    predictions = read(folder, Prediction, "distilled")
    accuracy = sum(row.label == row.predicted for row in predictions) / len(predictions)
    assert report["scores"]["distilled"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert len(predictions) == 30
    assert {
        "distilled",
        "start",
        "seeds_only",
        "seeds_regression",
        "described_regression",
        "teacher",
        "real_equal",
    } == set(report["scores"])
    assert "mailroom: 30 test texts" in first


def test_the_page_is_written_and_logged(finished):
    home, folder, first = finished.home, finished.folder, finished.first
    page = (folder / "report.html").read_text()
    for heading in ("Scores", "Confusions", "Diversity", "Examples"):
        assert f">{heading}</h2>" in page
    assert str(folder / "report.html") in first
    assert list((home / "mlartifacts").rglob("report.html"))
    measured = json.loads((folder / "diversity.json").read_text())
    assert set(measured) == {"generated", "distilled", "real"}
    assert all(rows[0]["label"] is None and 0.0 < rows[0]["remote_clique"] < 2.0 for rows in measured.values())


def test_the_output_is_short_and_quiet(finished):
    said = job_said(finished.first)
    assert 20 < len(said) < 45
    for noise in ("Traceback", "INFO", "DeprecationWarning", "(pid=", "core_worker"):
        assert noise not in "\n".join(said)


def test_report_prints_a_finished_run(finished):
    shown = subprocess.run(
        command("report", finished.folder.name),
        cwd=ROOT,
        env=environment(finished.home),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "as many real texts" in shown.stdout
    assert "distilled, by class" in shown.stdout


def test_another_process_loads_the_registered_student(finished, tmp_path):
    home = finished.home
    script = (
        "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]);"
        "model = mlflow.pyfunc.load_model('models:/mailroom-student@challenger');"
        "print(list(model.predict(['please pay the attached bill', 'I apply for the job'])['label']));"
        "assert not {'potstill', 'jobs', 'actors'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, f"sqlite:///{home}/mlflow.db"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    labels = set(json.loads((ROOT / "tests/fixtures/tasks/mailroom/classes.json").read_text()))
    assert set(eval(done.stdout.strip().splitlines()[-1])) <= labels
