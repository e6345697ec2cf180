"""Check the DeepSpeed settings that ``student.deepspeed`` passes through.

Settings that other student fields decide are rejected: passed through, they would be silently overwritten or change
what the training loop computes.
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
    "prescale_gradients": "loss, which is normalised by the sum of the weights",
    "gradient_predivide_factor": "loss, which is normalised by the sum of the weights",
    "checkpoint.load_universal": "choice of checkpoint format",
}
"""DeepSpeed setting -> the ``student`` field that decides it."""


def conflicts(passed: Mapping[str, Any], zero_stage: int) -> list[str]:
    """One message per setting that cannot be passed through."""
    found = [
        f"{name} must be a mapping, not {passed[name]!r}"
        for name in ("zero_optimization", "checkpoint")
        if not isinstance(passed.get(name, {}), Mapping)
    ]
    for name, field in OURS.items():
        section, _, key = name.rpartition(".")
        place = passed.get(section, {}) if section else passed
        if isinstance(place, Mapping) and key in place:
            found.append(f"{name} is decided by student's {field}; remove it from deepspeed")
    if zero_stage == 0 and "communication_data_type" in passed:
        found.append(
            "communication_data_type has no effect at zero_stage 0, where gradients are exchanged in student.precision; "
            "remove it, or use zero_stage 1"
        )
    return found
