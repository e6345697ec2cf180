"""The ``student`` section of a config: the encoder, its fine-tuning recipe and distributed training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from potstill.config.deepspeed import conflicts
from potstill.config.sections import Section

STUDENT_WITHOUT_EFFECT = (
    "workers",
    "threads",
    "min_workers",
    "micro_batch_tokens",
    "padding",
    "max_failures",
    "offload_optimizer",
    "checkpoint_steps",
)
"""Fields of ``StudentConfig`` that affect how training runs, but not its result."""


class StudentConfig(Section):
    """The student model and its training."""

    model: str = Field("embedded", description="`embedded` (MiniLM), a local transformers folder or a hub id")
    epochs: int = Field(5, ge=1, le=1000, description="passes over the texts")
    min_steps: int = Field(60, ge=1, le=100_000, description="minimum number of optimiser steps, however few texts")
    contrastive_steps: int = Field(
        60,
        ge=1,
        le=100_000,
        description="optimiser steps of the start student: its encoder learns to tell seeds and class descriptions apart",
    )
    learning_rate: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | Literal["auto"] = Field(
        "auto", description="peak learning rate; auto: 1e-4 for students under 50 M parameters, else 4e-5"
    )
    weight_decay: float = Field(0.01, ge=0.0, le=1.0, description="AdamW weight decay, except for biases and norms")
    warmup_ratio: float = Field(0.1, ge=0.0, le=1.0, description="share of the steps used for warm-up")
    batch_size: int = Field(32, ge=1, le=65_536, description="global batch size, in examples")
    max_length: int = Field(128, ge=8, le=8192, description="maximum length of a text, in tokens")
    seed_weight: float = Field(5.0, gt=0.0, le=1000.0, description="weight of a seed relative to a generated text")
    workers: int = Field(0, ge=0, le=1024, description="training processes; 0: one per GPU, or 2 on CPU")
    threads: int = Field(
        1,
        ge=1,
        le=256,
        description="CPU threads (and CPUs) per training process; on one machine, one process with all cores avoids "
        "exchanging gradients",
    )
    zero_stage: int = Field(0, ge=0, le=3, description="DeepSpeed ZeRO stage")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 if the processor or GPU supports it, else float32"
    )
    seed: int = Field(0, ge=0, description="training seed: order of the texts, dropout and initial head weights")
    repeats: int = Field(
        1,
        ge=1,
        le=100,
        description="number of training seeds (seed, seed + 1, ...) for every student; mean and deviation are reported, the "
        "first run is registered",
    )
    pooling: Literal["auto", "native"] = Field(
        "auto",
        description="auto: BERT-like sentence encoders keep their mean pooling, and their head starts from a regression on "
        "it; native: the architecture's own head, untrained",
    )
    schedule: Literal["linear", "cosine"] = Field("linear", description="learning rate decay after the warm-up")
    clip_norm: float = Field(1.0, ge=0.0, le=1000.0, description="maximum gradient norm; 0: no clipping")
    dropout: float | None = Field(None, ge=0.0, lt=1.0, description="dropout; null: as in the model's config")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="share of a target spread evenly over classes")
    soft_weight: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="share of the label distribution in the target; the rest is its most probable class",
    )
    soft_temperature: float = Field(1.0, gt=0.0, le=100.0, description="above 1 flattens the labels, below 1 sharpens")
    class_weights: Literal["none", "balanced"] = Field("none", description="balanced: same weight for all classes")
    padding: bool = Field(
        False,
        description="pad batches even if the architecture can train without padding, which is faster; a fallback if that "
        "fails on a GPU",
    )
    micro_batch_tokens: Annotated[int, Field(ge=8)] | Literal["auto"] = Field(
        "auto",
        description="tokens per micro-batch and process, padding included; auto: 4096 on CPU, 65536 on GPU",
    )
    second_opinion: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = Field(
        "auto",
        description="weight of the start student's opinion in the texts' labels; auto: grows with the number of seeds, "
        "falls with the number of classes",
    )
    blend: Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["auto"] = Field(
        "auto",
        description="share of the start student's weights averaged into the distilled student; auto: 0.4 times the "
        "automatic second_opinion",
    )
    early_stopping: bool = Field(
        False,
        description="stop every student by its loss on the task's validation texts and keep its best weights; this uses real "
        "labels beyond the seeds, so the report mentions it",
    )
    patience: int = Field(2, ge=1, le=1000, description="early_stopping: epochs without improvement")
    offload_optimizer: bool = Field(False, description="keep optimizer state in RAM; needs zero_stage 1 or higher")
    deepspeed: dict[str, Any] = Field(
        {}, description="other DeepSpeed settings, as in its JSON file; not those that other student fields decide"
    )
    checkpoint_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="optimiser steps between checkpoints; 0: no checkpoints; auto: one every five minutes"
    )
    min_workers: int = Field(1, ge=1, le=1024, description="after losing nodes, continue with at least this many")
    max_failures: int = Field(2, ge=0, le=100, description="worker failures tolerated in one fit")

    @model_validator(mode="after")
    def _consistent(self) -> StudentConfig:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1 or higher")
        if self.workers and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) must not be above workers ({self.workers})")
        if found := conflicts(self.deepspeed, self.zero_stage):
            raise ValueError("deepspeed: " + "; ".join(found))
        return self
