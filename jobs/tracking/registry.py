"""Registers a student: the exported transformers folder becomes a model version with alias ``challenger``.

    model = mlflow.pyfunc.load_model("models:/trec6-student@challenger")
    model.predict(["Where is the Danube?", "Who wrote Hamlet?"])["label"]      # class names; "score": their probability

``register_student`` runs in a Ray task or a subprocess: it needs transformers, which the driver does not import. It
takes 5 s, mostly for imports, and copies the folder (90 MB for MiniLM). The model carries its own short loader
(``jobs/tracking/served_student.py``, whose docstring says why), so serving it needs only MLflow, torch and
transformers, not potstill.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors import student_folder
from jobs.runtime.paths import absolute_uri
from jobs.tracking.server import RefusedError, client, mlflow_errors, short_requests
from potstill.errors import StageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

CHALLENGER, CHAMPION = "challenger", "champion"
UPLOAD_TIMEOUT_S = 120  # per request: weights take longer than a metric
PINNED = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas")
_LOADER = Path(__file__).with_name("served_student.py")


@dataclass(frozen=True, slots=True)
class StudentVersion:
    """A version in the model registry. ``created``: false if it was registered before."""

    name: str
    version: str
    model_uri: str
    created: bool

    @property
    def alias_uri(self) -> str:
        """The address of the newest evaluated student, whichever version that is."""
        return f"models:/{self.name}@{CHALLENGER}"


@dataclass(frozen=True, slots=True)
class StudentCard:
    """A student to be registered as ``name``; ``folder`` is its export (any fsspec path).

    ``scores`` become tags of the version, by which ``promote`` compares versions: ``macro_f1``, ``macro_f1_low``,
    ``macro_f1_high`` (bounds of its interval), ``accuracy``, all fractions of 1, and any others. ``lineage``: more tags
    (base model, data digests, git commit). ``max_length`` in tokens; longer texts are cut, as in evaluation.
    """

    name: str
    folder: str | Path
    run_digest: str
    task: str
    labels: Sequence[str]
    scores: Mapping[str, float]
    test_digest: str
    student_digest: str
    teacher: str
    input_example: Sequence[str]
    max_length: int = 128
    lineage: Mapping[str, str] = field(default_factory=dict)

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the model version."""
        facts = ("task", "run_digest", "test_digest", "student_digest", "teacher")
        return {
            **{key: str(value) for key, value in self.lineage.items()},
            **{key: repr(float(value)) for key, value in self.scores.items()},
            **{key: getattr(self, key) for key in facts},
        }


def register_student(card: StudentCard, tracking_uri: str, run_id: str) -> StudentVersion:
    """Log the student under ``run_id`` and register it, once per run digest and student digest.

    A version with these digests is returned as it is, and ``challenger`` points to it again. Raises ``StageError``
    if the folder does not hold a student with these classes, ``TrackingError`` for an outage.
    """
    with student_folder.fetched(str(card.folder)) as local:
        _check_folder(Path(local), card.labels)
        try:
            with short_requests(UPLOAD_TIMEOUT_S), _tracking_to(tracking_uri), mlflow_errors():
                registry = client(tracking_uri)
                known = find_version(registry, card.name, card.run_digest, card.student_digest)
                created = known is None
                if known is None:
                    model_uri = _log(registry, Path(local), run_id, card)
                    known = _create_version(registry, card.name, model_uri, run_id, card.tags)
                registry.set_registered_model_alias(card.name, CHALLENGER, known.version)
        except RefusedError as error:
            raise StageError(f"MLflow refused the student {card.name!r}: {error}") from error
    return StudentVersion(card.name, str(known.version), f"models:/{card.name}/{known.version}", created)


def find_version(registry: MlflowClient, name: str, run_digest: str, student_digest: str) -> ModelVersion | None:
    """The oldest ready version of ``name`` with both digests, or None."""
    for found in list_versions(registry, name, f" and tags.run_digest = '{run_digest}'").values():
        if found.status == "READY" and found.tags.get("student_digest") == student_digest:
            return found
    return None


