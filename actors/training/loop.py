"""The optimiser steps of one arm on one worker.

Every step is a global batch planned by ``potstill.student.batches``. Each worker computes its micro-batches and scales
their loss so that the exchanged gradient (by ``actors.training.kernels.exchange`` at ZeRO stage 0, else by DeepSpeed)
is the sum over the batch divided by the *global* sum of example weights. Apart from rounding, the loss curve is
therefore the same at any number of workers, ZeRO stage or micro-batch size.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.process_group import ProcessGroup
from actors.training.encoder import Encoder
from actors.training.engine import computing_precision, initialise
from actors.training.job import ArmJob
from actors.training.parts import ClassRows, Part
from actors.training.recovery import checkpoints, snapshot
from actors.training.recovery.checkpoints import RayCheckpoints
from actors.training.recovery.snapshot import LoopState
from potstill.config.student import StudentConfig
from potstill.errors import StageError
from potstill.student import batches, objective

LOSS_WINDOW = 10
"""Steps between two reads of the loss: summing it over workers each step would wait for the GPU each step."""

CHECKPOINT_SECONDS = 300.0
"""Time between checkpoints with ``checkpoint_steps: auto``: the most work that a lost worker costs."""

NOTICE_SECONDS = 2.0
"""Time between checks for a preemption notice."""

log = logging.getLogger("potstill.student")


class Loop:
    """Trains ``part`` by ``run``. With ``held_out`` texts, ``best_state`` then holds the best weights (on rank 0)."""

    def __init__(
        self,
        group: ProcessGroup,
        student: StudentConfig,
        encoder: Encoder,
        part: Part,
        held_out: ClassRows | None = None,
        place: RayCheckpoints | None = None,
    ) -> None:
        self.group, self.student, self.encoder = group, student, encoder
        self.part, self.held_out, self.place = part, held_out, place
        on_gpu = group.device.type == "cuda"
        automatic = 65_536 if on_gpu else 4096
        self.budget = student.micro_batch_tokens if student.micro_batch_tokens != "auto" else automatic
        # The cost of one more forward and backward pass, in tokens: launches on a GPU, Python on a CPU.
        self.overhead = 8192 if on_gpu else 64
        self.progress = LoopState()
        self.best_state: dict[str, Any] | None = None
        self.engine: Any = None
        self._pending: list[Any] = []
        self._saved_at = self._asked_at = time.monotonic()
        self._preempted = False

    def run(self, arm: ArmJob) -> LoopState:
        """Train from the arm's checkpoint, or from the start without one, to the end. Raises ``StageError`` naming
        the step where the loss is not finite."""
        self._start(arm)
        student, part, now = self.student, self.part, self.progress
        plan = part.plan(student, arm.seed)
        peak = part.peak_share * objective.peak_learning_rate(student, self.encoder.parameters)
        every = 0 if self.place is None or student.checkpoint_steps == "auto" else student.checkpoint_steps
        if self.group.rank == 0:
            log.info("arm %s: starts at step %d of %d", arm.name, now.step + 1, len(plan))
        before, started = now.seconds, time.perf_counter()
        self.engine.train()
        for number in range(now.step, len(plan)):
            step, last = plan[number], number + 1 == len(plan)
            lengths = part.lengths[step.rows]
            shards = self._shard(lengths)
            rate = objective.learning_rate(number, len(plan), peak, student.warmup_ratio, student.schedule)
            self._step(step.rows, shards[self.group.rank], rate)
            now.step = number + 1
            now.learning_rates.append(rate)
            now.examples += len(step.rows)
            now.tokens += int(lengths.sum())
            now.padded_tokens += self._computed(lengths, shards)
            by_count = every > 0 and now.step % every == 0
            if not (last or step.ends_epoch or by_count or len(self._pending) >= LOSS_WINDOW):
                continue
            due = self._settle(arm.name)
            now.seconds = before + time.perf_counter() - started
            if self.held_out is not None and (step.ends_epoch or last) and self._stop_early(self.held_out):
                break
            if (due or by_count) and not last:
                self._checkpoint(arm)
        now.seconds = before + time.perf_counter() - started
        return now

    def _start(self, arm: ArmJob) -> None:
        """Make the engine and load the arm's checkpoint, if ``place`` has one, written by any number of workers."""
        import torch

        group, student = self.group, self.student
        with self.place.fetch() if self.place is not None else contextlib.nullcontext() as folder:
            found = snapshot.Snapshot.find(folder, arm.digest)
            universal = found is not None and found.needs_conversion(group, student.zero_stage)
            self.engine = initialise(student, self.encoder, group.device, universal=universal)
            # From here on the ranks draw different numbers (dropout); all shared draws are done.
            torch.manual_seed(arm.seed * 65_537 + group.rank + 1)
            # DeepSpeed divides by the number of workers; multiplying by it gives the sum.
            self._exchange, self._summed = None, group.size
            if student.zero_stage == 0:  # the other stages exchange gradients during the backward pass
                from actors.training.kernels.exchange import Exchange

                precision = computing_precision(student, group.device.type)
                self._exchange, self._summed = Exchange(self.engine.module.parameters(), group, precision), 1
            if found is None:
                return
            self.best_state = snapshot.restore(found, group, self.engine, arm.seed, student.zero_stage)
            self.progress = found.progress
            self.progress.resumed.append(self.progress.step)
            if group.rank == 0:
                was = f" (written by {found.workers} workers)" if found.workers != group.size else ""
                log.info("arm %s: resumes after step %d%s", arm.name, self.progress.step, was)

    def state(self) -> dict[str, Any] | None:
        """All weights in main memory on rank 0, ``None`` on other ranks; ZeRO 3's shards are gathered."""
        import deepspeed

        gather = contextlib.nullcontext()
        if self.student.zero_stage == 3:
            gather = deepspeed.zero.GatheredParameters(list(self.engine.module.parameters()), modifier_rank=None)
        with gather:
            if self.group.rank != 0:
                return None
            return {name: value.detach().cpu().clone() for name, value in self.engine.module.state_dict().items()}

    def _step(self, rows: NDArray[np.int64], micro_batches: list[list[int]], rate: float) -> None:
        """Do one optimiser step: this worker's micro-batches of the global batch ``rows``."""
        engine, part = self.engine, self.part
        for parameters in engine.optimizer.param_groups:
            parameters["lr"] = rate
        scale = self._summed / float(part.weights[rows].sum(dtype=np.float64))
        local = 0.0
        for index, positions in enumerate(micro_batches):
            engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            loss = self._loss_sum(part, rows[positions]) * scale
            engine.backward(loss, scale_wrt_gas=False)
            local = local + loss.detach()
        if self._exchange is not None:
            self._exchange()
        engine.step()
        self._pending.append(local / self._summed)

    def _shard(self, lengths: NDArray[np.int64]) -> list[list[list[int]]]:
        """The micro-batches of a global batch, by worker."""
        if self.encoder.packed:
            return batches.share(lengths, self.group.size, self.budget)
        return batches.shard(lengths, self.group.size, self.budget, self.overhead)

    def _computed(self, lengths: NDArray[np.int64], shards: list[list[list[int]]]) -> int:
        """Tokens of a step, padding included."""
        if self.encoder.packed:
            return int(lengths.sum())
        return sum(batches.padded_tokens(lengths, shard) for shard in shards)

    def _loss_sum(self, part: Part, chosen: NDArray[np.int64]) -> Any:
        """Sum over the rows of weight times loss. An empty micro-batch computes one row with weight 0, since
        every worker must take part in every exchange of gradients."""
        import torch

        device = self.group.device
        padding = len(chosen) == 0
        if padding:
            chosen = np.array([int(part.lengths.argmin())])
        losses = part.losses(self.engine, self.encoder, chosen, device)
        weights = torch.from_numpy(part.weights[chosen]).to(device)
        return (losses * weights).sum() * (0.0 if padding else 1.0)

    def _settle(self, arm: str) -> bool:
        """Sum the pending losses over workers and check that they are finite. Returns whether a checkpoint is due:
        rank 0's clock decides and sends its decision along with the losses."""
        import torch

        first = len(self.progress.losses)
        clock = time.monotonic()
        setting = self.student.checkpoint_steps if self.place is not None else 0
        late = setting == "auto" and clock - self._saved_at >= CHECKPOINT_SECONDS
        check = setting != 0 and clock - self._asked_at >= NOTICE_SECONDS
        decision = [float(late), float(check)] if self.group.rank == 0 else [0.0, 0.0]
        decisions = torch.tensor(decision, dtype=torch.float64, device=self.group.device)
        *losses, due, ask = self.group.total(torch.cat([torch.stack(self._pending).double(), decisions]))
        self._pending.clear()
        self.progress.losses += losses
        for step, loss in enumerate(losses, start=first + 1):
            if not np.isfinite(loss):
                raise StageError(
                    f"training of {arm!r} stopped: the loss is {loss} at step {step} of the student; "
                    f"lower student.learning_rate, or use precision float32"
                )
        return bool(due) or (bool(ask) and self._newly_preempted())

    def _newly_preempted(self) -> bool:
        """Whether there is a preemption notice that was not there at the last check."""
        assert self.place is not None
        self._asked_at = time.monotonic()
        known, self._preempted = self._preempted, self.place.preempted()
        return self._preempted and not known

    def _checkpoint(self, arm: ArmJob) -> None:
        """Save the state of training. A failure becomes a warning, and the last good checkpoint stays."""
        import torch

        assert self.place is not None

        now, group = self.progress, self.group
        shards = [getattr(p, "ds_tensor", p) for p in self.engine.module.parameters()]
        bad = sum((~torch.isfinite(shard)).any() for shard in shards if shard.numel())
        if group.total(torch.as_tensor(bad, dtype=torch.float64, device=group.device).reshape(1))[0]:
            raise StageError(
                f"training of {arm.name!r} stopped: the weights are not finite after step {now.step} of the student; "
                f"lower student.learning_rate, or use precision float32"
            )
        problem = checkpoints.save(
            group,
            self.place,
            now.step,
            lambda folder: snapshot.write(folder, group, self.engine, arm.digest, now, self.best_state),
        )
        self._saved_at = time.monotonic()
        if problem is not None:
            now.warnings.append(f"no checkpoint at step {now.step}: {problem}")
            if group.rank == 0:
                log.warning(
                    "arm %s: no checkpoint at step %d, the last good one stays: %s", arm.name, now.step, problem
                )

    def _stop_early(self, held_out: ClassRows) -> bool:
        """Evaluate on the held-out rows and keep the weights if they are the best so far. Returns whether to stop."""
        now = self.progress
        loss, accuracy = self._evaluate(held_out)
        now.validation.append({"step": now.step, "loss": loss, "accuracy": accuracy})
        now.stale += 1
        if loss < now.best_loss:
            now.best_loss, now.best_step, now.stale = loss, now.step, 0
            self.best_state = self.state()
        return now.stale >= self.student.patience and now.step >= self.student.min_steps

    def _evaluate(self, part: ClassRows) -> tuple[float, float]:
        """Mean loss and accuracy on held-out rows; every rank computes its share."""
        import torch

        mine = self._shard(part.lengths)[self.group.rank]
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        self.engine.eval()
        with torch.no_grad():
            for positions in mine:
                chosen = np.array(positions or [0])
                inputs = self.encoder.collate([part.ids[row] for row in chosen], self.group.device)
                logits = self.engine(**inputs).logits.float()
                if positions:
                    targets = torch.from_numpy(part.targets[chosen]).to(self.group.device)
                    sums[0] += -(targets * torch.log_softmax(logits, dim=-1)).sum()
                    sums[1] += (logits.argmax(dim=-1) == targets.argmax(dim=-1)).sum()
        self.engine.train()
        loss, hits = self.group.total(sums)
        return loss / len(part), hits / len(part)
