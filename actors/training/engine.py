"""The DeepSpeed engine of a student: optimizer, precision and ZeRO stage from the config."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from actors.precision import pick_precision
from actors.training.encoder import Encoder
from potstill.config.student import StudentConfig
from potstill.errors import InputError, Problem, StageError


def initialise(student: StudentConfig, encoder: Encoder, device: Any, universal: bool = False) -> Any:
    """The DeepSpeed engine of the model, with AdamW and no decay on biases and norms.

    ``universal``: it will load a universal checkpoint. Raises ``InputError`` if DeepSpeed refuses the settings of
    ``student.deepspeed`` or can't shard the model at stage 3.
    """
    import torch

    deepspeed = _import_deepspeed(device.type)
    decayed = [p for p in encoder.model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in encoder.model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": student.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    model = encoder.model.to(device)
    # torch's own AdamW: DeepSpeed's CPU and GPU versions are compiled on first use.
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=1e-9, fused=not student.offload_optimizer
    )
    config = deepspeed_config(student, device.type)
    if universal:
        config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    except (ValidationError, deepspeed.runtime.config.DeepSpeedConfigError) as error:
        message = " ".join(str(error).split())
        raise InputError([Problem("student.deepspeed", f"DeepSpeed refuses it: {message[:300]}")]) from error
    except (RuntimeError, AssertionError, AttributeError, ValueError) as error:
        if student.zero_stage != 3 or isinstance(error, torch.OutOfMemoryError):
            raise
        message = " ".join(str(error).split())
        advice = f"DeepSpeed can't shard {student.model!r} ({message[:200]}); use zero_stage 2 or lower"
        raise InputError([Problem("student.zero_stage = 3", advice)]) from error
    if student.zero_stage == 0:
        engine.enable_backward_allreduce = False  # the loop does it (``actors/training/kernels/exchange.py``)
    return engine


def deepspeed_config(student: StudentConfig, device: str) -> dict[str, Any]:
    """DeepSpeed's JSON for a student. Batch size and accumulation are placeholders: the loop sets the boundaries."""
    passed = dict(student.deepspeed)
    zero = {**passed.pop("zero_optimization", {}), "stage": student.zero_stage}
    if student.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": student.clip_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        **passed,
    }
    if computing_precision(student, device) == "bfloat16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


def computing_precision(student: StudentConfig, device: str) -> str:
    """ "float32" or "bfloat16". auto is float32 for ZeRO 3 on CPU, where autocast fails on gathered weights."""
    if student.precision == "auto" and device == "cpu" and student.zero_stage == 3:
        return "float32"
    return pick_precision(student.precision, device)


def _import_deepspeed(device: str) -> Any:
    """DeepSpeed, without the shared-memory op that it would compile on CPU.

    The op (g++, 30-40 s the first time) serves only tensor-parallel inference; training uses gloo with or without
    it. DeepSpeed looks up in this table whether an op can be built, and documents that edits to it persist; an empty
    table also skips the probing of compilers.
    """
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        message = f"training needs DeepSpeed, which can't be imported ({error}); `pip install deepspeed`"
        raise StageError(message) from error
    if device == "cpu":
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed
