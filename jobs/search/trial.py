"""One rung of a trial: a distill job that ends at a validation score.

A rung generates and relabels its texts through the shared pool, trains a student on them and scores it on validation
texts. The result is stored under the digest of everything that decides it before it is reported. A search that
resumes, grows or reaches the same rung from another point finds it there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import numpy as np
from rich.console import Console

from actors import student_folder
from actors.ledger.handle import Ledger
from actors.search_workers import SharedPool, fetch
from actors.teachers.pool import TeacherPool, cause
from jobs.run.folder import Run
from jobs.run.job import Job, find_run
from jobs.runtime.terminal import Terminal
from jobs.stages import finetune, generate, relabel
from jobs.stages import train as training
from jobs.stages.ask import Usage
from jobs.tracking.tracker import NullTracker
from potstill.config import Config
from potstill.draws import digest
from potstill.errors import StageError
from potstill.measures.baselines import as_predictions
from potstill.measures.scores import score
from potstill.rows import Example, Prediction
from potstill.search.placement import Placement
from potstill.search.validation import Validation
from potstill.student.arms import Arm
from potstill.task import LabelledText, Task, TaskData
from potstill.texts.filters import normalise

RESAMPLES = 200  # intervals of validation scores are only shown


@dataclass(frozen=True, slots=True)
class RungResult:
    """The result of a rung and its cost when it was first computed.

    ``scores``: by metric, those of ``search.objective`` among them; ``low`` and ``high``: the 95 % interval of macro-F1
    (bootstrap over validation texts); ``by_seed``: macro-F1 of each training seed; ``usage``: of generation and
    relabelling; ``kept``: texts the student saw.
    """

    key: str
    run: str
    per_class: int
    epochs: int
    scores: dict[str, float]
    low: float
    high: float
    by_seed: tuple[float, ...]
    usage: dict[str, float]
    kept: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RungResult:
        """Read what ``asdict`` wrote."""
        return cls(**{**data, "by_seed": tuple(data["by_seed"]), "warnings": tuple(data["warnings"])})

    def found_again(self) -> RungResult:
        """The result for another trial that reaches the same rung: it pays nothing new."""
        new = dict.fromkeys((name for name in self.usage if name.endswith("_new")), 0.0)
        return replace(self, usage={**self.usage, **new, "requests_reused": self.usage["requests"]})


@dataclass(frozen=True)
class Scene:
    """What all trials of a search share; sent to each of them. ``run``: the search's folder."""

    config: Config
    task: Task
    data: TaskData
    validation: Validation
    run: Run
    search_workers: Any
    ledger: Ledger
    placement: Placement

    def job(self, config: Config) -> Job:
        """A quiet, untracked job in the search's folder, with the same data regardless of the config's data seed."""
        run = find_run(config, self.task, self.data, f"{self.run.path}/runs")
        return Job(config, self.task, self.data, run, Quiet(), NullTracker(), embed=self.embed)

    def embed(self, *groups: Sequence[str]) -> list[np.ndarray]:
        """As ``jobs.runtime.torch_worker.embed``, by a search worker."""
        found: list[np.ndarray] = _ask(self.search_workers.embed.remote([list(group) for group in groups]))
        return found

    def pool(self) -> TeacherPool:
        """The search's teachers."""
        return SharedPool(self.search_workers, self.config.teacher, self.ledger)


