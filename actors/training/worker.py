"""What one worker of a fit does: every arm from its rows to its export. The steps themselves are in ``actors/training/loop.py``.

Ray Train runs ``run_worker`` on every worker of a fit (``jobs/stages/train.py``); ``train_arms`` runs in one
process without Ray as well. torch, deepspeed and transformers are imported inside functions only.

The embedding rows of tokens that no text of the arm uses get no gradient: they are left out of the optimizer
and put back on export, which saves half of MiniLM's parameters, their Adam state and half of the bytes that
workers exchange.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from actors import student_folder
from actors.coverage import Coverage
from actors.process_group import ProcessGroup
from actors.quiet import chatter_to
from actors.training import loop, pooling
from actors.training.anchor import Anchor
from actors.training.encoder import TokenCache, load_encoder
from actors.training.engine import initialise
from actors.training.job import ArmJob, ArmReport, TrainingJob
from actors.training.loop import Loop, Part
from actors.training.recovery.checkpoints import Checkpoints, NoCheckpoints, RayCheckpoints
from actors.training.recovery.snapshot import LoopState, Snapshot
from potstill.errors import PotstillError

log = logging.getLogger("potstill.student")


def train_arms(job: TrainingJob, place: Checkpoints | None = None) -> list[ArmReport]:
    """Train and export all arms, one after another; arms that have an export already are skipped, and the one
    that ``place`` has a checkpoint of goes on from there.

    Runs on every worker of an initialised process group, or alone. Returns the reports of all arms on every
    rank. Raises ``InputError`` (model can't be used) or ``StageError`` (loss not a number), alike on all ranks.
    """
    world = ProcessGroup.join(job.device, job.threads)
    place = place or NoCheckpoints()
    texts = TokenCache()
    reports = []
    for arm in job.arms:
        done = world.agree(student_folder.read_report(arm.folder) if world.rank == 0 else None)
        if done is None:
            report = _train_arm(world, job, arm, texts, place)
            done = world.agree(asdict(report) if world.rank == 0 else None)
        reports.append(ArmReport(**done))
    return reports


def run_worker(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ray Train's entry: ``config`` is ``{"job": TrainingJob.to_json(), "log_dir": str | None}``.

    Returns plain data: the reports, or the error that another try could not mend. Anything else is raised,
    so that Ray Train starts the workers anew: they go on from the last checkpoint, and arms that were exported by
    then are not trained again.
    """
    with chatter_to(config.get("log_dir"), log):
        try:
            job = TrainingJob.from_json(config["job"])
            return {"reports": [asdict(report) for report in train_arms(job, RayCheckpoints())]}
        except PotstillError as error:
            problems = [[p.where, p.message] for p in getattr(error, "problems", ())]
            return {"error": str(error), "problems": problems}


def _train_arm(world: ProcessGroup, job: TrainingJob, arm: ArmJob, texts: TokenCache, place: Checkpoints) -> ArmReport:
    """One arm from its rows to its export."""
    student = job.student
    _seed_everything(arm.seed)
    encoder = world.together(lambda: load_encoder(student, job.labels))
    rows, validation = student_folder.read_rows(arm.folder), student_folder.read_rows(arm.folder, "validation")
    anchor = None
    if arm.anchor is not None:
        anchor = world.agree(world.together(lambda: Anchor.consult(arm, rows, job) if world.rank == 0 else None))
        rows = anchor.refine(rows)
    truncated = encoder.tokenise([row.text for row in (*rows, *validation)], texts)
    part = Part.of(rows, texts.ids, student)
    held_out = Part.of(validation, texts.ids, student) if validation else None
    full_vocabulary = encoder.compact_vocabulary([*part.ids, *(held_out.ids if held_out else ())])
    if encoder.mean_pooled:
        pooling.fit_head(encoder, part.ids, part.targets, part.weights, world.device)
    if world.rank == 0:
        log.info("arm %s: %d rows, attention %s, %s", arm.name, len(rows), encoder.attention, full_vocabulary)
        if truncated:
            log.warning("arm %s: %d texts are cut at %d tokens", arm.name, truncated, encoder.max_length)
    steps = _run_loop(world, job, arm, encoder, part, held_out, place)
    steps.progress.warnings[:0] = [one for one in encoder.warnings if one not in steps.progress.warnings]
    report = _report(arm, steps.progress, truncated, world.size, anchor, early_stopping=held_out is not None)
    state = steps.best_state if held_out is not None else steps.state()
    if world.rank == 0:
        assert state is not None
        model_card = student_folder.model_card(arm.name, job.labels, student, len(rows), asdict(report), arm.lineage)
        state = full_vocabulary.restore(state)
        if anchor is not None:
            state = anchor.blend(state)
        student_folder.write(arm.folder, encoder, state, job.labels, model_card, asdict(report))
    steps.engine.destroy()
    return report


def _run_loop(
    world: ProcessGroup,
    job: TrainingJob,
    arm: ArmJob,
    encoder: Any,
    part: Part,
    held_out: Part | None,
    place: Checkpoints,
) -> Loop:
    """All steps of an arm, from its checkpoint on if there is one."""
    import torch

    student = job.student
    coverage = None
    if job.record and "://" not in arm.folder:
        coverage = Coverage(arm.folder, world.agree(time.time_ns()), world.rank)
    with place.fetch() as folder:
        found = Snapshot.find(folder, arm.digest)
        universal = found is not None and found.needs_conversion(world, student.zero_stage)
        engine = initialise(student, encoder, world.device, universal=universal)
        # From here on the ranks draw different numbers (dropout); what they must share is drawn.
        torch.manual_seed(arm.seed * 65_537 + world.rank + 1)
        steps = Loop(world, student, engine, encoder, part, held_out, place, coverage)
        if found is not None:
            steps.resume(found, arm.seed)
            if world.rank == 0:
                was = f" (written by {found.workers} workers)" if found.workers != world.size else ""
                log.info("arm %s: goes on after step %d%s", arm.name, found.progress.step, was)
    steps.run(loop.ArmPlan(arm.name, arm.digest, arm.seed))
    if coverage is not None:
        coverage.close()
    return steps


def _report(
    arm: ArmJob, progress: LoopState, truncated: int, workers: int, anchor: Anchor | None, early_stopping: bool
) -> ArmReport:
    return ArmReport(
        digest=arm.digest,
        steps=progress.step,
        losses=progress.losses,
        learning_rates=progress.learning_rates,
        examples=progress.examples,
        tokens=progress.tokens,
        padded_tokens=progress.padded_tokens,
        truncated=truncated,
        seconds=progress.seconds,
        workers=workers,
        best_step=progress.best_step if early_stopping else progress.step,
        say=asdict(anchor.say) if anchor is not None else {},
        validation=progress.validation,
        warnings=progress.warnings,
        resumed=progress.resumed,
    )


def _seed_everything(seed: int) -> None:
    """The libraries' global generators: dropout and head initialisation draw from nothing else."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
