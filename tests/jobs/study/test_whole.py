"""A whole study from the command line: HTTP teacher, real Ray, trained students; then the same command again."""

from __future__ import annotations

import json
import subprocess

import mlflow
import pytest

from potstill.study.tables import read_study
from tests.endpoint.client import Endpoint
from tests.support.command_line import MAILROOM, ROOT, command, environment, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    content = {
        "name": "mail",
        "tasks": [str(MAILROOM)],
        "sources": ["real", "k_shot", "promptmix_a1", "promptmix", "nn_llm"],
        "repeats": 1,
        "max_test": 10,
        "augment": {"per_class": 3, "over_generate": 1.0, "max_rounds": 1, "max_tokens": 40},
        "student": {"min_steps": 2, "epochs": 1, "workers": 1},
        "evaluate": {"resamples": 100},
    }

    def run():
        arguments = command("study", str(place / "study.yaml"))
        variables = environment(place / "home")
        return subprocess.run(
            arguments, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=800, check=False
        )

    with Endpoint(latency_s=0.01) as endpoint:
        teacher = {
            "kind": "openai",
            "model": "scripted-1",
            "base_url": endpoint.base_url,
            "api_key_env": "",
            "requests_per_minute": 60_000,
        }
        write_config(place / "study.yaml", {**content, "teachers": {"scripted": teacher}})
        first = run()
        assert first.returncode == 0, first.stdout + first.stderr
        asked = len(endpoint.book())
        second = run()
        assert len(endpoint.book()) == asked
    (folder,) = (place / "home/runs").glob("study-mail-*")
    return place / "home", folder, first, second


def test_all_tables_are_there_with_real_numbers(studied):
    _, folder, first, _ = studied
    study, tables = read_study(str(folder))
    assert study.finished
    assert {cell["source"] for cell in tables["cells"].to_pylist()} == {source.name for source in study.sources}
    assert all(table.num_rows for table in tables.values())
    for title in ("Table 1", "PromptMix: A1 and A2", "Diversity"):
        assert title in first.stdout


def test_the_same_command_again_computes_nothing(studied):
    _, folder, first, second = studied
    assert second.returncode == 0, second.stdout + second.stderr
    assert "6 cells, 6 of them done" in second.stdout
    tables = first.stdout[first.stdout.index("Table 1") : first.stdout.index("tables    ")]
    assert tables in second.stdout
    assert len(list((folder / "cell").iterdir())) == len(list((folder / "prediction").iterdir()))


def test_mlflow_has_the_study_with_a_child_a_source_and_a_fit(studied):
    home, folder, _, _ = studied
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "mail"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["potstill.run_digest"] == folder.name.rsplit("-", 1)[1]
    assert any(name.endswith("macro_f1") for name in parent.data.metrics)
    children = {run.info.run_name for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert children >= {"mailroom real repeat 1", "mailroom promptmix repeat 1 scripted"}
    assert "mailroom repeat 1 embedded" in children
    assert json.loads((folder / "study.json").read_text())["models"] == ["scripted-1"]
