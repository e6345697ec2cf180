"""Compare the teacher pool's request rate with a bare loop on the same client and with two peer libraries.

    python benchmarks/fanout.py --json fanout.json

Each competitor runs in a separate process against its own loopback endpoint (``tests/endpoint``). Start-up is excluded:
a run begins when the first request reaches the endpoint. Each peer gets a virtual environment, created on the first
run. benchmarks/README.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "competitors"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from capacity import measure_endpoint
from measure import Competitor, CompetitorError, Run, run, shares_of_rate
from peers import PEERS, default_folder, python_of

from tests.endpoint.client import Endpoint

HEADLINE = 256  # requests in flight at which the targets apply
SLOW_SHARE = {"httpx": 0.4, "distilabel": 0.4}  # share of the requests; these take several times as long
OTHER_SHARE = 0.4  # share of the requests at other numbers in flight
PER_MINUTE = 3000.0
PARTS = ("fanout", "instant", "cached", "rates")


def main() -> None:
    """Measure the requested parts, print a table and write the figures."""
    options = parse()
    figures: dict[str, Any] = {"cpus": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1)}
    if "fanout" in options.parts:
        figures |= measure_endpoint()
        figures |= measure_fan_out(options)
    if "instant" in options.parts:
        told = {"part": "instant", "requests": options.instant_requests, "in_flight": 1024}
        figures["four_actors_per_s"] = measure_alone(told)
    if "cached" in options.parts:
        told = {"part": "cached", "requests": options.cached_requests, "in_flight": 256}
        figures["cached_per_s"] = measure_alone(told)
    if "rates" in options.parts:
        figures |= measure_rates(options.seconds, options.latency_s)
    figures["load_after"] = round(os.getloadavg()[0], 1)
    text = json.dumps(rounded(figures), indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--in-flight", type=_numbers, default=[32, 128, 256, 512], help="requests in flight, comma-separated"
    )
    parser.add_argument("--requests", type=int, default=6000, help=f"requests per run at {HEADLINE} in flight")
    parser.add_argument("--latency-s", type=float, default=0.2, help="latency of the endpoint")
    parser.add_argument(
        "--repeats", type=int, default=3, help=f"runs of pool, bare loop and curator at {HEADLINE} in flight"
    )
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help=f"comma-separated; default {','.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=120.0, help="duration of the rate-limit parts")
    parser.add_argument("--instant-requests", type=int, default=30_000)
    parser.add_argument("--cached-requests", type=int, default=100_000)
    parser.add_argument("--without-peers", dest="peers", action="store_false", help="skip distilabel and curator")
    parser.add_argument("--peers-dir", type=Path, default=default_folder(), help="folder of the peers' environments")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} not known; known: {', '.join(PARTS)}")
    return parts


def measure_fan_out(options: argparse.Namespace) -> dict[str, Any]:
    """Run all competitors in turn at each number in flight; repeat the runs that have targets."""
    competitors, missing = find_competitors(options)
    runs: dict[tuple[str, int], list[Run]] = {}
    for in_flight in options.in_flight:
        repeats = options.repeats if in_flight == HEADLINE else 1
        for turn in range(repeats):
            for name, start in competitors.items():
                if turn and name in SLOW_SHARE:
                    continue
                share = SLOW_SHARE.get(name, 1.0) * (1.0 if in_flight == HEADLINE else OTHER_SHARE)
                count = max(in_flight, round(share * options.requests))
                try:
                    found = start({"requests": count, "in_flight": in_flight})
                except CompetitorError as error:
                    missing[name] = str(error)[:300]
                    continue
                show(in_flight, found)
                runs.setdefault((name, in_flight), []).append(found)
    return {
        **headline(runs),
        "missing": missing,
        "runs": [describe(key[1], one) for key, some in runs.items() for one in some],
    }


def find_competitors(
    options: argparse.Namespace,
) -> tuple[dict[str, Callable[[Mapping[str, Any]], Run]], dict[str, str]]:
    """Return a runner per available competitor, and the reason for each missing one."""
    competitors: dict[str, Callable[[Mapping[str, Any]], Run]] = {
        "pool": lambda told: run("pool", "pool.py", {"part": "pool", **told}, options.latency_s),
        "bare": lambda told: run("bare", "loop.py", {"transport": "aiohttp", **told}, options.latency_s),
    }
    missing: dict[str, str] = {}
    for peer in PEERS if options.peers else ():
        try:
            python = python_of(peer, options.peers_dir)
        except (RuntimeError, OSError) as error:
            missing[peer.name] = str(error)
            continue
        competitors[peer.name] = partial(_run_peer, peer.name, peer.script, python, options.latency_s)
    competitors["httpx"] = lambda told: run("httpx", "loop.py", {"transport": "httpx", **told}, options.latency_s)
    return competitors, missing


def _run_peer(name: str, script: str, python: str, latency_s: float, told: Mapping[str, Any]) -> Run:
    # One process for distilabel: 91/s against 67/s with two, in single runs on a busy machine.
    return run(name, script, {"replicas": 1, **told}, latency_s, python)


def headline(runs: Mapping[tuple[str, int], Sequence[Run]]) -> dict[str, float]:
    """Return the target ratios as medians over the turns; competitors that did not run are left out.

    The pool's time ends when its caller has all answers, the others' when the endpoint has sent its last answer.
    """
    figures = {}
    pool = runs.get(("pool", HEADLINE), ())
    for name, key in (("bare", "pool_vs_bare"), ("distilabel", "pool_vs_distilabel"), ("curator", "pool_vs_curator")):
        others = runs.get((name, HEADLINE), ())
        if pool and others:
            figures[key] = median_ratio([one.in_hand_per_s for one in pool], [one.per_s for one in others])
    bare = runs.get(("bare", HEADLINE), ())
    if pool and bare:
        cpu = [one.cpu_ms for one in bare]
        figures["cpu_vs_bare"] = median_ratio([one.cpu_ms for one in pool], cpu)
        figures["cpu_vs_bare_without_ray_services"] = median_ratio([one.own_cpu_ms for one in pool], cpu)
    return figures


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of ours / theirs over the turns; use the median of theirs if it ran less often."""
    if len(ours) == len(theirs):
        return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    return statistics.median(ours) / statistics.median(theirs)


