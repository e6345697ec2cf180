"""Registering and promoting against a real registry on SQLite; a student is loaded without potstill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.tracking.promote import PromotionRefusedError, promote
from jobs.tracking.registry import StudentCard, StudentVersion, find_version, pinned_requirements, register_student
from potstill.errors import InputError, StageError

NAME = "trec6-student"
LABELS = ["location", "human being", "numeric: $"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One registry for the module: writing MLflow's schema takes 3 s."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_HOME", str(folder))
        client(folder).search_experiments()
        yield folder


def client(home: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri(home))


def uri(home: Path) -> str:
    return f"sqlite:///{home}/mlflow.db"


@pytest.fixture
def model(home: Path, request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own, without versions."""
    name = f"{request.node.name[:60]}-student"
    client(home).create_registered_model(name)
    return name


@pytest.fixture
def add(home: Path, model: str) -> Callable[..., str]:
    """Add a version with scores as the challenger."""

    def add(macro_f1: float | None, test_digest: str = "t1", **tags: str) -> str:
        scores = {} if macro_f1 is None else {"macro_f1": repr(macro_f1), "macro_f1_low": repr(macro_f1 - 0.02)}
        scores |= {} if macro_f1 is None else {"macro_f1_high": repr(macro_f1 + 0.02), "accuracy": "0.5"}
        made = client(home).create_model_version(
            model, (home / "nothing").as_uri(), tags={**scores, "test_digest": test_digest, **tags}
        )
        client(home).set_registered_model_alias(model, "challenger", made.version)
        return str(made.version)

    return add


def champion(home: Path, name: str) -> str | None:
    number = client(home).get_registered_model(name).aliases.get("champion")
    return None if number is None else str(number)


def test_the_first_student_becomes_champion_and_a_better_one_replaces_it(
    home: Path, model: str, add: Callable[..., str]
) -> None:
    add(0.5)
    first = promote(model, tracking_uri=uri(home))
    assert (first.champion, first.previous, champion(home, model)) == ("1", None, "1")
    add(0.6)
    second = promote(model, tracking_uri=uri(home))
    assert (second.champion, second.previous, champion(home, model)) == ("2", "1", "2")
    again = promote(model, tracking_uri=uri(home))
    assert again.champion == again.previous
    assert "already" in again.message


