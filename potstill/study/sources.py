"""The sources that a study can compare: every row of both papers' tables, as settings of a job.

    find("promptmix_no_mixup").changes       # {"augment.alpha": {"low": 1.0, "high": 1.0}}

A source of training texts is a strategy with some settings fixed. All other settings come from the study (``augment``,
``relabel``, ``student``), so sources differ only in what their names say. A study's YAML can vary a source:
``{name: hot, of: promptmix, set: {augment.temperature: 1.2}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from potstill.errors import InputError, Problem

EVEN = "even"
"""In ``changes``: 1 / number of classes, which gives a text's target class the same prior as any other."""


@dataclass(frozen=True, slots=True)
class Source:
    """``changes``: a job's settings that define this source. ``kind``: texts to train on, the seeds alone, or the teacher
    as classifier (``calibrated``: with batch calibration). ``seeds``: ``train``, the student learns from them too;
    ``prompt``, only the teacher sees them; ``hidden``, neither does. ``anchored``: the seeds-only student may influence
    the labels (``student.second_opinion``, ``student.blend``). ``asks``: it needs the teacher."""

    name: str
    title: str
    meaning: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["texts", "seeds", "classifier"] = "texts"
    seeds: Literal["train", "prompt", "hidden"] = "train"
    labels: Literal["as_written", "relabelled"] = "as_written"
    anchored: bool = False
    calibrated: bool = False
    asks: bool = True

    @property
    def strategy(self) -> str | None:
        """The strategy that it fixes, if any."""
        return self.changes.get("augment.strategy")

    @property
    def synthetic(self) -> bool:
        """Whether it trains on generated texts."""
        return self.kind == "texts" and self.strategy not in ("real", "annotate")


_AS_WRITTEN = {"relabel.enabled": False, "augment.over_generate": 1.0}
_NO_MIXUP = {"augment.alpha": {"low": 1.0, "high": 1.0}}
_NO_SHOTS = {"augment.shots": 0, "relabel.shots": 0, "relabel.min_confidence": 0.0}
_ALL_LABELS_OF_TEACHER = {
    "augment.over_generate": 1.0,
    "augment.contexts": False,
    "relabel.votes": 1,
    "relabel.trial": 0,
    "relabel.target_prior": EVEN,
    "relabel.min_confidence": 0.0,
    "relabel.descriptions": 0.0,
}

_ALL = (
    Source(
        "real",
        "real data",
        "all real training texts with their labels, or `real_per_class` per class, and the seeds "
        "(PromptMix's human upper bound)",
        {**_AS_WRITTEN, "augment.strategy": "real"},
        asks=False,
    ),
    Source(
        "real_equal",
        "as many real texts",
        "as many real texts per class as the other sources generate, and the seeds",
        {**_AS_WRITTEN, "augment.strategy": "real"},
        asks=False,
    ),
    Source(
        "k_shot", "k-shot", "the seeds alone, fine-tuned, and as a regression on embeddings", kind="seeds", asks=False
    ),
    Source(
        "zero_shot",
        "zero-shot",
        "texts written from a context and the class's description (Li et al. 2023); seeds are not used",
        {**_AS_WRITTEN, "augment.strategy": "zero_shot"},
        seeds="hidden",
    ),
    Source(
        "few_shot",
        "few-shot",
        "the same with the class's seeds in every prompt (Li et al. 2023); the student learns only from the texts",
        {**_AS_WRITTEN, "augment.strategy": "few_shot"},
        seeds="prompt",
    ),
    Source(
        "few_shot_relabelled",
        "few-shot, relabelled",
        "few-shot texts, relabelled and selected as in PromptMix; the student also learns from the seeds",
        {"augment.strategy": "few_shot"},
        labels="relabelled",
        anchored=True,
    ),
    Source(
        "promptmix",
        "PromptMix (A2)",
        "texts near class boundaries, relabelled, as configured (docs/method.md)",
        {"augment.strategy": "promptmix"},
        labels="relabelled",
        anchored=True,
    ),
    Source(
        "promptmix_a1",
        "PromptMix without relabelling (A1)",
        "the first of the same texts, labelled with their target classes",
        {"augment.strategy": "promptmix"},
    ),
    Source(
        "promptmix_paper",
        "PromptMix as released",
        "every text kept with the teacher's hard label; temperature 1, no contexts, no other votes on the label",
        {
            **_ALL_LABELS_OF_TEACHER,
            "augment.strategy": "promptmix",
            "augment.temperature": 1.0,
            "augment.top_p": 1.0,
            "relabel.soft": False,
            "relabel.neighbours": 5,
        },
        labels="relabelled",
    ),
    Source(
        "promptmix_no_mixup",
        "without mixup",
        "PromptMix's prompt with examples, each text for a single class",
        {"augment.strategy": "promptmix", **_NO_MIXUP},
        labels="relabelled",
        anchored=True,
    ),
    Source(
        "promptmix_zero_shot",
        "zero-shot mixup",
        "PromptMix written and relabelled from class descriptions alone; seeds are not used",
        {"augment.strategy": "promptmix", **_NO_SHOTS},
        seeds="hidden",
        labels="relabelled",
    ),
    Source(
        "promptmix_zero_shot_no_mixup",
        "zero-shot, no mixup",
        "the same without mixup",
        {"augment.strategy": "promptmix", **_NO_SHOTS, **_NO_MIXUP},
        seeds="hidden",
        labels="relabelled",
    ),
    Source(
        "sahu2022",
        "Sahu et al. 2022",
        "the class's seeds as a list that the model continues, no relabelling",
        {**_AS_WRITTEN, "augment.strategy": "sahu2022"},
    ),
    Source(
        "eda",
        "EDA",
        "the seeds with words replaced, inserted, swapped and deleted (Wei & Zou 2019)",
        {**_AS_WRITTEN, "augment.strategy": "eda"},
        asks=False,
    ),
    Source(
        "gpt3mix",
        "GPT3Mix",
        "texts written after labelled examples of several classes, with the teacher's soft labels (Yoo et al. 2021)",
        {**_ALL_LABELS_OF_TEACHER, "augment.strategy": "gpt3mix", "relabel.soft": True},
        labels="relabelled",
    ),
    Source(
        "annotate",
        "teacher's labels on real texts",
        "unlabelled texts (the task's, or the train split without labels), labelled by the teacher",
        {"augment.strategy": "annotate"},
        labels="relabelled",
        anchored=True,
    ),
    Source(
        "nn_llm",
        "NN + LLM",
        "the teacher classifies the test texts, choosing among the nearest classes (PromptMix, steps 8 to 10)",
        {"relabel.votes": 1, "relabel.trial": 0},
        kind="classifier",
    ),
    Source(
        "nn_llm_calibrated",
        "NN + LLM, calibrated",
        "the same answers after batch calibration over the test texts (without their labels)",
        {"relabel.votes": 1, "relabel.trial": 0},
        kind="classifier",
        calibrated=True,
    ),
)

SOURCES = {source.name: source for source in _ALL}


def find(name: str) -> Source:
    """The source of that name. Raises ``InputError`` if there is none."""
    if name not in SOURCES:
        raise InputError([Problem(f"sources: {name!r}", f"no such source; known: {', '.join(sorted(SOURCES))}")])
    return SOURCES[name]
