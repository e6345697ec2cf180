"""Compare Chamfer and Remote Clique on 50,000 embeddings with scikit-learn's chunked pairwise distances.

    python benchmarks/diversity.py --json diversity.json

Each competitor runs in a separate process on the same cores and reads the same rows: half are drawn around 500 centres,
like texts on a topic; half have no structure. scikit-learn's ``pairwise_distances_chunked`` runs with multi-threaded
products and with parallel parts of a chunk (``n_jobs``), at two sizes of working memory; the fastest run counts. Its
reduction is one pass over each chunk. Peak memory is the process's peak resident set minus its size after loading the
data. ``max_error`` is the largest difference, over row distances and both means, from scikit-learn and from a float64
brute force on ``--check`` random rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from potstill.texts.diversity import nearest_distances, remote_clique

SETTINGS = [
    (None, 32),
    (None, 256),
    (2, 32),
    (2, 256),
]  # n_jobs (None: threads within the products), working memory in MiB


def make_rows(count: int, width: int) -> np.ndarray:
    """Return float32 rows of unit length."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, width), dtype=np.float32)
    rows[: count // 2] += 1.5 * rng.standard_normal((500, width), dtype=np.float32)[rng.integers(500, size=count // 2)]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nearest_with_sklearn(rows: np.ndarray, n_jobs: int | None, working_memory: int) -> np.ndarray:
    """Return each row's smallest distance to another row."""

    def reduce(chunk: np.ndarray, start: int) -> np.ndarray:
        chunk[np.arange(len(chunk)), start + np.arange(len(chunk))] = np.inf
        return chunk.min(axis=1)

    from sklearn.metrics import pairwise_distances_chunked

    chunks = pairwise_distances_chunked(
        rows, reduce_func=reduce, metric="cosine", n_jobs=n_jobs, working_memory=working_memory
    )
    return np.concatenate(list(chunks))


def clique_with_sklearn(rows: np.ndarray, n_jobs: int | None, working_memory: int) -> float:
    """Return the mean distance between two rows."""

    def reduce(chunk: np.ndarray, start: int) -> list[float]:
        return [float(chunk.sum(dtype=np.float64))] * len(chunk)

    from sklearn.metrics import pairwise_distances_chunked

    chunks = pairwise_distances_chunked(
        rows, reduce_func=reduce, metric="cosine", n_jobs=n_jobs, working_memory=working_memory
    )
    return sum(chunk[0] for chunk in chunks) / len(rows) / (len(rows) - 1)


def forget_peak() -> int:
    """Reset this process's peak resident set to its current size; return that size in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(what: str) -> int:
    """Return VmRSS or VmHWM of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def run_competitor(competitor: str, data: Path, answer: Path) -> dict[str, float]:
    """Run one competitor in this process; write its result to ``answer`` and return seconds and peak memory."""
    rows = np.load(data)
    if competitor.startswith("sklearn"):
        import sklearn.metrics  # noqa: F401 (keep the import out of the measurement)
    before = forget_peak()
    what, *setting = competitor.split("/")
    begun = time.perf_counter()
    if what == "chamfer":
        result: Any = nearest_distances(rows)
    elif what == "clique":
        result = remote_clique(rows)
    else:
        n_jobs, memory = None if setting[0] == "None" else int(setting[0]), int(setting[1])
        result = (nearest_with_sklearn if what == "sklearn_chamfer" else clique_with_sklearn)(rows, n_jobs, memory)
    seconds = time.perf_counter() - begun
    np.save(answer, result)
    return {
        "seconds": seconds,
        "peak_gib": (resident("VmHWM") - before) / 2**20,
    }


def in_a_process(competitor: str, data: Path, folder: Path, repeats: int) -> tuple[dict[str, float], np.ndarray]:
    """Return the fastest of ``repeats`` runs of a competitor, each in a new process."""
    runs = []
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    for _ in range(repeats):
        command = [
            sys.executable,
            __file__,
            "--side",
            competitor,
            "--data",
            str(data),
            "--answer",
            str(folder / "a.npy"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        runs.append(json.loads(done.stdout))
        print(
            f"  {competitor:<28} {runs[-1]['seconds']:8.3f} s  {runs[-1]['peak_gib']:.3f} GiB",
            file=sys.stderr,
            flush=True,
        )
    best = min(runs, key=lambda run: run["seconds"])
    return {**best, "peak_gib": max(run["peak_gib"] for run in runs)}, np.load(folder / "a.npy")


def brute_force(rows: np.ndarray) -> tuple[float, np.ndarray]:
    """Compute both measures from their definitions in float64."""
    distances = 1.0 - rows.astype(np.float64) @ rows.astype(np.float64).T
    clique = (distances.sum() - np.trace(distances)) / len(rows) / (len(rows) - 1)
    np.fill_diagonal(distances, np.inf)
    return clique, distances.min(axis=1)


def measure(count: int, width: int, check: int, repeats: int) -> dict[str, Any]:
    """Compute all figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rows.npy"
        np.save(data, make_rows(count, width))
        chamfer, nearest = in_a_process("chamfer", data, folder, repeats)
        clique, mean = in_a_process("clique", data, folder, repeats)
        theirs = {
            (n_jobs, memory): in_a_process(f"sklearn_chamfer/{n_jobs}/{memory}", data, folder, 1)
            for n_jobs, memory in SETTINGS
        }
        best = min(theirs, key=lambda setting: theirs[setting][0]["seconds"])
        slow, their_nearest = theirs[best]
        slow_clique, their_mean = in_a_process(f"sklearn_clique/{best[0]}/{best[1]}", data, folder, 1)
    rows = make_rows(check, width)
    checked_clique, checked = brute_force(rows)
    errors = {
        "to_sklearn": max(float(abs(nearest - their_nearest).max()), abs(float(mean) - float(their_mean))),
        "to_brute_force": max(
            float(abs(nearest_distances(rows) - checked).max()), abs(remote_clique(rows) - checked_clique)
        ),
    }
    return {
        "chamfer_vs_sklearn": slow["seconds"] / chamfer["seconds"],
        "remote_clique_vs_sklearn": slow_clique["seconds"] / clique["seconds"],
        "peak_gib": max(chamfer["peak_gib"], clique["peak_gib"]),
        "max_error": max(errors.values()),
        "errors": errors,
        "seconds": {
            "chamfer": chamfer["seconds"],
            "remote_clique": clique["seconds"],
            "sklearn_chamfer": {f"n_jobs {n}, {m} MiB": run["seconds"] for (n, m), (run, _) in theirs.items()},
            "sklearn_remote_clique": slow_clique["seconds"],
        },
        "sklearn_peak_gib": slow["peak_gib"],
        "rows": count,
        "width": width,
        "cpus": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Run the benchmark and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--check", type=int, default=3_000, help="number of rows for the float64 brute force")
    parser.add_argument("--repeats", type=int, default=2, help="runs of potstill; the fastest counts")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_competitor(options.side, options.data, options.answer)))
        return
    text = json.dumps(measure(options.rows, options.width, options.check, options.repeats), indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
