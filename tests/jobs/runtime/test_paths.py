import pytest

from jobs.runtime import paths
from potstill.config import parse


def test_relative_paths_are_relative_to_the_folder_of_the_command(tmp_path):
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
    absolute = paths.make_absolute(config, tmp_path)
    assert absolute.task.data_dir == f"{tmp_path}/data"
    assert absolute.storage == f"{tmp_path}/runs"
    assert absolute.ledger.uri == f"sqlite:///{tmp_path}/rel.db?timeout=5"
    assert absolute.teacher.model == f"{tmp_path}/models/own"
    assert absolute.student.model == f"{tmp_path}/student"
    assert absolute.tracking.uri == f"sqlite:///{tmp_path}/ml/rel.db"
    assert absolute.tracking.artifacts == f"{tmp_path}/art"
    assert paths.make_absolute(absolute, tmp_path / "elsewhere") == absolute


def test_other_paths_and_names_stay(tmp_path):
    config = parse(
        {
            "task": "trec6",
            "storage": "s3://bucket/runs",
            "ledger": {"uri": "postgresql+psycopg://host/ledger"},
            "student": {"model": "owner/model"},
            "tracking": {"uri": "http://mlflow:5000", "artifacts": "s3://bucket/a"},
        }
    )
    assert paths.make_absolute(config, tmp_path) == config
    for uri in ("none", "databricks", "sqlite://", "sqlite:///:memory:"):
        other = parse({"task": "trec6", "tracking": {"uri": uri}})
        assert paths.make_absolute(other, tmp_path).tracking.uri == uri


def test_a_task_is_a_name_or_a_path(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "trec6").mkdir()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/pets.yaml").touch()

    def preset(written):
        absolute = paths.make_absolute(parse({"task": written}), tmp_path)
        assert paths.make_absolute(absolute, tmp_path / "elsewhere") == absolute
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
def test_nothing_is_stored_in_a_submitted_copy(tmp_path, field, content):
    package = tmp_path / "session_1/runtime_resources/working_dir_files/_ray_pkg_0123abcd"
    config = parse({"task": "trec6", **content})
    (problem,) = paths.problems(paths.make_absolute(config, package))
    assert problem.where.startswith(f"{field} = ")
    assert "lost after the next edit" in problem.message
    assert not list(paths.problems(paths.make_absolute(config, tmp_path)))