class Quiet(Terminal):
    """A terminal that shows nothing and keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(Console(file=StringIO()), plain_every_s=3600.0)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.warnings.append(text)


def owners(owner: str) -> tuple[str, str, str]:
    """The names under which ``owner`` claims rungs, students (until they have predicted) and anchors (until trained).

    Claims are made in this order, and by digest within each, to avoid deadlock.
    """
    return owner, f"{owner} asks", f"{owner} trains"


def stored(scene: Scene, key: str) -> RungResult | None:
    """The stored result of a rung; None if there is none."""
    found = scene.run.find_json(f"rungs/{key}")
    return None if found is None else RungResult.from_json(found)


def run_rung(scene: Scene, config: Config, owner: str, *, repeats: int = 1, keep: bool = False) -> RungResult:
    """Compute a rung or load its result. ``keep``: leave the students in the config's storage, for a distill job.

    ``owner`` holds the claims. A trial that restarts after losing its node must use the same name, since it still
    holds its earlier claims. Raises the stages' errors.
    """
    job = scene.job(config.model_copy(update={"student": config.student.model_copy(update={"repeats": repeats})}))
    key = digest([job.run.name, scene.validation.digest, job.config.student.repeats], size=8)
    if (found := stored(scene, key)) is not None:
        return found
    with _claimed(scene, [key], owner):
        if (found := stored(scene, key)) is not None:
            return found
        result = _compute(scene, job, owner, key, keep)
        scene.run.write_json(f"rungs/{key}", result)
        return result


def _compute(scene: Scene, job: Job, owner: str, key: str, keep: bool) -> RungResult:
    started = time.monotonic()
    with scene.pool() as pool:
        _, generated = generate.generate(job, pool)
        wrote = time.monotonic()
        relabel.relabel(job, pool)
    usage = generated.usage + Usage(**job.run.read_json("relabel")["usage"])
    asked = time.monotonic()
    result, predictions, trained = _students(scene, job, owner, keep)
    scores = _scores(scene, job, predictions)
    shown = scores[finetune.DISTILLED]
    terminal = job.terminal
    return RungResult(
        key=key,
        run=job.run.name,
        per_class=job.config.augment.per_class,
        epochs=job.config.student.epochs,
        scores={
            "macro_f1": float(np.mean([one.macro_f1.value for one in scores.values()])),
            "accuracy": float(np.mean([one.accuracy.value for one in scores.values()])),
            "cost_usd": usage.cost_usd,
            "tokens": float(usage.prompt_tokens + usage.completion_tokens),
            "training_s": result.students[finetune.DISTILLED].report.seconds,
        },
        low=shown.macro_f1.low,
        high=shown.macro_f1.high,
        by_seed=tuple(one.macro_f1.value for one in scores.values()),
        usage={**generate.usage_metrics(usage), "tokens_new": float(usage.new_tokens)},
        kept=sum(example.kept for example in job.run.read(Example, "relabelled")),
        seconds={
            "generate": wrote - started,
            "relabel": asked - wrote,
            "train": trained - asked,
            "score": time.monotonic() - trained,
        },
        warnings=tuple(terminal.warnings) if isinstance(terminal, Quiet) else (),
    )


def _students(
    scene: Scene, job: Job, owner: str, keep: bool
) -> tuple[training.TrainingResult, dict[str, list[Prediction]], float]:
    """A rung's students, their predictions, and the time when training ended.

    Students are claimed until they have predicted and are deleted, since another rung may need the very same ones.
    """
    arms = _arms(scene, job)
    storage = job.config.storage if keep else scene.run.path
    _, asker, _ = owners(owner)
    digests = training.name_students(arms, job.config.student, job.labels)
    mine = {key for name, key in digests.items() if not name.startswith(finetune.START)}
    with _claimed(scene, [f"student {key}" for key in mine], asker):
        result = _train(scene, job, arms, storage, owner, mine)
        job.run.write_json("students", {name: one.digest for name, one in result.students.items()})
        trained = time.monotonic()
        predictions = _predict(scene, job, result)
        if not keep:
            # A student takes 90 MB. Anchors stay, since the next trial needs them.
            for name in predictions:
                student_folder.discard(f"{storage}/students/{result.students[name].digest}")
    return result, predictions, trained


@contextlib.contextmanager
def _claimed(scene: Scene, keys: Iterable[str], owner: str) -> Iterator[None]:
    """Hold the claims on ``keys`` inside the block."""
    try:
        for key in sorted(keys):
            _ask(scene.search_workers.claim.remote(key, owner))
        yield
    finally:
        _ask(scene.search_workers.release.remote(owner))


def _arms(scene: Scene, job: Job) -> list[Arm]:
    """The students of a rung: the distilled one per training seed, and one per fold of held-out seeds."""
    held = {normalise(text.text) for text in scene.validation.texts}
    arms = [
        replace(arm, rows=tuple(row for row in arm.rows if normalise(row.text) not in held))
        if arm.name.startswith(finetune.DISTILLED)
        else arm
        for arm in finetune.plan_arms(job)
    ]
    distilled = next(arm for arm in arms if arm.name == finetune.DISTILLED)
    seen = _seeds_seen(job) if scene.validation.folds else {}
    seeds = {normalise(seed.text) for seed in job.data.seeds}
    for number, fold in enumerate(scene.validation.folds):
        out = {normalise(seed.text): seed.example_id for seed in fold}
        blind = [row for row in distilled.rows if not seen.get(row.text, set()) & set(out.values())]
        # Prefer texts whose prompts did not show a held-out seed, if they cover all classes.
        labels = {int(np.argmax(row.label_probs)) for row in blind if normalise(row.text) not in seeds}
        chosen = blind if len(labels) == len(job.labels) else distilled.rows
        left = tuple(row for row in chosen if normalise(row.text) not in out)
        arms.append(replace(distilled, name=f"fold{number}", rows=left, start=None, anchor=None, asked=()))
    return arms


def _seeds_seen(job: Job) -> dict[str, set[str]]:
    """The ids of the seeds in each text's prompt."""
    shown: dict[str, set[str]] = {}
    for number in range(1, job.run.read_json("generate")["rounds"] + 1):
        table = job.run.read_table("request", f"generate-{number}").select(["request_id", "exemplar_ids"])
        shown |= {row["request_id"]: set(row["exemplar_ids"] or ()) for row in table.to_pylist()}
    return {row.text: shown.get(row.request_id or "", set()) for row in job.run.read(Example, "generated")}


