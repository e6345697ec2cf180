"""Which of DeepSpeed's settings a config may pass through (``student.deepspeed``) and which are ours to decide.

A setting of ours that stood there too would either be overwritten in silence or change what the loop computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OURS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_tokens",
    "gradient_accumulation_steps": "micro_batch_tokens",
    "optimizer": "learning_rate and weight_decay",
    "scheduler": "schedule and warmup_ratio",
    "gradient_clipping": "clip_norm",
    "bf16": "precision",
    "bfloat16": "precision",
    "fp16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer": "offload_optimizer",
    "zero_optimization.cpu_offload": "offload_optimizer",
    "prescale_gradients": "weights, which the loss is divided by the sum of",
    "gradient_predivide_factor": "weights, which the loss is divided by the sum of",
    "checkpoint.load_universal": "checkpoint, whichever there is",
}
"""DeepSpeed's setting -> the field of ``student`` that decides it."""


def conflicts(passed: Mapping[str, Any], zero_stage: int) -> list[str]:
    """What is wrong with settings to be passed through, a sentence each."""
    found = [
        f"{name} must be a mapping, not {passed[name]!r}"
        for name in ("zero_optimization", "checkpoint")
        if not isinstance(passed.get(name, {}), Mapping)
    ]
    for name, field in OURS.items():
        section, _, key = name.rpartition(".")
        place = passed.get(section, {}) if section else passed
        if isinstance(place, Mapping) and key in place:
            found.append(f"{name} is decided by student's own {field}; take it out of deepspeed")
    if zero_stage == 0 and "communication_data_type" in passed:
        found.append(
            "communication_data_type has no say at zero_stage 0, where gradients travel in student's own precision; "
            "take it out, or use zero_stage 1"
        )
    return found