def list_versions(registry: MlflowClient, name: str, condition: str = "") -> dict[str, ModelVersion]:
    """The versions of a registered model by number, oldest first. ``condition``: more of MLflow's filter."""
    quoted = name.replace("'", "''")
    found = registry.search_model_versions(f"name = '{quoted}'{condition}")
    return {str(one.version): one for one in sorted(found, key=lambda one: int(one.version))}


def predict_signature() -> ModelSignature:
    """One unnamed text in; class name and its probability out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "score")]),
    )


def pinned_requirements() -> list[str]:
    """The packages that loading the model needs, at the versions it was made with.

    Local parts of a version (``+cpu``) are left out, since package indexes don't have them.
    """
    pins = []
    for package in PINNED:
        try:
            pins.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return pins


def _check_folder(folder: Path, labels: Sequence[str]) -> None:
    student_folder.check_classes(str(folder), labels)
    names = ("tokenizer.json", "vocab.txt", "tokenizer.model", "spiece.model", "vocab.json")
    if not any((folder / name).exists() for name in names):
        raise StageError(f"{folder} holds no tokenizer: save it beside the model")


def _log(registry: MlflowClient, folder: Path, run_id: str, card: StudentCard) -> str:
    """Log the model and return its ``models:/m-...`` address.

    The weights are loaded once, on the CPU: MLflow 3.17 can't log a folder by its path with transformers 5.
    """
    from mlflow.models import Model
    from transformers import pipeline

    import jobs.tracking.served_flavor as flavor

    # Created explicitly: MLflow puts a model without an active run into the Default experiment, whose artifacts are
    # in the working directory, and an active run would end when it is left.
    run = registry.get_run(run_id)
    made = registry.create_logged_model(run.info.experiment_id, "student", run_id, card.tags, model_type="transformers")
    info = Model.log(
        artifact_path=None,
        model_id=made.model_id,
        flavor=flavor,
        run_id=run_id,
        transformers_model=pipeline("text-classification", model=str(folder), tokenizer=str(folder), device="cpu"),
        task="text-classification",
        signature=predict_signature(),
        input_example=list(card.input_example[:3]),
        pip_requirements=pinned_requirements(),
        code_paths=[str(_LOADER)],
        model_config={"max_length": card.max_length, "batch_size": 32},
        metadata={"classes": list(card.labels), "potstill": card.tags},
        model_card=_model_card(card),
    )
    return str(info.model_uri)


def _model_card(card: StudentCard) -> Any:
    """The model's README. Without one MLflow would look one up on the hub, by the folder's name."""
    from huggingface_hub import ModelCard

    facts = "\n".join(f"- {key}: {value}" for key, value in sorted(card.tags.items()))
    classes = ", ".join(f"`{label}`" for label in card.labels)
    head = "---\nlibrary_name: transformers\npipeline_tag: text-classification\n---\n"
    body = f"# {card.task} student\n\nA text classifier distilled by potstill.\n\nClasses: {classes}\n\n{facts}\n"
    return ModelCard(head + body)


def _create_version(
    registry: MlflowClient, name: str, model_uri: str, run_id: str, tags: Mapping[str, str]
) -> ModelVersion:
    """Register the model. The tags are set along with the version, so that no version ever lacks its digests."""
    from mlflow.exceptions import MlflowException

    try:
        registry.create_registered_model(
            name, description="Text classifiers distilled by potstill, one version per run digest."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return registry.create_model_version(
        name,
        source=model_uri,
        run_id=run_id,
        tags=dict(tags),
        await_creation_for=60,
        model_id=model_uri.removeprefix("models:/"),
    )


@contextmanager
def _tracking_to(uri: str) -> Iterator[None]:
    """Set MLflow's process-wide settings inside the block and restore them afterwards, since a Ray worker also runs
    other tasks."""
    import mlflow

    names = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {key: os.environ.pop(key) for key in names if key in os.environ}
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(absolute_uri(uri))
    try:
        yield
    finally:
        mlflow.set_tracking_uri(previous)
        for key in names:
            os.environ.pop(key, None)
        os.environ.update(before)
