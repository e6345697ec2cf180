"""One worker of a fit: trains every arm, from its rows to its export. ``actors/training/loop.py`` has the steps.

Ray Train runs ``run_worker`` on every worker (``jobs/stages/train.py``); ``train_arms`` also runs in one process
without Ray. torch, deepspeed and transformers are imported inside functions only.

The embedding rows of tokens that no text of the arm uses get no gradient. They are left out of training and put back
on export, which saves half of MiniLM's parameters, their Adam state and half of the bytes that workers exchange.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from actors import student_folder
from actors.inference.predictor import Predictor
from actors.process_group import ProcessGroup
from actors.quiet import redirect_output
from actors.student_folder import ArmReport
from actors.training import head
from actors.training.anchor import Anchor
from actors.training.encoder import Encoder, TokenCache, load_encoder
from actors.training.job import ArmJob, TrainingJob
from actors.training.loop import Loop
from actors.training.parts import ClassRows, GroupRows
from actors.training.recovery.checkpoints import RayCheckpoints
from potstill.config.student import StudentConfig
from potstill.errors import PotstillError
from potstill.student.arms import TrainingRow
from potstill.student.self_training import pseudo_label

log = logging.getLogger("potstill.student")


def train_arms(job: TrainingJob, place: RayCheckpoints | None = None) -> list[ArmReport]:
    """Train and export all arms, one after another. Arms that already have an export are skipped; an arm with a
    checkpoint in ``place`` resumes from it. Without ``place`` no checkpoints are made.

    Runs on every worker of an initialised process group, or alone. Returns the reports of all arms on every
    rank. Raises ``InputError`` (unusable model) or ``StageError`` (loss is not finite), on all ranks alike.
    """
    group = ProcessGroup.join(job.device, job.threads)
    texts = TokenCache()
    reports = []
    for arm in job.arms:
        report = group.agree(student_folder.read_report(arm.folder) if group.rank == 0 else None)
        if report is None:
            report = group.agree(_train_arm(group, job, arm, texts, place))
        reports.append(report)
    return reports


def run_worker(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ray Train's entry point: ``config`` is ``{"job": TrainingJob.to_json(), "log_dir": str | None}``.

    Returns ``{}``, or as plain data an error that a retry could not fix. Any other error is raised, so that Ray Train
    restarts the workers: they skip exported arms and resume from the last checkpoint.
    """
    with redirect_output(config.get("log_dir"), log):
        try:
            train_arms(TrainingJob.from_json(config["job"]), RayCheckpoints())
        except PotstillError as error:
            problems = [[p.where, p.message] for p in getattr(error, "problems", ())]
            return {"error": str(error), "problems": problems}
        return {}


def _train_arm(
    group: ProcessGroup, job: TrainingJob, arm: ArmJob, texts: TokenCache, place: RayCheckpoints | None
) -> ArmReport:
    """Train one arm and export it."""
    student = job.student
    _seed_everything(arm.seed)
    encoder = group.together(lambda: _load(arm, student, job.labels))
    rows, validation = student_folder.read_rows(arm.folder), student_folder.read_rows(arm.folder, "validation")
    anchor = None
    if arm.anchor is not None:
        anchor = group.agree(group.together(lambda: Anchor.consult(arm, rows, job) if group.rank == 0 else None))
        rows = anchor.refine(rows)
    if arm.self_trained:
        rows = group.agree(group.together(lambda: _self_label(arm, rows, job) if group.rank == 0 else None))
    truncated = encoder.tokenise([row.text for row in (*rows, *validation)], texts)
    part = ClassRows.of(rows, texts.ids, student)
    held_out = ClassRows.of(validation, texts.ids, student) if validation else None
    full_vocabulary = encoder.compact_vocabulary([*part.ids, *(held_out.ids if held_out else ())])
    if encoder.mean_pooled or arm.start:
        features = head.compute_features(encoder, part.ids, group.device)
        encoder.model.load_state_dict(head.fit_head(encoder, features, part.targets, part.weights), strict=False)
    if group.rank == 0:
        log.info("arm %s: %d rows, attention %s, %s", arm.name, len(rows), encoder.attention, full_vocabulary)
        if truncated:
            log.warning("arm %s: %d texts are cut at %d tokens", arm.name, truncated, encoder.max_length)
    trained_on = GroupRows.of(part, student, arm.seed) if arm.contrastive else part
    loop = Loop(group, student, encoder, trained_on, held_out, place)
    progress = loop.run(arm)
    progress.warnings[:0] = [one for one in encoder.warnings if one not in progress.warnings]
    report = ArmReport(
        digest=arm.digest,
        steps=progress.step,
        losses=progress.losses,
        learning_rates=progress.learning_rates,
        examples=progress.examples,
        tokens=progress.tokens,
        padded_tokens=progress.padded_tokens,
        truncated=truncated,
        seconds=progress.seconds,
        workers=group.size,
        best_step=progress.best_step if held_out is not None else progress.step,
        anchor_weight=asdict(anchor.weight) if anchor is not None else {},
        validation=progress.validation,
        warnings=progress.warnings,
        resumed=progress.resumed,
    )
    state = loop.best_state if held_out is not None else loop.state()
    if arm.contrastive:  # on all ranks: with ZeRO 3 each has a part of the weights
        features = head.compute_features(encoder, part.ids, group.device)
    if group.rank == 0:
        assert state is not None
        if arm.contrastive:
            state |= head.fit_head(encoder, features, part.targets, part.weights)
        state = full_vocabulary.restore(state)
        if anchor is not None:
            state = anchor.blend(state)
        model_card = student_folder.model_card(arm.name, job.labels, student, len(rows), report, arm.lineage)
        student_folder.write(arm.folder, encoder, state, job.labels, model_card, report)
    loop.engine.destroy()
    return report


def _load(arm: ArmJob, student: StudentConfig, labels: Sequence[str]) -> Encoder:
    """The encoder that the arm starts from."""
    if arm.start is None:
        return load_encoder(student, labels)
    with student_folder.fetched(student_folder.model_folder(arm.start)) as folder:
        return load_encoder(student.model_copy(update={"model": os.path.abspath(folder)}), labels)


def _self_label(arm: ArmJob, rows: Sequence[TrainingRow], job: TrainingJob) -> list[TrainingRow]:
    """The rows as the arm's start labels them."""
    assert arm.start is not None
    students = {"start": student_folder.model_folder(arm.start)}
    predictor = Predictor(students, job.labels, job.device, job.student.max_length, threads=job.threads)
    return pseudo_label(rows, predictor.predict([row.text for row in rows])["start"])


def _seed_everything(seed: int) -> None:
    """Seed the libraries' global generators, the only ones that dropout and head initialisation draw from."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
