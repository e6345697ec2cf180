"""The content of a checkpoint: DeepSpeed's files, the progress, the best weights, every rank's random state.

    engine/            weights and optimizer state, as DeepSpeed writes them (one part a rank with ZeRO)
    progress.json      ``LoopState``, the arm's digest, the number of workers
    best.safetensors   the best weights so far, if there are validation texts
    random-<rank>.pt   the state of the rank's random generators (dropout)

DeepSpeed loads ZeRO's parts only into as many workers as wrote them. For another number they are first
rewritten as a *universal* checkpoint, one file per parameter.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from actors.process_group import ProcessGroup

_TAG = "engine"


@dataclass
class LoopState:
    """The progress of an arm. ``step``: steps done; ``losses`` and ``learning_rates``: one per step; ``tokens``: real
    ones, ``padded_tokens``: all; ``seconds``: of training; ``validation``, ``best_*`` and ``stale`` serve early
    stopping; ``warnings``: for the user; ``resumed``: the steps after which training resumed from a checkpoint."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    examples: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0
    best_loss: float = float("inf")
    best_step: int = 0
    stale: int = 0
    validation: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stored checkpoint: its folder, its progress and how many workers wrote it."""

    folder: str
    progress: LoopState
    workers: int

    @classmethod
    def find(cls, folder: str | None, digest: str) -> Snapshot | None:
        """The checkpoint in ``folder``; None if ``folder`` is None or holds the checkpoint of another arm."""
        if folder is None:
            return None
        with open(f"{folder}/progress.json") as file:
            content = json.load(file)
        if content["digest"] != digest:
            return None
        return cls(folder, LoopState(**content["progress"]), content["workers"])

    def needs_conversion(self, group: ProcessGroup, zero_stage: int) -> bool:
        """Whether the present number of workers can't load its ZeRO parts."""
        return zero_stage > 0 and self.workers != group.size


def write(
    folder: str, group: ProcessGroup, engine: Any, digest: str, progress: LoopState, best: dict[str, Any] | None
) -> str | None:
    """Write this rank's files of a checkpoint into ``folder``. Returns what went wrong, or None. Errors are not raised,
    since DeepSpeed has barriers in between, at which the other ranks would wait."""
    import torch

    # DeepSpeed makes its folder on rank 0 only; here every rank has its own.
    os.makedirs(f"{folder}/{_TAG}", exist_ok=True)
    with _collected_errors(engine) as errors:
        engine.save_checkpoint(folder, tag=_TAG, save_latest=False)
    try:
        torch.save(_generators(group), f"{folder}/random-{group.rank}.pt")
        if group.rank == 0:
            if best is not None:
                from safetensors.torch import save_file

                save_file(best, f"{folder}/best.safetensors")
            with open(f"{folder}/progress.json", "w") as file:
                json.dump({"digest": digest, "workers": group.size, "progress": asdict(progress)}, file)
    except (OSError, RuntimeError) as error:
        errors.append(str(error))
    return errors[0] if errors else None


def restore(snapshot: Snapshot, group: ProcessGroup, engine: Any, seed: int, zero_stage: int) -> dict[str, Any] | None:
    """Load the checkpoint into ``engine`` on all ranks. Returns the best weights so far, or None.

    For another number of workers than wrote it, ``engine`` must have been made with ``universal=True``.
    """
    import torch

    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    if snapshot.needs_conversion(group, zero_stage):
        with _converted(snapshot, group) as folder:
            engine.load_checkpoint(folder, tag=_TAG)
            group.gather(None)  # no rank deletes files that another still reads
    else:
        engine.load_checkpoint(snapshot.folder, tag=_TAG)
    # Loading a universal checkpoint, ZeRO 3 gives every parameter group the settings of the first, and all of them
    # one shared tensor that counts steps, which each would then increment.
    for parameters, decay in zip(engine.optimizer.param_groups, decays, strict=True):
        parameters["weight_decay"] = decay
    for state in getattr(engine.optimizer, "optimizer", engine.optimizer).state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    if snapshot.workers == group.size:
        states = torch.load(f"{snapshot.folder}/random-{group.rank}.pt", weights_only=True)
        torch.set_rng_state(states["cpu"])
        if group.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], group.device)
    else:
        torch.manual_seed((seed * 65_537 + group.rank + 1) * 1_000_003 + snapshot.progress.step)
    best = f"{snapshot.folder}/best.safetensors"
    if group.rank == 0 and os.path.exists(best):
        from safetensors.torch import load_file

        return dict(load_file(best))
    return None


@contextlib.contextmanager
def _converted(snapshot: Snapshot, group: ProcessGroup) -> Iterator[str]:
    """A local folder with the universal form of the checkpoint; one process of each node makes it."""
    from deepspeed.checkpoint import ds_to_universal

    token = group.agree(os.urandom(6).hex())
    target = os.path.join(tempfile.gettempdir(), f"potstill-universal-{token}")
    try:
        if group.first_on_node:
            os.makedirs(f"{target}/{_TAG}")
            options = argparse.Namespace(
                input_folder=f"{snapshot.folder}/{_TAG}",
                output_folder=f"{target}/{_TAG}",
                num_extract_workers=1,  # more would be forked from this process, with its threads and sockets
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,  # the universal version number, which only some engines write
            )
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                ds_to_universal.main(options)
        group.gather(None)
        yield target
    finally:
        if group.first_on_node:
            shutil.rmtree(target, ignore_errors=True)


@contextlib.contextmanager
def _collected_errors(engine: Any) -> Iterator[list[str]]:
    """Collect the errors of DeepSpeed's file writing instead of raising them. DeepSpeed's recovery script, which it
    would copy into every checkpoint, is left out."""
    errors: list[str] = []
    writer = engine.checkpoint_engine
    plain = writer.save
    engine._copy_recovery_script = lambda folder: None

    def save(state_dict: Any, path: str) -> None:
        try:
            plain(state_dict, path)
        except (OSError, RuntimeError) as error:
            errors.append(str(error))

    writer.save = save
    try:
        yield errors
    finally:
        del writer.save
        del engine._copy_recovery_script


def _generators(group: ProcessGroup) -> dict[str, Any]:
    import torch

    states = {"cpu": torch.get_rng_state()}
    if group.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(group.device)
    return states
