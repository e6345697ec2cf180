"""The training loop of one worker: plain PyTorch and ``deepspeed.initialize``.

Ray Train runs ``train_arms`` on every worker of a fit (``jobs/training.py``); the same function runs in one
process without Ray. torch, deepspeed and transformers are imported inside functions only.

Every optimiser step is a global batch planned by ``potstill.batches``. A worker computes its micro-batches
of it, each scaled so that DeepSpeed's mean over workers becomes the sum over the batch divided by the
*global* sum of example weights; so the loss curve is the same at any number of workers, ZeRO stage or
micro-batch size. The embedding rows of tokens that no text of the arm uses get no gradient: they are left
out of the optimizer and put back on export, which saves half of MiniLM's parameters, their Adam state and
half of the bytes that workers exchange.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from actors import export, pooling
from actors.anchor import Anchor
from actors.chatter import chatter_to
from actors.engine import initialise
from actors.pretrained import Encoder, load_encoder
from potstill import batches, objective
from potstill.arms import TrainingRow
from potstill.config import StudentConfig
from potstill.errors import PotstillError, StageError

LOSS_WINDOW = 10
"""Steps between two looks at the loss: summing it over workers each step would wait for the GPU each step."""

log = logging.getLogger("potstill.student")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmJob:
    """One arm as a worker gets it. ``folder`` holds ``rows.parquet`` (and ``validation.parquet``) and will
    hold ``model/`` and, written last, ``complete.json``. ``anchor``: the folder of the arm that has a say in
    this one (``potstill.second_opinion``); it is complete when this one's turn comes."""

    name: str
    digest: str
    seed: int
    folder: str
    anchor: str | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What every worker of a fit is told. ``threads``: CPU threads a worker; ``device``: cpu or cuda."""

    labels: tuple[str, ...]
    student: StudentConfig
    arms: tuple[ArmJob, ...]
    device: str = "cpu"
    threads: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain data: what travels names no class of this package."""
        return {
            **asdict(self),
            "student": self.student.model_dump(mode="json"),
            "arms": [asdict(arm) for arm in self.arms],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingJob:
        """The job that ``to_json`` wrote."""
        return cls(
            labels=tuple(data["labels"]),
            student=StudentConfig(**data["student"]),
            arms=tuple(ArmJob(**arm) for arm in data["arms"]),
            device=data["device"],
            threads=data["threads"],
        )


@dataclass(frozen=True, slots=True)
class ArmReport:
    """How the training of one arm went, as ``complete.json`` keeps it.

    ``losses`` and ``learning_rates`` a step; ``seconds`` without loading and export; ``tokens`` are real ones,
    ``padded_tokens`` all that were computed; ``best_step`` is the step whose weights were exported; ``say``:
    what the anchor had to say (``second_opinion.Say``).
    """

    digest: str
    steps: int
    losses: list[float]
    learning_rates: list[float]
    examples: int
    tokens: int
    padded_tokens: int
    truncated: int
    seconds: float
    workers: int
    best_step: int
    say: dict[str, float | None] = field(default_factory=dict)
    validation: list[dict[str, float]] = field(default_factory=list)


def train_arms(job: TrainingJob) -> list[ArmReport]:
    """Train and export all arms, one after another; arms that have an export already are skipped.

    Runs on every worker of an initialised process group, or alone. Returns the reports of all arms on every
    rank. Raises ``InputError`` (model can't be used) or ``StageError`` (loss not a number), alike on all ranks.
    """
    world = _World.join(job)
    texts: dict[str, list[int]] = {}
    reports = []
    for arm in job.arms:
        done = world.agree(export.read_report(arm.folder) if world.rank == 0 else None)
        if done is None:
            report = _train_arm(world, job, arm, texts)
            done = world.agree(asdict(report) if world.rank == 0 else None)
        reports.append(ArmReport(**done))
    return reports


def run_worker(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ray Train's entry: ``config`` is ``{"job": TrainingJob.to_json(), "log_dir": str | None}``.

    Returns plain data: the reports, or the error that another try could not mend. Anything else is raised,
    so that Ray Train starts the workers anew; arms that were exported by then are not trained again.
    """
    with chatter_to(config.get("log_dir"), log):
        try:
            return {"reports": [asdict(report) for report in train_arms(TrainingJob.from_json(config["job"]))]}
        except PotstillError as error:
            problems = [[p.where, p.message] for p in getattr(error, "problems", ())]
            return {"error": str(error), "problems": problems}


@dataclass(frozen=True)
class _World:
    """The workers of a fit as one of them sees them."""

    rank: int
    size: int
    device: Any

    @classmethod
    def join(cls, job: TrainingJob) -> _World:
        """The process group that Ray Train made, or a new one of this process alone."""
        import torch
        import torch.distributed as dist

        os.environ.setdefault("LOCAL_RANK", "0")
        if job.device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
            torch.set_num_threads(job.threads)
        elif not torch.cuda.is_available():
            raise StageError(f"device {job.device!r} was asked for, but torch sees no GPU in this process")
        if not dist.is_initialized():
            backend = "gloo" if job.device == "cpu" else "nccl"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        device = torch.device(job.device, int(os.environ["LOCAL_RANK"]) if job.device == "cuda" else None)
        if job.device == "cuda":
            torch.cuda.set_device(device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def agree(self, value: Any) -> Any:
        """Rank 0's ``value`` on every rank."""
        import torch.distributed as dist

        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def together(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives on this rank. An error on any rank is raised on all: the others would wait for ever."""
        import torch.distributed as dist

        value, error = None, None
        try:
            value = work()
        except PotstillError as raised:
            error = raised
        errors = [error] * self.size
        if self.size > 1:
            dist.all_gather_object(errors, error)
        for found in errors:
            if found is not None:
                raise found
        return cast(Result, value)

    def total(self, values: Any) -> list[float]:
        """The sum over ranks of a tensor, element by element."""
        import torch.distributed as dist

        if self.size > 1:
            dist.all_reduce(values)
        return values.tolist()


def _train_arm(world: _World, job: TrainingJob, arm: ArmJob, texts: dict[str, list[int]]) -> ArmReport:
    """One arm from its rows to its export."""
    import torch

    student = job.student
    _seed_everything(arm.seed)
    encoder = world.together(lambda: load_encoder(student, job.labels))
    rows, validation = export.read_rows(arm.folder), export.read_rows(arm.folder, "validation")
    anchor = None
    if arm.anchor is not None:
        anchor = world.agree(world.together(lambda: Anchor.consult(arm, rows, job) if world.rank == 0 else None))
        rows = anchor.refine(rows)
    truncated = encoder.tokenise([row.text for row in (*rows, *validation)], texts)
    part = _Part.of(rows, texts, student)
    held_out = _Part.of(validation, texts, student) if validation else None
    full_vocabulary = encoder.compact_vocabulary([*part.ids, *(held_out.ids if held_out else ())])
    if encoder.mean_pooled:
        pooling.fit_head(encoder, part.ids, part.targets, part.weights, world.device)
    engine = initialise(student, encoder, world.device)
    # From here on the ranks draw different numbers (dropout); what they must share is drawn.
    torch.manual_seed(arm.seed * 65_537 + world.rank + 1)
    if world.rank == 0:
        log.info("arm %s: %d rows, attention %s, %s", arm.name, len(rows), encoder.attention, full_vocabulary)
    loop = _Loop(world, student, engine, encoder, part, held_out)
    report = loop.run(arm, truncated)
    if anchor is not None:
        report = replace(report, say=asdict(anchor.say))
    state = loop.best_state if held_out is not None else loop.state()
    if world.rank == 0:
        assert state is not None
        model_card = export.model_card(arm.name, job.labels, student, len(rows), asdict(report), arm.lineage)
        state = full_vocabulary.restore(state)
        if anchor is not None:
            state = anchor.blend(state)
        export.write(arm.folder, encoder, state, job.labels, model_card, asdict(report))
    engine.destroy()
    return report


@dataclass(frozen=True)
class _Part:
    """Rows ready for the loop: token ids, lengths ``[rows]``, targets ``[rows, classes]``, weights ``[rows]``."""

    ids: list[list[int]]
    lengths: NDArray[np.int64]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, rows: Sequence[TrainingRow], texts: Mapping[str, list[int]], student: StudentConfig) -> _Part:
        ids = [texts[row.text] for row in rows]
        targets, weights = objective.targets(rows, student)
        return cls(ids, np.array([len(row) for row in ids], dtype=np.int64), targets, weights)


class _Loop:
    """The optimiser steps of one arm on one worker."""

    def __init__(
        self, world: _World, student: StudentConfig, engine: Any, encoder: Encoder, part: _Part, held_out: _Part | None
    ) -> None:
        self.world, self.student, self.engine, self.encoder = world, student, engine, encoder
        self.part, self.held_out = part, held_out
        on_gpu = world.device.type == "cuda"
        self.budget = (
            student.micro_batch_tokens if student.micro_batch_tokens != "auto" else (65_536 if on_gpu else 4096)
        )
        # What one more forward and backward pass costs, in tokens: launches on a GPU, Python on a CPU.
        self.overhead = 8192 if on_gpu else 32
        self.best_state: dict[str, Any] | None = None
        self._losses: list[float] = []
        self._pending: list[Any] = []

    def run(self, arm: ArmJob, truncated: int) -> ArmReport:
        """All steps. Raises ``StageError`` naming the step where the loss is not a number."""
        student, part, world = self.student, self.part, self.world
        plan = batches.plan_steps(len(part.ids), student.batch_size, student.epochs, student.min_steps, arm.seed)
        peak = objective.peak_learning_rate(student, self.encoder.parameters)
        rates, history = [], []
        best_loss, best_step, stale = float("inf"), len(plan), 0
        tokens = padded = examples = 0
        started = time.perf_counter()
        self.engine.train()
        for number, step in enumerate(plan):
            lengths = part.lengths[step.rows]
            shards = batches.shard(lengths, world.size, self.budget, self.overhead)
            rate = objective.learning_rate(number, len(plan), peak, student.warmup_ratio, student.schedule)
            rates.append(rate)
            self._step(step.rows, shards[world.rank], rate)
            examples += len(step.rows)
            tokens += int(lengths.sum())
            padded += sum(batches.padded_tokens(lengths, shard) for shard in shards)
            last = number + 1 == len(plan)
            if last or step.ends_epoch or len(self._pending) >= LOSS_WINDOW:
                self._settle(arm.name)
            if self.held_out is not None and (step.ends_epoch or last):
                loss, accuracy = self._evaluate(self.held_out)
                history.append({"step": number + 1, "loss": loss, "accuracy": accuracy})
                stale += 1
                if loss < best_loss:
                    best_loss, best_step, stale = loss, number + 1, 0
                    self.best_state = self.state()
                if stale >= student.patience and number + 1 >= student.min_steps:
                    break
        seconds = time.perf_counter() - started
        return ArmReport(
            digest=arm.digest,
            steps=len(rates),
            losses=self._losses,
            learning_rates=rates,
            examples=examples,
            tokens=tokens,
            padded_tokens=padded,
            truncated=truncated,
            seconds=seconds,
            workers=world.size,
            best_step=best_step if self.held_out is not None else len(rates),
            validation=history,
        )

    def state(self) -> dict[str, Any] | None:
        """All weights in main memory on rank 0, ``None`` elsewhere; ZeRO 3's shards are gathered."""
        import deepspeed

        gather = contextlib.nullcontext()
        if self.student.zero_stage == 3:
            gather = deepspeed.zero.GatheredParameters(list(self.engine.module.parameters()), modifier_rank=None)
        with gather:
            if self.world.rank != 0:
                return None
            return {name: value.detach().cpu().clone() for name, value in self.engine.module.state_dict().items()}

    def _step(self, rows: NDArray[np.int64], micro_batches: list[list[int]], rate: float) -> None:
        """One optimiser step: this worker's micro-batches of the global batch ``rows``."""
        engine, part = self.engine, self.part
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        # DeepSpeed divides by the number of workers; times that number it is a sum again.
        scale = self.world.size / float(part.weights[rows].sum(dtype=np.float64))
        local = 0.0
        for number, positions in enumerate(micro_batches):
            engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
            loss = self._loss_sum(part, rows[positions]) * scale
            engine.backward(loss, scale_wrt_gas=False)
            local = local + loss.detach()
        engine.step()
        self._pending.append(local / self.world.size)

    def _loss_sum(self, part: _Part, chosen: NDArray[np.int64]) -> Any:
        """Sum over the rows of weight times cross-entropy. An empty micro-batch computes one row at no weight:
        every worker has to take part in every exchange of gradients."""
        import torch

        device = self.world.device
        padding = len(chosen) == 0
        if padding:
            chosen = np.array([int(part.lengths.argmin())])
        inputs = self.encoder.collate([part.ids[row] for row in chosen], device)
        targets = torch.from_numpy(part.targets[chosen]).to(device)
        weights = torch.from_numpy(part.weights[chosen]).to(device)
        logits = self.engine(**inputs).logits.float()
        losses = -(targets * torch.log_softmax(logits, dim=-1)).sum(dim=-1)
        return (losses * weights).sum() * (0.0 if padding else 1.0)

    def _settle(self, arm: str) -> None:
        """Sum the pending losses over workers and check that they are numbers."""
        import torch

        first = len(self._losses)
        self._losses += self.world.total(torch.stack(self._pending).double() if self._pending else torch.zeros(0))
        self._pending.clear()
        for step, loss in enumerate(self._losses[first:], start=first + 1):
            if not np.isfinite(loss):
                raise StageError(
                    f"training of {arm!r} stopped: the loss is {loss} at step {step} of the student; "
                    f"lower student.learning_rate, or use precision float32"
                )

    def _evaluate(self, part: _Part) -> tuple[float, float]:
        """Mean loss and accuracy on held-out rows; every rank computes its share."""
        import torch

        mine = batches.shard(part.lengths, self.world.size, self.budget)[self.world.rank]
        sums = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        self.engine.eval()
        with torch.no_grad():
            for positions in mine:
                chosen = np.array(positions or [0])
                inputs = self.encoder.collate([part.ids[row] for row in chosen], self.world.device)
                logits = self.engine(**inputs).logits.float()
                if positions:
                    targets = torch.from_numpy(part.targets[chosen]).to(self.world.device)
                    sums[0] += -(targets * torch.log_softmax(logits, dim=-1)).sum()
                    sums[1] += (logits.argmax(dim=-1) == targets.argmax(dim=-1)).sum()
        self.engine.train()
        loss, hits = self.world.total(sums)
        return loss / len(part.ids), hits / len(part.ids)


def _seed_everything(seed: int) -> None:
    """The libraries' global generators: dropout and head initialisation draw from nothing else."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
