"""Measure the gain of distilling: macro-F1 on real tasks, two labelled examples per class, embedded teacher.

    python benchmarks/quality.py --data-dir DIR --tasks trec6,subj,sms_spam,ag_news --seeds 0,1,2 --json FILE

``DIR/<task>/{train,test}.parquet`` with columns text and label. Each task and data seed runs through the
stages of ``potstill distill``. ``seeds_only`` is, per run, the better on the test split of fine-tuning on the seeds and
logistic regression on their embeddings, which favours the baseline.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
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
from potstill.config import parse
from potstill.measures.scores import mean_and_deviation, score
from potstill.task import find_shipped

COLUMNS = ("seeds_only", "generated", "distilled", "real_equal")
QUICK = {"augment": {"per_class": 15, "over_generate": 2.0}, "task": {"max_test": 300}}


def main() -> None:
    """Run every task with every seed, print the table and write the figures."""
    options = _options()
    terminal = Terminal()
    started = time.monotonic()
    jobs = [
        _job(options, task, seed, terminal)
        for task in options.tasks.split(",")
        for seed in map(int, options.seeds.split(","))
    ]
    with cluster.connect():
        # All runs share one pool; it is closed before training needs its cores.
        with TeacherPool(jobs[0].config.teacher, Ledger(jobs[0].config.ledger.uri)) as pool:
            for job in jobs:
                terminal.say(f"[bold]{job.run.name}[/] seed {job.config.seed}")
                preflight.check(job)
                generate.generate(job, pool)
                relabel.relabel(job, pool)
        runs = []
        for job in jobs:
            terminal.say(f"[bold]{job.run.name}[/] seed {job.config.seed}")
            finetune.finetune(job)
            runs.append((job, _scores(job)))
            terminal.say("  ".join(f"{name} {value:.3f}" for name, value in runs[-1][1].items()))
            result = summarise(runs, time.monotonic() - started)
            if options.json:  # after every run, since the next one may fail
                Path(options.json).write_text(json.dumps(result, indent=2))
    _print(terminal, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of tasks, DIR/<task>/{train,test}.parquet")
    parser.add_argument("--tasks", default="trec6,subj,sms_spam,ag_news")
    parser.add_argument("--seeds", default="0,1,2", help="data seeds")
    parser.add_argument("--quick", action="store_true", help="smoke run: fewer texts, at most 300 test texts")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--set", action="append", default=[], help="override a config field", metavar="FIELD=VALUE")
    return parser.parse_args()


def _job(options: argparse.Namespace, task: str, seed: int, terminal: Terminal) -> Job:
    from potstill.config.files import override

    content: dict[str, Any] = {
        "task": _task(task, Path(options.data_dir).resolve()),
        "seed": seed,
        "evaluate": {"compare": ["seeds_only", "generated", "real_equal"]},
        "tracking": {"uri": "none"},
    }
    if options.quick:
        content["augment"] = QUICK["augment"]
        content["task"] |= QUICK["task"]
    return prepare(parse(override(content, options.set)), terminal)


def _task(name: str, data_dir: Path) -> dict[str, Any]:
    """Return the preset with the data in ``data_dir``; without a preset, the folder itself is the task."""
    if find_shipped(name):
        return {"preset": name, "data_dir": str(data_dir)}
    return {"preset": str(data_dir / name)}


def _scores(job: Job) -> dict[str, float]:
    """Return the macro-F1 of every student on the test split."""
    students = job.run.read_json("finetune")
    predictions = evaluation.predict(
        {name: one["export"] for name, one in students.items()},
        job.data.test,
        job.labels,
        max_length=job.config.student.max_length,
    )
    predictions[evaluate.REGRESSION] = evaluate.regression(job)
    scores = {name: score(rows, job.labels, resamples=100) for name, rows in predictions.items()}
    values = {name: one.macro_f1.value for name, one in scores.items()}
    return {**values, "seeds_fine_tuned": values["seeds_only"], "seeds_only": values[evaluate.strongest(scores)]}


def summarise(runs: list[tuple[Job, dict[str, float]]], seconds: float) -> dict[str, Any]:
    """Return means over data seeds by task, and the mean and minimum gain over tasks (fractions of 1).

    A column is None if the task lacks its data (no real texts beyond the seeds).
    """
    tasks: dict[str, Any] = {}
    for name in dict.fromkeys(job.task.name for job, _ in runs):
        own = [values for job, values in runs if job.task.name == name]
        told = {column: mean_and_deviation([one[column] for one in own]) for column in COLUMNS if column in own[0]}
        tasks[name] = {column: told[column][0] if column in told else None for column in COLUMNS}
        tasks[name]["std"] = {column: told[column][1] if column in told else None for column in COLUMNS}
        tasks[name]["runs"] = own
    gains = [one["distilled"] - one["seeds_only"] for one in tasks.values()]
    return {"tasks": tasks, "mean_gain": statistics.fmean(gains), "worst_gain": min(gains), "seconds": seconds}


def _print(terminal: Terminal, result: dict[str, Any]) -> None:
    rows = [
        (
            name,
            *("-" if one[column] is None else f"{one[column]:.3f} ± {one['std'][column]:.3f}" for column in COLUMNS),
            f"{one['distilled'] - one['seeds_only']:+.3f}",
        )
        for name, one in result["tasks"].items()
    ]
    terminal.say()
    terminal.table("macro-F1, mean ± standard deviation over data seeds", ["task", *COLUMNS, "gain"], rows)
    terminal.say(
        f"mean gain {result['mean_gain']:+.3f}, worst gain {result['worst_gain']:+.3f}, {result['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
