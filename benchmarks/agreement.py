"""Test whether the teacher predicts which texts annotators disagree on (declared in docs/measures.md before measuring).

    python benchmarks/agreement.py --data-dir DIR --json agreement.json

``DIR/md_agreement/{train,test}.parquet`` with columns ``text, label, annotations`` (five votes per tweet). The best
of three estimates is chosen on ``--texts`` tweets of the train split and reported on the same number from the test
split. The teacher's answers are stored in the ledger of POTSTILL_HOME, so a second run sends no requests.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool
from jobs.run.job import Job, prepare
from jobs.runtime import cluster
from jobs.runtime.progress import Meter
from jobs.runtime.terminal import Terminal
from jobs.stages.ask import ask
from potstill import draws
from potstill.config import parse
from potstill.labels import evidence
from potstill.measures import subjectivity
from potstill.measures.annotations import read_annotations
from potstill.prompts.contents import ChoosePrompt, ClassCard
from potstill.prompts.render import make_request
from potstill.rows import Request, Sampling
from potstill.study import assessment

TASK = "md_agreement"
LABELS = ("not offensive", "offensive")  # of votes 0 and 1


def draw(folder: Path, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Return ``count`` random rows of a split."""
    rows = pq.read_table(folder / TASK / f"{split}.parquet", columns=["text", "annotations"]).to_pylist()
    return draws.sample(rows, count, seed, "agreement", split)


def annotators(rows: list[dict[str, Any]]) -> subjectivity.Agreement | None:
    """Return the annotators' agreement, parsed by the same reader as users' files."""
    votes = [
        {"item": i, "annotator": who, "label": LABELS[vote]}
        for i, row in enumerate(rows)
        for who, vote in enumerate(row["annotations"])
    ]
    return subjectivity.measure(read_annotations(votes, LABELS))


def estimates(job: Job, pool: TeacherPool, part: str, texts: list[str]) -> dict[str, np.ndarray]:
    """Return three estimates of annotator agreement, each of shape (texts,); declared before any was tried.

    ``votes``: share of the votes for the most common class; ``confidence``: largest probability of the votes' mean
    distribution; ``opinion``: the teacher's own probability that people would agree.
    """
    offered = [job.task.labels] * len(texts)
    questions = assessment.VoteQuestions(job.task, job.data.seeds, job.teacher, job.config.seed)
    requests: list[Request] = list(questions.about_texts(texts, offered))
    opinions = plan_opinions(job, texts)
    answered, _ = ask(job, pool, part, requests, len(requests), Meter(lambda values, step: None))
    probs = assessment.calibrated(evidence.read_votes(job.task, answered, len(texts)))
    said, _ = ask(job, pool, f"{part}-opinion", opinions, len(opinions), Meter(lambda values, step: None))
    raw = np.array([logprobs for (logprobs,) in said.rows("choice_logprobs")], dtype=float)
    choices = probs.argmax(2)
    counts = np.stack([(choices == c).sum(1) for c in range(probs.shape[2])], axis=1)
    return {
        "votes": subjectivity.instance_agreement(counts),
        "confidence": probs.mean(1).max(1),
        "opinion": 1.0 / (1.0 + np.exp(raw[:, 1] - raw[:, 0])),
    }


def plan_opinions(job: Job, texts: list[str]) -> list[Request]:
    """Build one request per text that asks whether people would agree on its class."""
    task = job.task
    names = ", ".join(task.prompt_name(label) for label in task.labels)
    cards = (
        ClassCard("agree", f"Everybody would put it into the same one of these classes: {names}."),
        ClassCard("disagree", f"People would differ on which of these classes it belongs to: {names}."),
    )
    question = f"{task.description} Would people agree on the class of the {task.text_kind}?"
    return [
        make_request(
            ChoosePrompt(question, task.text_kind, task.source, cards, (), text),
            job.teacher,
            Sampling(temperature=0.0, max_tokens=16),
            stage="assess",
            task=task.name,
            strategy="opinion",
            choices=("agree", "disagree"),
        )
        for text in texts
    ]


def correlate(estimate: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return Spearman's rho, its one-sided p-value and its 95 % bootstrap interval over texts."""
    if len(np.unique(estimate)) < 2:
        return {"rho": 0.0, "p_one_sided": 1.0, "low": 0.0, "high": 0.0}
    found = stats.spearmanr(estimate, truth, alternative="greater")
    picks = draws.generator(0, "agreement").integers(len(truth), size=(1000, len(truth)))
    resampled = [stats.spearmanr(estimate[pick], truth[pick]).statistic for pick in picks]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return {"rho": found.statistic, "p_one_sided": found.pvalue, "low": low, "high": high}


def measure(folder: Path, texts: int, seed: int, storage: str | None) -> dict[str, Any]:
    """Compute all figures."""
    content: dict[str, Any] = {"task": str(folder / TASK), "seed": seed, "tracking": {"uri": "none"}}
    job = prepare(parse({**content, **({"storage": storage} if storage else {})}), Terminal())
    begun, figures = time.monotonic(), {}
    with cluster.connect(), TeacherPool(job.config.teacher, Ledger(job.config.ledger.uri), job.terminal.warn) as pool:
        for role, split in (("choose", "train"), ("report", "test")):
            rows = draw(folder, split, texts, seed)
            truth = np.array([max(sum(row["annotations"]), 5 - sum(row["annotations"])) / 5 for row in rows])
            found = estimates(job, pool, f"agreement-{role}", [row["text"] for row in rows])
            people = annotators(rows)
            figures[role] = {
                "split": split,
                "texts": len(rows),
                "people": {"mean": str(people and people.mean), "alpha": str(people and people.alpha)},
                **{name: correlate(values, truth) for name, values in found.items()},
            }
    chosen = max(("votes", "confidence", "opinion"), key=lambda name: figures["choose"][name]["rho"])
    reported = figures["report"][chosen]
    return {
        "chosen": chosen,
        "rho": reported["rho"],
        "p_one_sided": reported["p_one_sided"],
        "significant": bool(reported["rho"] > 0 and reported["p_one_sided"] < 0.05),
        **figures,
        "seed": seed,
        "seconds": time.monotonic() - begun,
    }


def main() -> None:
    """Run the benchmark and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that contains md_agreement/")
    parser.add_argument("--texts", type=int, default=300, help="number of tweets per split")
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing tweets and examples")
    parser.add_argument("--storage", help="folder for requests and answers; default: as in a config")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    text = json.dumps(measure(options.data_dir.resolve(), options.texts, options.seed, options.storage), indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
