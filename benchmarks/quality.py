"""Measure the gain of distilling: macro-F1 on real tasks, two labelled examples per class, embedded teacher.

    python benchmarks/quality.py --data-dir DIR --json FILE
    python benchmarks/quality.py --data-dir DIR --tasks subj,trec6 --quick
    python benchmarks/quality.py --data-dir DIR --development     # scored on training-side rows; for everyday use

``DIR/<task>/{train,test}.parquet`` with columns text and label. Each task and data seed runs through the stages of
``potstill distill`` twice: with written texts alone, and with 500 training texts whose labels are put aside.

- ``free``: per run the best on the scored split, which favours it, of the students that cost no teacher
  (``jobs/stages/evaluate.py``), without unlabelled texts; ``self_trained``: the one with them.
- ``generated``: the texts as written; ``distilled``, ``distilled_unlabelled``: the results of the two jobs.
- ``real_equal``: as many real labels as ``distilled`` has texts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool
from jobs import preflight
from jobs.run.job import Job, prepare
from jobs.runtime import cluster
from jobs.runtime.terminal import Terminal
from jobs.stages import evaluate, finetune, generate, relabel
from jobs.stages import predict as evaluation
from potstill import draws
from potstill.config import home, parse
from potstill.measures.scores import Scores, mean_and_deviation, score
from potstill.task import find_shipped

COLUMNS = ("free", "self_trained", "generated", "distilled", "distilled_unlabelled", "real_equal")
TASKS = "trec6,subj,sms_spam,ag_news,tweet_emotion"
QUICK = {"augment": {"per_class": 30, "unlabelled": 200}, "task": {"max_test": 300}}
SCORED = 600  # training-side rows of --development


def main() -> None:
    """Run every task with every seed, print the table and write the figures."""
    options = _options()
    terminal = Terminal()
    started = time.monotonic()
    pairs = [
        [_job(options, task, seed, terminal, unlabelled) for unlabelled in (None, "train")]
        for task in options.tasks.split(",")
        for seed in map(int, options.seeds.split(","))
    ]
    with cluster.connect():
        # All runs share one pool; it is closed before training needs its cores.
        first = pairs[0][0].config
        with TeacherPool(first.teacher, Ledger(first.ledger.uri)) as pool:
            for job in (job for pair in pairs for job in pair):
                terminal.say(f"[bold]{job.run.name}[/] seed {job.config.seed}")
                preflight.check(job)
                generate.generate(job, pool)
                relabel.relabel(job, pool)
        runs = []
        for pair in pairs:
            terminal.say(f"[bold]{pair[0].task.name}[/] seed {pair[0].config.seed}")
            runs.append((pair[0], _scores(*pair)))
            terminal.say("  ".join(f"{name} {value:.3f}" for name, value in runs[-1][1].items()))
            result = summarise(runs, time.monotonic() - started)
            if options.json:  # after every run, since the next one may fail
                Path(options.json).write_text(json.dumps(result, indent=2))
    _print(terminal, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of tasks, DIR/<task>/{train,test}.parquet")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--seeds", default="0,1,2", help="data seeds")
    parser.add_argument("--quick", action="store_true", help="smoke run: fewer texts, at most 300 test texts")
    parser.add_argument("--development", action="store_true", help=f"score on {SCORED} training-side rows")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--set", action="append", default=[], help="override a config field", metavar="FIELD=VALUE")
    return parser.parse_args()


def _job(options: argparse.Namespace, task: str, seed: int, terminal: Terminal, unlabelled: str | None) -> Job:
    from potstill.config.files import override

    content: dict[str, Any] = {
        "task": {**_task(task, Path(options.data_dir).resolve()), "unlabelled": unlabelled},
        "seed": seed,
        "evaluate": {"compare": ["seeds_only"] if unlabelled else ["seeds_only", "generated", "real_equal"]},
        "tracking": {"uri": "none"},
    }
    if options.quick:
        content["augment"] = QUICK["augment"]
        content["task"] |= QUICK["task"]
    if options.development:
        content["storage"] = str(home() / "development")
    job = prepare(parse(override(content, options.set)), terminal)
    return _scored_on_train(job) if options.development else job


def _scored_on_train(job: Job) -> Job:
    """The job with some training rows in place of the test split; no student sees them."""
    scored = draws.sample(job.data.train, SCORED, 0, "development")
    texts = {row.text for row in scored}
    data = replace(
        job.data,
        train=tuple(row for row in job.data.train if row.text not in texts),
        unlabelled=tuple(text for text in job.data.unlabelled if text not in texts),
        test=tuple(scored),
    )
    return replace(job, data=data)


def _task(name: str, data_dir: Path) -> dict[str, Any]:
    """Return the preset with the data in ``data_dir``; without a preset, the folder itself is the task."""
    if find_shipped(name):
        return {"preset": name, "data_dir": str(data_dir)}
    return {"preset": str(data_dir / name)}


def _scores(plain: Job, unlabelled: Job) -> dict[str, float]:
    """Macro-F1 of every student of both jobs on the test split."""
    found = _score(plain)
    values = {name: one.macro_f1.value for name, one in found.items()}
    values["free"] = values[evaluate.strongest(found)]
    for name, one in _score(unlabelled).items():
        if name in (finetune.SELF_TRAINED, finetune.DISTILLED):
            values[name if name == finetune.SELF_TRAINED else "distilled_unlabelled"] = one.macro_f1.value
    return values


def _score(job: Job) -> dict[str, Scores]:
    finetune.finetune(job)
    students = job.run.read_json("finetune")
    exports = {name: one["export"] for name, one in students.items()}
    predictions = evaluation.predict(exports, job.data.test, job.labels, max_length=job.config.student.max_length)
    predictions |= evaluate.regressions(job)
    return {name: score(rows, job.labels, resamples=100) for name, rows in predictions.items()}


def summarise(runs: list[tuple[Job, dict[str, float]]], seconds: float) -> dict[str, Any]:
    """Return means over data seeds by task, and the mean and minimum gain over tasks (fractions of 1), of written texts
    over ``free`` and of unlabelled ones over the better of ``free`` and ``self_trained``.

    A column is None if the task lacks its data (no real texts beyond the seeds).
    """
    tasks: dict[str, Any] = {}
    for name in dict.fromkeys(job.task.name for job, _ in runs):
        own = [values for job, values in runs if job.task.name == name]
        told = {column: mean_and_deviation([one[column] for one in own]) for column in COLUMNS if column in own[0]}
        tasks[name] = {column: told[column][0] if column in told else None for column in COLUMNS}
        tasks[name]["std"] = {column: told[column][1] if column in told else None for column in COLUMNS}
        tasks[name]["runs"] = own
    gains = [one["distilled"] - one["free"] for one in tasks.values()]
    further = [one["distilled_unlabelled"] - max(one["free"], one["self_trained"]) for one in tasks.values()]
    return {
        "tasks": tasks,
        "mean_gain": statistics.fmean(gains),
        "worst_gain": min(gains),
        "mean_gain_unlabelled": statistics.fmean(further),
        "worst_gain_unlabelled": min(further),
        "seconds": seconds,
    }


def _print(terminal: Terminal, result: dict[str, Any]) -> None:
    rows = [
        (
            name,
            *("-" if one[column] is None else f"{one[column]:.3f} ± {one['std'][column]:.3f}" for column in COLUMNS),
            f"{one['distilled'] - one['free']:+.3f}",
            f"{one['distilled_unlabelled'] - max(one['free'], one['self_trained']):+.3f}",
        )
        for name, one in result["tasks"].items()
    ]
    terminal.say()
    terminal.table(
        "macro-F1, mean ± standard deviation over data seeds", ["task", *COLUMNS, "gain", "unlabelled"], rows
    )
    for name in ("", "_unlabelled"):
        words = f"{name.strip('_') or 'written'} texts: mean gain {result['mean_gain' + name]:+.3f}"
        terminal.say(f"{words}, worst {result['worst_gain' + name]:+.3f}")
    terminal.say(f"{result['seconds']:.0f} s")


if __name__ == "__main__":
    main()