def _train(
    scene: Scene, job: Job, arms: Sequence[Arm], storage: str, owner: str, mine: set[str]
) -> training.TrainingResult:
    """Train students that have no export yet; ``mine`` are already claimed."""
    student, labels = job.config.student, job.labels
    if scene.placement.workers > 1:
        return training.train(arms, student, labels, storage)

    def run(one: dict[str, Any]) -> None:
        # Trials share anchors: the first one trains them and releases them before it trains its own students.
        shared = [arm for arm in one["arms"] if arm["digest"] not in mine]
        *_, trainer = owners(owner)
        with _claimed(scene, {f"student {arm['digest']}" for arm in shared}, trainer):
            if shared:
                _ask(scene.search_workers.train.remote({**one, "arms": shared}))
        if own := [arm for arm in one["arms"] if arm["digest"] in mine]:
            _ask(scene.search_workers.train.remote({**one, "arms": own}))

    return training.train_with(run, arms, student, labels, storage, scene.placement.device)


def _predict(scene: Scene, job: Job, result: training.TrainingResult) -> dict[str, list[Prediction]]:
    """Each student's predictions on the validation texts, or on the seeds of its fold."""
    folders = {n: one.export for n, one in result.students.items() if not n.startswith(finetune.START)}
    folds = {f"fold{number}": fold for number, fold in enumerate(scene.validation.folds)}
    texts = list(scene.validation.texts) + [seed for fold in folds.values() for seed in fold]
    device, length = scene.placement.device, job.config.student.max_length
    plain = [text.text for text in texts]
    probs = _ask(scene.search_workers.predict.remote(folders, plain, job.labels, length, device))
    place = {text.example_id: i for i, text in enumerate(texts)}

    def rows(name: str, wanted: Sequence[LabelledText]) -> list[Prediction]:
        chosen = [place[text.example_id] for text in wanted]
        return as_predictions(wanted, np.asarray(probs[name])[chosen], job.labels)

    return {name: rows(name, folds.get(name, scene.validation.texts)) for name in folders}


def _scores(scene: Scene, job: Job, predictions: Mapping[str, list[Prediction]]) -> dict[str, Any]:
    """Scores per training seed; the folds' predictions on held-out seeds count towards each."""
    folds = [row for name, rows in predictions.items() if name.startswith("fold") for row in rows]
    seed = scene.config.task_seed
    return {
        name: score([*rows, *folds], job.labels, seed, RESAMPLES)
        for name, rows in predictions.items()
        if not name.startswith("fold")
    }


def _ask(answer: Any) -> Any:
    """A result of the search workers. Raises ``StageError`` if their processes are gone."""
    import ray

    try:
        return fetch(answer)
    except ray.exceptions.RayError as error:
        raise StageError(f"a search worker died: {cause(error)}") from error
