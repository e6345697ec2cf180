"""The student's section of a config: the encoder, the recipe of its fine-tuning, and how that is spread over machines."""

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
"""Fields of ``StudentConfig`` that say how training is done, not what comes out."""


class StudentConfig(Section):
    """The model that is trained, and how."""

    model: str = Field("embedded", description="embedded (MiniLM), a local transformers folder or a hub id")
    epochs: int = Field(5, ge=1, le=1000, description="passes over the texts")
    min_steps: int = Field(
        60, ge=1, le=100_000, description="at least this many optimiser steps, however few texts there are"
    )
    learning_rate: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | Literal["auto"] = Field(
        "auto", description="peak learning rate, above 0; auto: 1e-4 for students under 50 M parameters, else 4e-5"
    )
    weight_decay: float = Field(0.01, ge=0.0, le=1.0, description="AdamW's weight decay (not on biases and norms)")
    warmup_ratio: float = Field(0.1, ge=0.0, le=1.0, description="share of the steps that warm up")
    batch_size: int = Field(32, ge=1, le=65_536, description="global batch, in examples")
    max_length: int = Field(128, ge=8, le=8192, description="longest text, in tokens")
    seed_weight: float = Field(5.0, gt=0.0, le=1000.0, description="weight of a real seed against one synthetic text")
    workers: int = Field(0, ge=0, le=1024, description="training processes; 0 = one a GPU, or 2 on CPU")
    threads: int = Field(
        1,
        ge=1,
        le=256,
        description="CPU threads (and CPUs) of a training process; one process with all cores spares the exchange of gradients on one machine",
    )
    zero_stage: int = Field(0, ge=0, le=3, description="DeepSpeed ZeRO stage")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor or GPU computes in it, else float32"
    )
    seed: int = Field(0, ge=0, description="training seed: order, dropout and the new head's weights")
    repeats: int = Field(
        1,
        ge=1,
        le=100,
        description="train every student under so many training seeds (seed, seed + 1, ...) and report mean and deviation; the first one is registered",
    )
    pooling: Literal["auto", "native"] = Field(
        "auto",
        description="auto: sentence encoders of BERT's kind keep their mean pooling and start from a regression on it; native: the architecture's own head, untrained",
    )
    schedule: Literal["linear", "cosine"] = Field("linear", description="how the learning rate falls after the warm-up")
    clip_norm: float = Field(1.0, ge=0.0, le=1000.0, description="gradients are clipped to this norm; 0 = not clipped")
    dropout: float | None = Field(
        None, ge=0.0, lt=1.0, description="dropout of the student; null: as its own config says"
    )
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of each target spread evenly over all classes"
    )
    soft_weight: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="share of the target that is the distribution; the rest is its most probable class",
    )
    soft_temperature: float = Field(
        1.0, gt=0.0, le=100.0, description="flattens (above 1) or sharpens (below 1) the label distributions"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: every class weighs the same in the loss"
    )
    padding: bool = Field(
        False,
        description="pad texts to each other even where the architecture trains without padding, which is faster; the way out if that fails on a GPU",
    )
    micro_batch_tokens: Annotated[int, Field(ge=8)] | Literal["auto"] = Field(
        "auto",
        description="tokens a process computes at once (padding included, where a model needs it), at least 8; auto: 4096 on CPU, 65536 on GPU",
    )
    second_opinion: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = Field(
        "auto",
        description="say of the student of the seeds alone in the texts' labels, 0 (none) to 1; auto: the more seeds and the fewer classes, the more",
    )
    blend: Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["auto"] = Field(
        "auto",
        description="share of the weights of the student of the seeds alone in the distilled one; auto: 0.4 times the second opinion's auto",
    )
    early_stopping: bool = Field(
        False,
        description="stop every student by its loss on the task's validation texts, and keep its best weights: real labels beyond the seeds, so the report says it",
    )
    patience: int = Field(
        2, ge=1, le=1000, description="epochs without improvement before stopping; only with early_stopping"
    )
    offload_optimizer: bool = Field(
        False, description="keep the optimizer's state in main memory (needs zero_stage of 1 or more)"
    )
    deepspeed: dict[str, Any] = Field(
        {}, description="further DeepSpeed settings, as in its JSON; what the fields above decide can't stand here"
    )
    checkpoint_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="optimiser steps between two checkpoints; 0: none; auto: one every five minutes"
    )
    min_workers: int = Field(
        1, ge=1, le=1024, description="training goes on after nodes were lost while this many workers are left"
    )
    max_failures: int = Field(2, ge=0, le=100, description="lost workers survived in one fit")

    @model_validator(mode="after")
    def _consistent(self) -> StudentConfig:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage of 1 or more")
        if self.workers and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) must not be above workers ({self.workers})")
        if found := conflicts(self.deepspeed, self.zero_stage):
            raise ValueError("deepspeed: " + "; ".join(found))
        return self
