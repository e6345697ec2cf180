"""The seeds-only student as an anchor of another student's training: its opinion refines the labels before training,
its weights are blended in afterwards. ``potstill.student.second_opinion`` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from actors import student_folder
from actors.inference.predictor import Predictor
from actors.training.job import ArmJob, TrainingJob
from potstill.student import second_opinion
from potstill.student.arms import TrainingRow


@dataclass(frozen=True, slots=True)
class Anchor:
    """``opinion``: its class probabilities for the rows of the arm, [rows, classes]; ``model``: its export."""

    model: str
    opinion: NDArray[np.float64]
    weight: second_opinion.AnchorWeight

    @classmethod
    def consult(cls, arm: ArmJob, rows: Sequence[TrainingRow], job: TrainingJob) -> Anchor:
        """The anchor of ``arm``, with its opinion on ``rows`` and its weight from the texts that the teacher was asked
        about. Raises ``StageError`` if it can't be loaded.
        """
        assert arm.anchor is not None
        model = student_folder.model_folder(arm.anchor)
        asked = student_folder.read_rows(arm.folder, "asked")
        predictor = Predictor({"anchor": model}, job.labels, job.device, job.student.max_length, threads=job.threads)
        opinion = predictor.predict([row.text for row in (*rows, *asked)])["anchor"]
        weight = second_opinion.choose_weight(
            job.student,
            n_seeds=len(student_folder.read_rows(arm.anchor)),
            choices=opinion[len(rows) :].argmax(axis=1),
            others=np.array([row.label_probs for row in asked]).reshape(len(asked), len(job.labels)),
        )
        if all(max(row.label_probs) == 1.0 for row in rows):
            weight = replace(weight, opinion=0.0)  # an opinion can't change hard labels
        return cls(model, opinion[: len(rows)], weight)

    def refine(self, rows: Sequence[TrainingRow]) -> list[TrainingRow]:
        """The rows with the opinion in their labels."""
        probs = np.array([row.label_probs for row in rows])
        refined = second_opinion.refine(probs, self.opinion, self.weight.opinion)
        return [replace(row, label_probs=tuple(map(float, new))) for row, new in zip(rows, refined, strict=True)]

    def blend(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The weighted mean of ``state`` and the anchor's weights, tensor by tensor."""
        from safetensors.torch import load

        share = self.weight.blend
        if not share:
            return dict(state)
        filesystem, root = url_to_fs(self.model)
        own = load(filesystem.cat_file(f"{root}/model.safetensors"))
        return {
            name: (1 - share) * value + share * own[name] if value.is_floating_point() and name in own else value
            for name, value in state.items()
        }
