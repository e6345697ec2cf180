"""The whole job on a tiny invented task: real Ray, embedded teacher, DeepSpeed, MLflow on SQLite."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from potstill.rows import Example, Prediction, Request, Response, from_table

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

CONFIG = {
    "task": str(ROOT / "tests/fixtures/tasks/mailroom"),
    "augment": {"per_class": 3, "over_generate": 1.5, "max_tokens": 40},
    "relabel": {"votes": 1},
    "student": {"min_steps": 4, "epochs": 1},
}


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "POTSTILL_HOME": str(home)}
    command = [sys.executable, "-m", "jobs", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, models):
    """A distill job run twice with the same config."""
    place = tmp_path_factory.mktemp("distill")
    (place / "home").mkdir()
    (place / "home/models").symlink_to(models)
    (place / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    first = run("distill", str(place / "config.yaml"), home=place / "home")
    assert first.returncode == 0, first.stdout + first.stderr
    second = run("distill", str(place / "config.yaml"), home=place / "home")
    assert second.returncode == 0, second.stdout + second.stderr
    (folder,) = (place / "home/runs").glob("mailroom-*")
    return place / "home", folder, first, second


def read(folder, kind, part):
    return from_table(pq.read_table(folder / kind.__name__.lower() / f"{part}.parquet"), kind)


def test_every_row_traces_back_to_its_request(finished):
    _, folder, _, _ = finished
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
    home, folder, first, second = finished
    assert re.search(r"new requests: [1-9]", first.stdout)
    assert "new requests: 0" in second.stdout
    assert "of the same digest reused" in second.stdout
    assert "registered before" in second.stdout
    assert [path.name for path in (home / "runs").glob("mailroom-*")] == [folder.name]


def test_the_report_holds_up(finished):
    _, folder, first, _ = finished
    report = json.loads((folder / "report.json").read_text())
    predictions = read(folder, Prediction, "distilled")
    accuracy = sum(row.label == row.predicted for row in predictions) / len(predictions)
    assert report["scores"]["distilled"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert len(predictions) == 30
    assert {"distilled", "seeds_only", "seeds_regression", "real_equal"} == set(report["scores"])
    assert "mailroom: 30 test texts" in first.stdout


def test_the_page_is_written_and_logged(finished):
    home, folder, first, _ = finished
    page = (folder / "report.html").read_text()
    for heading in ("Scores", "Confusions", "Diversity", "Examples"):
        assert f">{heading}</h2>" in page
    assert str(folder / "report.html") in first.stdout
    assert list((home / "mlartifacts").rglob("report.html"))
    measured = json.loads((folder / "diversity.json").read_text())
    assert set(measured) == {"generated", "distilled", "real"}
    assert all(rows[0]["label"] is None and 0.0 < rows[0]["remote_clique"] < 2.0 for rows in measured.values())


def test_the_output_is_short_and_free_of_chatter(finished):
    _, _, first, _ = finished
    assert len(first.stdout.splitlines()) < 45
    for noise in ("Traceback", "INFO", "DeprecationWarning", "(pid=", "core_worker"):
        assert noise not in first.stdout + first.stderr


def test_report_prints_a_finished_run(finished):
    home, folder, _, _ = finished
    shown = run("report", folder.name, home=home)
    assert shown.returncode == 0, shown.stderr
    assert "as many real texts" in shown.stdout
    assert "distilled, by class" in shown.stdout


def test_another_process_loads_the_registered_student(finished, tmp_path):
    home, _, _, _ = finished
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
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    labels = set(json.loads((ROOT / "tests/fixtures/tasks/mailroom/classes.json").read_text()))
    assert set(eval(done.stdout.strip().splitlines()[-1])) <= labels
