"""One trial of a search, as far as a rung: a distill job without its test.

A rung generates and relabels its texts through the pool that all trials share, trains a student on them and scores it
on validation texts. What it gave is written under the digest of everything that decides it before anybody hears of
it, so that a search that was stopped, or grows, or meets the same rung from another point finds it there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from typing import Any

import numpy as np
from rich.console import Console

from actors import student_folder
from actors.backends.identity import identify
from actors.ledger.handle import Ledger
from actors.search_workers import SharedPool, fetch
from actors.teachers.pool import TeacherPool, cause
from jobs.run.folder import Run, name_run
from jobs.run.job import Job
from jobs.runtime.terminal import Terminal
from jobs.stages import finetune, generate, relabel
from jobs.stages import train as training
from jobs.stages.ask import Usage
from jobs.tracking.tracker import NullTracker
from potstill.config import Config
from potstill.draws import digest
from potstill.errors import InputError, StageError
from potstill.measures.baselines import as_predictions
from potstill.measures.scores import score
from potstill.rows import Example, Prediction
from potstill.search.placement import Placement
from potstill.search.validation import Validation
from potstill.student.arms import Arm
from potstill.task import LabelledText, Task, TaskData
from potstill.texts.filters import normalise

RESAMPLES = 200  # the intervals of validation scores are for the eye


@dataclass(frozen=True, slots=True)
class RungResult:
    """What one rung gave, and what it took when it was first computed.

    ``scores`` by metric of ``search.objective`` and more; ``low`` and ``high`` bound macro-F1 (95 %, bootstrap over
    validation texts); ``by_seed``: macro-F1 of each training seed, where there are several. ``usage`` is of
    generation and relabelling, ``kept`` counts texts the student saw.
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
        """What ``asdict`` made of one, after a way through JSON."""
        return cls(**{**data, "by_seed": tuple(data["by_seed"]), "warnings": tuple(data["warnings"])})

    def found_again(self) -> RungResult:
        """The same for another trial that meets it: nothing is newly paid."""
        new = dict.fromkeys((name for name in self.usage if name.endswith("_new")), 0.0)
        return replace(self, usage={**self.usage, **new, "requests_reused": self.usage["requests"]})


@dataclass(frozen=True)
class Scene:
    """What all trials of a search have in common; sent to each of them. ``run``: the search's own folder."""

    config: Config
    task: Task
    data: TaskData
    validation: Validation
    run: Run
    workshop: Any
    ledger: Ledger
    placement: Placement

    def job(self, config: Config) -> Job:
        """A job in a folder of the search, quiet and untracked; the same texts whatever the config's data seed."""
        weights = identify(config.teacher).weights_digest
        run = Run(f"{self.run.path}/runs", name_run(config, self.task, self.data, weights))
        return Job(config, self.task, self.data, run, Quiet(), NullTracker(), embed=self.embed)

    def embed(self, *groups: Sequence[str]) -> list[np.ndarray]:
        """As ``jobs.runtime.torch_worker.embed``, in a process that stays."""
        found: list[np.ndarray] = _ask(self.workshop.embed.remote([list(group) for group in groups]))
        return found

    def pool(self) -> TeacherPool:
        """The search's teachers."""
        return SharedPool(self.workshop, self.config.teacher, self.ledger)


class Quiet(Terminal):
    """Keeps what a stage has to warn of."""

    def __init__(self) -> None:
        super().__init__(Console(file=StringIO()), plain_every_s=3600.0)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Remember it."""
        self.warnings.append(text)


def owners(owner: str) -> tuple[str, str, str]:
    """The names under which ``owner`` claims rungs, students until it has their answers, and anchors until they are
    trained. Claimed in this order, and by digest within each, so that no two wait for each other."""
    return owner, f"{owner} asks", f"{owner} trains"


def rung_key(scene: Scene, job: Job) -> str:
    """The digest of what decides a rung's scores."""
    return digest([job.run.name, scene.validation.digest, job.config.student.repeats], size=8)


def stored(scene: Scene, key: str) -> RungResult | None:
    """The result of a rung that was computed before."""
    try:
        return RungResult.from_json(scene.run.read_json(f"rungs/{key}"))
    except InputError:
        return None


def run_rung(scene: Scene, config: Config, owner: str, *, repeats: int = 1, keep: bool = False) -> RungResult:
    """Compute a rung, or find it. ``keep``: the students stay in the config's storage, where a distill job finds them.

    ``owner`` names whoever asks: a trial that is started again, after its node was lost, must come under the same
    name, since what it had claimed is still its own. Raises the stages' errors.
    """
    job = scene.job(config.model_copy(update={"student": config.student.model_copy(update={"repeats": repeats})}))
    key = rung_key(scene, job)
    if (found := stored(scene, key)) is not None:
        return found
    _ask(scene.workshop.claim.remote(key, owner))
    try:
        if (found := stored(scene, key)) is not None:
            return found
        result = _compute(scene, job, owner, key, keep)
        scene.run.write_json(f"rungs/{key}", asdict(result))
        return result
    finally:
        _ask(scene.workshop.release.remote(owner))


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
        usage={
            **generate.usage_metrics(usage),
            "tokens_new": float(usage.new_tokens),
        },
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
    """A rung's students, their answers, and when they were trained.

    Until they have answered and are deleted nobody else has them: another rung may come to the very same rows.
    """
    arms = _arms(scene, job)
    storage = job.config.storage if keep else scene.run.path
    _, asker, _ = owners(owner)
    digests = training.name_students(arms, job.config.student, job.labels)
    mine = {key for name, key in digests.items() if not name.startswith(finetune.SEEDS_ONLY)}
    try:
        _claim(scene, mine, asker)
        result = _train(scene, job, arms, storage, owner, mine)
        job.run.write_json("students", {name: one.digest for name, one in result.students.items()})
        trained = time.monotonic()
        predictions = _predict(scene, job, result)
        if not keep:
            # A student is 90 MB; an anchor stays, since the next trial needs it again.
            for name in predictions:
                student_folder.discard(f"{storage}/students/{result.students[name].digest}")
    finally:
        _ask(scene.workshop.release.remote(asker))
    return result, predictions, trained


