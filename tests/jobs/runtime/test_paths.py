import pytest

from jobs.runtime import paths
from potstill.config import parse


def test_relative_paths_are_relative_to_the_folder_of_the_command(tmp_path, monkeypatch):
    (tmp_path / "models/own").mkdir(parents=True)
    config = parse(
        {
            "task": {"preset": "trec6", "data_dir": "data"},
            "storage": "runs",
            "ledger": {"uri": "sqlite:///rel.db?timeout=5"},
            "teacher": {"model": "models/own"},
            "student": {"model": "./student"},
            "tracking": {"uri": "sqlite:///ml/rel.db", "artifacts": "art"},
        }
    )
    monkeypatch.chdir(tmp_path)
    absolute = paths.make_absolute(config)
    assert absolute.task.data_dir == f"{tmp_path}/data"
    assert absolute.storage == f"{tmp_path}/runs"
    assert absolute.ledger.uri == f"sqlite:///{tmp_path}/rel.db?timeout=5"
    assert absolute.teacher.model == f"{tmp_path}/models/own"
    assert absolute.student.model == f"{tmp_path}/student"
    assert absolute.tracking.uri == f"sqlite:///{tmp_path}/ml/rel.db"
    assert absolute.tracking.artifacts == f"{tmp_path}/art"
    monkeypatch.chdir("/")
    assert paths.make_absolute(absolute) == absolute


def test_other_paths_and_names_stay(tmp_path, monkeypatch):
    config = parse(
        {
            "task": "trec6",
            "storage": "s3://bucket/runs",
            "ledger": {"uri": "postgresql+psycopg://host/ledger"},
            "student": {"model": "owner/model"},
            "tracking": {"uri": "http://mlflow:5000", "artifacts": "s3://bucket/a"},
        }
    )
    monkeypatch.chdir(tmp_path)
    assert paths.make_absolute(config) == config
    for uri in ("none", "databricks", "sqlite://", "sqlite:///:memory:"):
        other = parse({"task": "trec6", "tracking": {"uri": uri}})
        assert paths.make_absolute(other).tracking.uri == uri


def test_a_task_is_a_name_or_a_path(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "trec6").mkdir()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/pets.yaml").touch()

    def preset(written):
        monkeypatch.chdir(tmp_path)
        absolute = paths.make_absolute(parse({"task": written}))
        monkeypatch.chdir("/")
        assert paths.make_absolute(absolute) == absolute
        return absolute.task.preset

    assert preset("own") == f"{tmp_path}/own"
    assert preset("tasks/pets.yaml") == f"{tmp_path}/tasks/pets.yaml"
    assert preset("./trec6") == f"{tmp_path}/trec6"
    assert preset("trec6") == "trec6"
    assert preset("demo") == "demo"
    assert preset("nowhere") == "nowhere"
    assert preset("/nowhere/t.yaml") == "/nowhere/t.yaml"


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("storage", {"storage": "runs"}),
        ("ledger.uri", {"ledger": {"uri": "sqlite:///ledger.db"}}),
        ("tracking.uri", {"tracking": {"uri": "sqlite:///mlflow.db"}}),
        ("tracking.artifacts", {"tracking": {"artifacts": "artifacts"}}),
    ],
)
def test_nothing_is_stored_in_a_submitted_copy(tmp_path, monkeypatch, field, content):
    package = tmp_path / "session_1/runtime_resources/working_dir_files/_ray_pkg_0123abcd"
    config = parse({"task": "trec6", **content})
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    (problem,) = paths.problems(paths.make_absolute(config))
    assert problem.where.startswith(f"{field} = ")
    assert "lost after the next edit" in problem.message
    monkeypatch.chdir(tmp_path)
    assert not list(paths.problems(paths.make_absolute(config)))
