"""Predictions of exported students, as batch inference over Ray Data.

    predictions = predict({"distilled": folder}, data.test, task.labels)
    score(predictions["distilled"], task.labels)

All students answer in one pass over the texts. On a cluster without GPUs the job's torch worker
(``jobs/runtime/torch_worker.py``) answers small splits, which saves 15 CPU seconds of imports.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors import student_folder
from actors.inference.predictor import PREFIX, Predictor
from actors.teachers.pool import cause
from jobs.runtime import torch_worker
from potstill.errors import StageError
from potstill.measures.baselines import as_predictions
from potstill.rows import Prediction
from potstill.task import LabelledText

CPU_ACTORS = 2
BATCH = 512
TOGETHER = 8  # students per pass: an actor holds them all


def predict(
    students: Mapping[str, str], texts: Sequence[LabelledText], labels: Sequence[str], *, max_length: int = 128
) -> dict[str, list[Prediction]]:
    """Every student's predictions, in the order of ``texts``.

    ``students`` maps names to exported folders (any fsspec path); above eight they answer in several passes. Raises
    ``StageError`` if a folder can't be loaded.
    """
    if not texts:
        return {name: [] for name in students}
    for folder in students.values():  # before actors start
        student_folder.check_classes(folder, labels)
    predictions: dict[str, list[Prediction]] = {}
    names = list(students)
    for start in range(0, len(names), TOGETHER):
        some = {name: students[name] for name in names[start : start + TOGETHER]}
        probs = _ask_twice(
            [row.text for row in texts], {"students": some, "labels": list(labels), "max_length": max_length}
        )
        predictions |= {name: as_predictions(texts, np.asarray(probs[name]), labels) for name in some}
    return predictions


def _ask_twice(texts: Sequence[str], arguments: dict[str, Any]) -> Mapping[str, Sequence[Sequence[float]]]:
    """``_ask``, repeated once: most errors are a lost node, and a pass is short and has no side effects."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError):
        return _ask(texts, arguments)
    try:
        return _ask(texts, arguments)
    except ray.exceptions.RayError as error:
        raise StageError(f"prediction failed: {cause(error)}") from error


def _ask(texts: Sequence[str], arguments: dict[str, Any]) -> Mapping[str, Sequence[Sequence[float]]]:
    """Class probabilities in the order of the texts, by student: from the job's torch worker, or from one actor per GPU,
    else up to two on CPU."""
    import ray

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    actors = max(1, min(gpus or CPU_ACTORS, gpus or cpus, len(texts) // BATCH))
    if gpus or actors > 1:
        return _ask_actors(texts, arguments, actors, bool(gpus))
    found: Mapping[str, Sequence[Sequence[float]]] = torch_worker.ask(
        "predict", arguments["students"], texts, arguments["labels"], arguments["max_length"], "cpu"
    )
    return found


def _ask_actors(
    texts: Sequence[str], arguments: dict[str, Any], actors: int, on_gpu: bool
) -> dict[str, list[Sequence[float]]]:
    """The same from one pass of Ray Data."""
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.util.annotations import RayDeprecationWarning

    options: dict[str, Any] = {"num_gpus": 1} if on_gpu else {"num_cpus": 1}
    if not on_gpu:
        options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
    # The pool does not keep the order, so each text carries its position.
    table = pa.table({"position": range(len(texts)), "text": list(texts)})
    # Split here: a repartition would need its own CPU, and the pool may hold them all.
    blocks = [table.slice(start, BATCH) for start in range(0, len(texts), BATCH)]
    with warnings.catch_warnings():
        # Every way to set max_restarts is deprecated since Ray 2.60, without a replacement yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        asked = ray.data.from_arrow(blocks).map_batches(
            Predictor,
            fn_constructor_kwargs={**arguments, "device": "cuda" if on_gpu else "cpu"},
            batch_size=BATCH,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=actors),
            # For an actor that may restart, Ray warns on the terminal that its arguments could get lost.
            ray_remote_args_fn=lambda: {"max_restarts": 0},
            **options,
        )
    answered: list[dict[str, Any]] = asked.take_all()
    rows = sorted(answered, key=lambda row: row["position"])
    return {name: [row[PREFIX + name] for row in rows] for name in arguments["students"]}
