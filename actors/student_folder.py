"""The folder of a student: ``<storage>/students/<digest>/``.

``rows.parquet`` (the training rows), ``validation.parquet`` and ``asked.parquet`` are written before training.
``model/`` is a plain transformers folder. ``complete.json``, the report, is written last and marks the folder as
complete. Paths are any that fsspec reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from potstill import __version__
from potstill.config.student import StudentConfig
from potstill.errors import StageError
from potstill.student.arms import TrainingRow, from_table, to_table

MARKER = "complete.json"


@dataclass(frozen=True, slots=True)
class ArmReport:
    """The report on an arm's training, as ``complete.json`` holds it.

    ``losses`` and ``learning_rates``: one per step, the loss a weighted mean over the global batch; ``seconds``: without
    loading and export; ``tokens``: real ones, ``padded_tokens``: all that were computed; ``best_step``: the step whose
    weights were exported; ``workers``: at the end; ``anchor_weight``: fields of ``second_opinion.AnchorWeight``, empty
    without an anchor; ``warnings``: checkpoints that failed; ``resumed``: the steps after which training resumed from a
    checkpoint.
    """

    digest: str
    steps: int
    losses: list[float]
    learning_rates: list[float]
    examples: int
    tokens: int
    padded_tokens: int
    truncated: int
    seconds: float
    workers: int
    best_step: int
    anchor_weight: dict[str, float | None] = field(default_factory=dict)
    validation: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)


def model_folder(folder: str) -> str:
    """The transformers folder of an arm."""
    return f"{folder.rstrip('/')}/model"


def write_rows(folder: str, **parts: Sequence[TrainingRow]) -> None:
    """Write an arm's rows for its workers, each part as ``<part>.parquet``; empty parts are left out."""
    filesystem, root = url_to_fs(folder)
    filesystem.makedirs(root, exist_ok=True)
    for name, part in parts.items():
        if part:
            # Written to a temporary name and renamed: another job may be reading the same arm.
            with filesystem.open(f"{root}/{name}.parquet.new{os.getpid()}", "wb") as file:
                pq.write_table(to_table(part), file)
            filesystem.mv(f"{root}/{name}.parquet.new{os.getpid()}", f"{root}/{name}.parquet")


def read_rows(folder: str, part: str = "rows") -> list[TrainingRow]:
    """One part of an arm's rows; empty if there is none."""
    filesystem, root = url_to_fs(folder)
    try:
        with filesystem.open(f"{root}/{part}.parquet", "rb") as file:
            return from_table(pq.read_table(pa.BufferReader(file.read())))
    except FileNotFoundError:
        return []


def read_report(folder: str) -> ArmReport | None:
    """The report of a complete arm, else ``None``."""
    filesystem, root = url_to_fs(folder)
    try:
        with filesystem.open(f"{root}/{MARKER}", "r") as file:
            content = json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if "say" in content:  # the key of earlier versions
        content["anchor_weight"] = content.pop("say")
    known = {name: content[name] for name in ArmReport.__dataclass_fields__ if name in content}
    return ArmReport(**known) if filesystem.exists(f"{root}/model/config.json") else None


def check_classes(folder: str, labels: Sequence[str]) -> None:
    """Raise ``StageError`` unless the transformers folder ``folder`` holds a student of the classes ``labels``."""
    filesystem, root = url_to_fs(folder)
    try:
        with filesystem.open(f"{root}/config.json", "r") as file:
            names = json.load(file).get("id2label", {})
    except (OSError, ValueError) as error:
        raise StageError(f"{folder} is not a transformers folder: {error}") from error
    found = [names[key] for key in sorted(names, key=int)]
    if found != list(labels):
        raise StageError(f"the student in {folder} was trained for classes {found}, not for {list(labels)}")


def discard(folder: str) -> None:
    """Delete an arm's export, its marker first, so that a half-deleted one never counts as complete."""
    filesystem, root = url_to_fs(folder)
    for name in (MARKER, "model"):
        if filesystem.exists(f"{root}/{name}"):
            filesystem.rm(f"{root}/{name}", recursive=True)


def write(
    folder: str, encoder: Any, state: Mapping[str, Any], labels: Sequence[str], card: str, report: ArmReport
) -> None:
    """Export model, tokenizer and model card, then the marker. Only rank 0 calls this.

    An arm that another job has completed in the meantime is left alone, since its model may be in use.
    """
    filesystem, root = url_to_fs(folder)
    if read_report(folder) is not None:
        return
    discard(folder)
    with tempfile.TemporaryDirectory(prefix="potstill-export-") as scratch:
        model = encoder.model
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: number for number, label in enumerate(labels)}
        model.save_pretrained(scratch, state_dict=dict(state))
        encoder.tokenizer.save_pretrained(scratch)
        with open(os.path.join(scratch, "README.md"), "w") as file:
            file.write(card)
        _replace(filesystem, scratch, f"{root}/model")
    with filesystem.open(f"{root}/{MARKER}.new", "w") as file:
        json.dump(asdict(report), file)
    filesystem.mv(f"{root}/{MARKER}.new", f"{root}/{MARKER}")


def _replace(filesystem: Any, source: str, target: str) -> None:
    if filesystem.exists(target):
        filesystem.rm(target, recursive=True)
    if _is_local(filesystem):
        shutil.copytree(source, target)
        return
    filesystem.put(source.rstrip("/") + "/", target + "/", recursive=True)


def _is_local(filesystem: Any) -> bool:
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


@contextlib.contextmanager
def fetched(folder: str) -> Iterator[str]:
    """A local path of a transformers folder: the folder itself if it is local, else a copy that is deleted afterwards."""
    filesystem, root = url_to_fs(folder)
    if _is_local(filesystem):
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="potstill-student-") as target:
        filesystem.get(root.rstrip("/") + "/", target + "/", recursive=True)
        yield target


def model_card(
    name: str,
    labels: Sequence[str],
    student: StudentConfig,
    rows: int,
    report: ArmReport,
    lineage: Mapping[str, str],
) -> str:
    """The README.md of an exported student."""
    settings = {key: value for key, value in student.model_dump(mode="json").items() if value not in (None, {}, False)}
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "tags: [potstill, distillation]",
        "---",
        "",
        f"# {name}",
        "",
        f"A text classifier with {len(labels)} classes, trained by potstill {__version__} on {rows} texts.",
        "",
        "Classes: " + ", ".join(f"`{label}`" for label in labels),
        "",
        "## Training",
        "",
        f"{report.steps} optimiser steps over {report.examples} examples; last loss {report.losses[-1]:.4f}; "
        f"weights of step {report.best_step}; {report.truncated} texts were cut at the length limit.",
        "",
        *(f"- {key}: `{value}`" for key, value in settings.items()),
        "",
        "## Lineage",
        "",
        f"- training digest: `{report.digest}`",
        *(f"- {key}: {value}" for key, value in lineage.items()),
        "",
    ]
    return "\n".join(lines)