def measure_alone(told: Mapping[str, Any]) -> float:
    """Return requests per second of a part without an endpoint, by the process's own clock."""
    competitor = Competitor("pool.py", told)
    try:
        competitor.go()
        said = competitor.done()
    finally:
        competitor.close()
    if said["answered"] != told["requests"]:
        raise CompetitorError(f"{told['part']}: {said['answered']} of {told['requests']} were answered")
    return said["answered"] / (said["finished_at"] - said["began_at"])


def measure_rates(seconds: float, latency_s: float) -> dict[str, float]:
    """Return used and refused shares of a rate limit: configured, announced in headers or found by probing."""
    limit = {"latency_s": latency_s, "requests_per_minute": PER_MINUTE, "book_characters": 80}
    with (
        Endpoint(**limit, limit_headers="none") as configured,
        Endpoint(**limit, limit_headers="all") as announced,
        Endpoint(**limit, limit_headers="none") as blind,
    ):
        endpoints = {"configured": configured, "announced": announced, "blind": blind}
        known: dict[str, dict[str, float | None]] = {"configured": {"requests_per_minute": PER_MINUTE}}
        cases = {
            name: {"base_url": one.base_url, "settings": known.get(name, {"requests_per_minute": None})}
            for name, one in endpoints.items()
        }
        count = round(1.2 * PER_MINUTE * seconds / 60) + 500
        competitor = Competitor(
            "pool.py", {"part": "rates", "cases": cases, "requests": count, "in_flight": 256, "seconds": seconds + 5}
        )
        try:
            for one in endpoints.values():
                one.clear_book()
            competitor.go()
            competitor.done()
            shares = {name: shares_of_rate(one.book(), PER_MINUTE, seconds) for name, one in endpoints.items()}
        finally:
            competitor.close()
    told = [shares["configured"], shares["announced"]]
    return {
        "allowed_rate_used": min(used for used, _ in told),
        "refused_share": max(refused for _, refused in told),
        "blind_rate_used": shares["blind"][0],
        "blind_refused_share": shares["blind"][1],
        **{
            f"{name}_{what}": value
            for name, pair in shares.items()
            for what, value in zip(("used", "refused"), pair, strict=True)
        },
    }


def show(in_flight: int, one: Run) -> None:
    """Print one line of the table."""
    print(
        f"{in_flight:4} {one.competitor:10} {one.per_s:6.0f}/s  in hand {one.in_hand_per_s:6.0f}/s  CPU {one.cpu_ms:6.2f} ms"
        f"  without Ray's services {one.own_cpu_ms:6.2f} ms  mean in flight {one.in_flight:4.0f}",
        file=sys.stderr,
        flush=True,
    )


def describe(in_flight: int, one: Run) -> dict[str, Any]:
    """Return a run as plain data."""
    return {
        "side": one.competitor,
        "in_flight": in_flight,
        "requests": one.answered,
        "per_s": one.per_s,
        "in_hand_per_s": one.in_hand_per_s,
        "cpu_ms": one.cpu_ms,
        "own_cpu_ms": one.own_cpu_ms,
        "mean_in_flight": one.in_flight,
    }


def rounded(value: Any) -> Any:
    """Round to four significant digits; the noise exceeds that."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
