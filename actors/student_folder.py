"""What training leaves behind: ``<storage>/students/<digest>/``.

``rows.parquet`` (what was learnt from), ``validation.parquet`` and ``asked.parquet`` are there before training, ``model/`` is a plain transformers folder,
and ``complete.json``, written last, says that all of it is whole. Paths are any that fsspec reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from potstill import __version__
from potstill.config.student import StudentConfig
from potstill.student.arms import TrainingRow, from_table, to_table

MARKER = "complete.json"


def model_folder(folder: str) -> str:
    """Where the transformers folder of an arm is."""
    return f"{folder.rstrip('/')}/model"


def write_rows(folder: str, **parts: Sequence[TrainingRow]) -> None:
    """Put an arm's rows where its workers will find them: ``<part>.parquet`` each; empty parts are left out."""
    filesystem, root = url_to_fs(folder)
    filesystem.makedirs(root, exist_ok=True)
    for name, part in parts.items():
        if part:
            # Written beside and renamed: another job may be reading the same arm.
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


def read_report(folder: str) -> dict[str, Any] | None:
    """The report of an arm that is complete, else ``None``."""
    filesystem, root = url_to_fs(folder)
    try:
        with filesystem.open(f"{root}/{MARKER}", "r") as file:
            report: dict[str, Any] = json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return report if filesystem.exists(f"{root}/model/config.json") else None


def discard(folder: str) -> None:
    """Forget an arm's export: the marker goes first, so that a half-deleted one never counts."""
    filesystem, root = url_to_fs(folder)
    for name in (MARKER, "model"):
        if filesystem.exists(f"{root}/{name}"):
            filesystem.rm(f"{root}/{name}", recursive=True)


def write(
    folder: str, encoder: Any, state: Mapping[str, Any], labels: Sequence[str], card: str, report: Mapping[str, Any]
) -> None:
    """Export model, tokenizer and model card, then the marker. Only rank 0 calls this.

    An arm that another job has completed meanwhile is left alone: its model may be being read.
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
        json.dump(dict(report), file)
    filesystem.mv(f"{root}/{MARKER}.new", f"{root}/{MARKER}")


def _replace(filesystem: Any, source: str, target: str) -> None:
    if filesystem.exists(target):
        filesystem.rm(target, recursive=True)
    if "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)):
        shutil.copytree(source, target)
        return
    filesystem.put(source.rstrip("/") + "/", target + "/", recursive=True)


@contextlib.contextmanager
def fetched(folder: str) -> Iterator[str]:
    """A transformers folder on this machine: itself where it is local, else a copy that is gone after the block."""
    filesystem, root = url_to_fs(folder)
    if "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)):
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
    report: Mapping[str, Any],
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
        f"{report['steps']} optimiser steps over {report['examples']} examples; last loss {report['losses'][-1]:.4f}; "
        f"weights of step {report['best_step']}; {report['truncated']} texts were cut at the length limit.",
        "",
        *(f"- {key}: `{value}`" for key, value in settings.items()),
        "",
        "## Lineage",
        "",
        f"- training digest: `{report['digest']}`",
        *(f"- {key}: {value}" for key, value in lineage.items()),
        "",
    ]
    return "\n".join(lines)