def test_a_first_student_that_its_seeds_alone_beat_is_refused(
    home: Path, model: str, add: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    add(0.5, baseline_macro_f1="0.52")
    with pytest.raises(
        PromotionRefusedError, match=r"worse than its seeds-only baseline: macro-F1 50.0 % against 52.0 %"
    ):
        promote(model, tracking_uri=uri(home))
    assert "seeds only" in capsys.readouterr().out
    assert champion(home, model) is None
    add(0.52, baseline_macro_f1="0.52")
    assert promote(model, tracking_uri=uri(home)).champion == "2"
    add(0.6, baseline_macro_f1="0.7")  # still better than the champion
    assert promote(model, tracking_uri=uri(home)).champion == "3"


def test_a_worse_student_is_refused_unless_forced(home: Path, model: str, add: Callable[..., str]) -> None:
    add(0.6)
    promote(model, tracking_uri=uri(home))
    add(0.59)
    with pytest.raises(PromotionRefusedError, match=r"59.0 % against 60.0 %, though within") as refusal:
        promote(model, tracking_uri=uri(home))
    assert refusal.value.exit_code == 1
    assert champion(home, model) == "1"
    assert "forced" in promote(model, force=True, tracking_uri=uri(home)).message
    assert champion(home, model) == "2"


@pytest.mark.parametrize(("score", "test", "reason"), [(0.9, "t2", "different texts"), (None, "t1", "no macro_f1 tag")])
def test_incomparable_versions_are_refused(
    home: Path, model: str, add: Callable[..., str], score: float | None, test: str, reason: str
) -> None:
    add(0.6)
    promote(model, tracking_uri=uri(home))
    add(score, test)
    with pytest.raises(PromotionRefusedError, match=reason):
        promote(model, tracking_uri=uri(home))
    assert champion(home, model) == "1"


def test_rollback_goes_back_one_promotion_at_a_time(home: Path, model: str, add: Callable[..., str]) -> None:
    for score in (0.5, 0.6, 0.7):
        add(score)
        promote(model, tracking_uri=uri(home))
    client(home).delete_model_version(model, "2")
    back = promote(model, rollback=True, tracking_uri=uri(home))  # version 2 was deleted, so back to version 1
    assert (back.champion, back.previous, champion(home, model)) == ("1", "3", "1")
    assert promote(model, rollback=True, tracking_uri=uri(home)).champion is None
    assert champion(home, model) is None
    with pytest.raises(InputError, match="no promotion left"):
        promote(model, rollback=True, tracking_uri=uri(home))


def test_both_scores_are_shown_also_when_refused(
    home: Path, model: str, add: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    add(0.6, teacher="smollm2")
    promote(model, tracking_uri=uri(home))
    add(0.5, run_digest="abc123")
    with pytest.raises(PromotionRefusedError):
        promote(model, tracking_uri=uri(home))
    shown = capsys.readouterr().out
    for part in ("champion (version 1)", "challenger (version 2)", "60.0 % [58.0, 62.0]", "-10.0", "abc123", "smollm2"):
        assert part in shown


def test_errors_list_what_is_registered(home: Path, model: str, add: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=f"no such registered model at .*; registered: .*{model}"):
        promote("nobody", tracking_uri=uri(home))
    with pytest.raises(InputError, match=r"has no challenger; choose one with --version; it has no versions"):
        promote(model, tracking_uri=uri(home))
    add(0.5)
    with pytest.raises(InputError, match=r"--version 9: .* it has versions 1 \(challenger\)"):
        promote(model, 9, tracking_uri=uri(home))
    with pytest.raises(InputError, match="--rollback: takes no --version"):
        promote(model, 1, rollback=True, tracking_uri=uri(home))
    with pytest.raises(InputError, match="connection refused"):
        promote(model, tracking_uri="http://127.0.0.1:9")
    assert promote(model, 1, tracking_uri=uri(home)).champion == "1"


# Registering


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT classifier, exported as a transformers folder."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("student")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "where", "who", "is", "wrote", "the", "4711"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
        initializer_range=2.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture
def register(home: Path, student: Path) -> Callable[..., StudentVersion]:
    mlflow_client = client(home)
    known = mlflow_client.get_experiment_by_name("students")
    artifacts = (home / "artifacts").as_uri()
    experiment_id = known.experiment_id if known else mlflow_client.create_experiment("students", artifacts)
    run = mlflow_client.create_run(experiment_id)

    def register(run_digest: str, **changes: Any) -> StudentVersion:
        settings: dict[str, Any] = {
            "name": NAME,
            "folder": student,
            "run_digest": run_digest,
            "task": "trec6",
            "labels": LABELS,
            "scores": {"macro_f1": 0.5, "macro_f1_low": 0.4, "macro_f1_high": 0.6, "accuracy": 0.55},
            "test_digest": "t1",
            "student_digest": "s1",
            "teacher": "smollm2",
            "input_example": ["where is the danube", "who wrote hamlet"],
            "lineage": {"base_model": "tiny"},
        }
        return register_student(StudentCard(**{**settings, **changes}), uri(home), run.info.run_id)

    return register


def test_requirements_are_pinned_to_installable_versions() -> None:
    pins = dict(line.split("==") for line in pinned_requirements())
    assert {"mlflow", "transformers", "torch"} <= set(pins)
    assert not any("+" in version for version in pins.values())


def test_a_version_is_found_by_its_run_and_its_student() -> None:
    def version(number: int, student: str, status: str = "READY") -> SimpleNamespace:
        return SimpleNamespace(version=str(number), status=status, tags={"run_digest": "r1", "student_digest": student})

    versions = [version(10, "s1"), version(9, "s1"), version(3, "s2"), version(2, "s1", "FAILED_REGISTRATION")]
    registry: Any = SimpleNamespace(search_model_versions=lambda where: versions if "'r1'" in where else [])
    assert [getattr(find_version(registry, NAME, "r1", s), "version", None) for s in ("s1", "s2", "s3")] == [
        "9",
        "3",
        None,
    ]
    assert find_version(registry, NAME, "r2", "s1") is None


@pytest.mark.slow
def test_a_student_is_registered_once_per_run_digest(home: Path, register: Callable[..., StudentVersion]) -> None:
    first = register("digest-1")
    assert (first.created, first.alias_uri) == (True, f"models:/{NAME}@challenger")
    second = register("digest-2")
    assert int(second.version) == int(first.version) + 1
    again = register("digest-1")
    assert again == StudentVersion(NAME, first.version, first.model_uri, created=False)
    assert str(client(home).get_registered_model(NAME).aliases["challenger"]) == first.version
    tags = client(home).get_model_version(NAME, first.version).tags
    assert tags["run_digest"] == "digest-1"
    assert float(tags["macro_f1"]) == 0.5
    assert tags["base_model"] == "tiny"
    version = client(home).get_model_version(NAME, first.version)
    logged = client(home).get_logged_model(version.source.removeprefix("models:/"))
    assert logged.status == "READY"
    assert logged.artifact_location.startswith((home / "artifacts").as_uri())  # not under the working directory
    assert logged.source_run_id == version.run_id
    assert client(home).get_run(version.run_id).info.status == "RUNNING"  # the job ends it


@pytest.mark.slow
def test_a_folder_that_is_no_student_of_the_task_is_refused(
    register: Callable[..., StudentVersion], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="trained for classes"):
        register("digest-3", labels=["location", "human being"])
    with pytest.raises(StageError, match="not a transformers folder"):
        register("digest-3", folder=tmp_path)


@pytest.mark.slow
def test_a_process_without_potstill_loads_the_challenger_and_predicts(
    home: Path, register: Callable[..., StudentVersion], tmp_path: Path
) -> None:
    register("digest-1")
    program = """
import json, sys

class NoProject:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("potstill", "jobs", "actors"):
            raise ImportError(f"{name} is not to be had here")

sys.meta_path.insert(0, NoProject())
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/trec6-student@challenger")
texts = ["where is the danube", "who wrote", "4711", "where " * 900]
inputs = {
    "list": texts, "text": "4711", "literals": ["4711", "[1, 2]", "None"], "frame": pd.DataFrame({"text": texts}),
    "column": pd.DataFrame({"message": texts}), "series": pd.Series(texts), "one": texts[:1],
}
print(json.dumps({name: model.predict(data).to_dict("list") for name, data in inputs.items()}))
print(json.dumps(model.metadata.metadata["classes"]))
pipeline = mlflow.transformers.load_model("models:/trec6-student@challenger")
print(json.dumps(pipeline("who wrote")[0]["label"]))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program, uri(home)],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    answers, classes, plain = (json.loads(line) for line in answer.stdout.splitlines()[-3:])
    assert classes == LABELS
    assert plain in LABELS
    assert set(answers["list"]) == {"label", "score"}
    assert len(answers["list"]["label"]) == 4
    assert set(answers["list"]["label"]) <= set(LABELS)
    assert all(0 <= score <= 1 for score in answers["list"]["score"])
    for name in ("frame", "column", "series"):
        assert answers[name]["label"] == answers["list"]["label"]
        assert answers[name]["score"] == pytest.approx(answers["list"]["score"], abs=1e-5)
    assert answers["one"]["label"] == answers["list"]["label"][:1]
    assert answers["text"]["label"] == answers["literals"]["label"][:1] == answers["list"]["label"][2:3]