def _claim(scene: Scene, students: Iterable[str], owner: str) -> None:
    for key in sorted(students):
        _ask(scene.workshop.claim.remote(f"student {key}", owner))


def _arms(scene: Scene, job: Job) -> list[Arm]:
    """The students of a rung: the distilled one under each training seed, and one a fold where seeds are held out."""
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
        # Texts that were written with a held-out seed in sight tell of it; without any others they have to do.
        labels = {int(np.argmax(row.label_probs)) for row in blind if normalise(row.text) not in seeds}
        chosen = blind if len(labels) == len(job.labels) else distilled.rows
        left = tuple(row for row in chosen if normalise(row.text) not in out)
        arms.append(replace(distilled, name=f"fold{number}", rows=left, anchor=None, asked=()))
    return arms


def _seeds_seen(job: Job) -> dict[str, set[str]]:
    """For every text the seeds that its prompt showed."""
    shown: dict[str, set[str]] = {}
    for number in range(1, job.run.read_json("generate")["rounds"] + 1):
        table = job.run.read_table("request", f"generate-{number}").select(["request_id", "exemplar_ids"])
        shown |= {row["request_id"]: set(row["exemplar_ids"] or ()) for row in table.to_pylist()}
    return {row.text: shown.get(row.request_id or "", set()) for row in job.run.read(Example, "generated")}


def _train(
    scene: Scene, job: Job, arms: Sequence[Arm], storage: str, owner: str, mine: set[str]
) -> training.TrainingResult:
    """Train what has no export yet; the students ``mine`` are claimed already."""
    student, labels = job.config.student, job.labels
    if scene.placement.workers > 1:
        return training.train(arms, student, labels, storage)

    def run(one: dict[str, Any]) -> None:
        # Trials have anchors in common: the first trains them, and the others need not wait for what is its own.
        shared = [arm for arm in one["arms"] if arm["digest"] not in mine]
        *_, trainer = owners(owner)
        try:
            _claim(scene, {arm["digest"] for arm in shared}, trainer)
            if shared:
                _ask(scene.workshop.train.remote({**one, "arms": shared}))
        finally:
            _ask(scene.workshop.release.remote(trainer))
        if own := [arm for arm in one["arms"] if arm["digest"] in mine]:
            _ask(scene.workshop.train.remote({**one, "arms": own}))

    return training.train_with(run, arms, student, labels, storage, scene.placement.device)


def _predict(scene: Scene, job: Job, result: training.TrainingResult) -> dict[str, list[Prediction]]:
    """Every student's answers on what it is to be scored on: the validation texts, or the seeds of its fold."""
    folders = {n: one.export for n, one in result.students.items() if not n.startswith(finetune.SEEDS_ONLY)}
    folds = {f"fold{number}": fold for number, fold in enumerate(scene.validation.folds)}
    texts = list(scene.validation.texts) + [seed for fold in folds.values() for seed in fold]
    device, length = scene.placement.device, job.config.student.max_length
    plain = [text.text for text in texts]
    probs = _ask(scene.workshop.predict.remote(folders, plain, job.labels, length, device))
    place = {text.example_id: i for i, text in enumerate(texts)}

    def rows(name: str, wanted: Sequence[LabelledText]) -> list[Prediction]:
        chosen = [place[text.example_id] for text in wanted]
        return as_predictions(wanted, np.asarray(probs[name])[chosen], job.labels)

    return {name: rows(name, folds.get(name, scene.validation.texts)) for name in folders}


def _scores(scene: Scene, job: Job, predictions: Mapping[str, list[Prediction]]) -> dict[str, Any]:
    """Scores of each training seed; the folds' answers on held-out seeds count with each."""
    folds = [row for name, rows in predictions.items() if name.startswith("fold") for row in rows]
    seed = scene.config.task_seed
    return {
        name: score([*rows, *folds], job.labels, seed, RESAMPLES)
        for name, rows in predictions.items()
        if not name.startswith("fold")
    }


def _ask(answer: Any) -> Any:
    """A result of the workshop. Raises ``StageError`` where its processes are gone."""
    import ray

    try:
        return fetch(answer)
    except ray.exceptions.RayError as error:
        raise StageError(f"a process of the search broke off: {cause(error)}") from error
