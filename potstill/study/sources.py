"""What a study can compare: every row of both papers' tables, as settings of a job.

    find("promptmix_no_mixup").changes       # {"augment.alpha": {"low": 1.0, "high": 1.0}}

A source says where training texts come from. It is a strategy with some settings fixed; everything it does not fix is
the study's own (``augment``, ``relabel``, ``student``), so that sources differ in what their names say and in nothing
else. A study's YAML makes further ones of these: ``{name: hot, of: promptmix, set: {augment.temperature: 1.2}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from potstill.errors import InputError, Problem

EVEN = "even"
"""In ``changes``: 1 / number of classes, so that the class a text was written for counts no more than any other."""


@dataclass(frozen=True, slots=True)
class Source:
    """``changes``: settings of a job that make it this source. ``kind``: texts to train on, the seeds alone, or the
    teacher as classifier (``calibrated``: with batch calibration). ``seeds``: ``train``, the student learns from them too;
    ``prompt``, only the teacher sees them; ``hidden``, nobody does. ``labels``: ``as_written`` or ``relabelled``.
    ``anchored``: the seeds-only student may have a say (``student.second_opinion``, ``student.blend``). ``asks``: the
    teacher has a part in it."""

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
        """Its strategy, where it fixes one."""
        return self.changes.get("augment.strategy")

    @property
    def synthetic(self) -> bool:
        """Whether it trains on texts that nobody wrote."""
        return self.kind == "texts" and self.strategy not in ("real", "annotate")


_AS_WRITTEN = {"relabel.enabled": False, "augment.over_generate": 1.0}
_NO_MIXUP = {"augment.alpha": {"low": 1.0, "high": 1.0}}
_NO_SHOTS = {"augment.shots": 0, "relabel.shots": 0, "relabel.min_confidence": 0.0}
_ALL_LABELS_OF_TEACHER = {
    "augment.over_generate": 1.0,
    "augment.contexts": False,
    "relabel.votes": 1,
    "relabel.target_prior": EVEN,
    "relabel.min_confidence": 0.0,
    "relabel.descriptions": 0.0,
}

_ALL = (
    Source(
        "real",
        "real data",
        "real training texts with their labels, all of them or `real_per_class` a class, and the seeds "
        "(PromptMix's human upper bound)",
        {**_AS_WRITTEN, "augment.strategy": "real"},
        asks=False,
    ),
    Source(
        "real_equal",
        "as many real texts",
        "as many real texts a class as the other sources have generated ones, and the seeds",
        {**_AS_WRITTEN, "augment.strategy": "real"},
        asks=False,
    ),
    Source(
        "k_shot", "k-shot", "the seeds alone, fine-tuned, and as a regression on embeddings", kind="seeds", asks=False
    ),
    Source(
        "zero_shot",
        "zero-shot",
        "texts written from a context and the class's description (Li et al. 2023); nobody sees a seed",
        {**_AS_WRITTEN, "augment.strategy": "zero_shot"},
        seeds="hidden",
    ),
    Source(
        "few_shot",
        "few-shot",
        "the same with seeds of the class in every prompt (Li et al. 2023); the student learns from the texts alone",
        {**_AS_WRITTEN, "augment.strategy": "few_shot"},
        seeds="prompt",
    ),
    Source(
        "few_shot_relabelled",
        "few-shot, relabelled",
        "few-shot texts, relabelled and selected like PromptMix's; the student learns from the seeds too",
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
        "the first of the same texts, with the class that each was written for",
        {"augment.strategy": "promptmix"},
    ),
    Source(
        "promptmix_paper",
        "PromptMix as released",
        "every text kept with the one class that the teacher says, temperature 1, no context, no further say",
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
        "PromptMix's prompt with examples, texts that belong to one class",
        {"augment.strategy": "promptmix", **_NO_MIXUP},
        labels="relabelled",
        anchored=True,
    ),
    Source(
        "promptmix_zero_shot",
        "zero-shot mixup",
        "PromptMix from descriptions alone, relabelled by descriptions alone; nobody sees a seed",
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
        "the class's seeds as a list that the model goes on with, no relabelling",
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
        "texts written after labelled ones of several classes, the teacher's distribution as soft label (Yoo et al. 2021)",
        {**_ALL_LABELS_OF_TEACHER, "augment.strategy": "gpt3mix", "relabel.soft": True},
        labels="relabelled",
    ),
    Source(
        "annotate",
        "teacher's labels on real texts",
        "unlabelled texts (of the task, or the train split's without its labels), labelled by the teacher; the surest kept",
        {"augment.strategy": "annotate"},
        labels="relabelled",
        anchored=True,
    ),
    Source(
        "nn_llm",
        "NN + LLM",
        "the teacher itself classifies the test texts among the nearest classes (PromptMix, steps 8 to 10)",
        {"relabel.votes": 1},
        kind="classifier",
    ),
    Source(
        "nn_llm_calibrated",
        "NN + LLM, calibrated",
        "the same answers after batch calibration over the test texts (no label is looked at)",
        {"relabel.votes": 1},
        kind="classifier",
        calibrated=True,
    ),
)

SOURCES: dict[str, Source] = {source.name: source for source in _ALL}


def find(name: str) -> Source:
    """The source of that name. Raises ``InputError`` with the known ones."""
    if name not in SOURCES:
        raise InputError([Problem(f"sources: {name!r}", f"is not known; known: {', '.join(sorted(SOURCES))}")])
    return SOURCES[name]
