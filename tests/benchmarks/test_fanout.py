"""The arithmetic of benchmarks/fanout.py, and one minimal run of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "competitors"))

import fanout
import measure
from peers import Peer, python_of

from tests.endpoint.book import Entry

ROOT = Path(__file__).resolve().parents[2]


def entry(number: int, arrived: float, ended: float, status: int = 200) -> Entry:
    return Entry(number, arrived, "chat", status=status, whole=True, ended=ended)


def made_up(competitor: str, per_s: float, cpu_ms: float, services_ms: float = 0.0, late_s: float = 0.0) -> measure.Run:
    return measure.Run(competitor, 100, 100 / per_s, 100 / per_s + late_s, cpu_ms / 10, services_ms / 10, 256)


def test_a_run_lasts_from_the_first_arrival_to_the_last_answer_and_its_receipt() -> None:
    book = [entry(0, 10.0, 10.5), entry(1, 10.5, 12.0), entry(2, 10.6, 13.0, status=500)]
    found = measure.to_run("pool", book, 14.0, (1.0, 0.25), (1.5, 0.5))
    assert (found.answered, found.seconds, found.in_hand_s) == (2, 2.0, 4.0)
    assert (found.per_s, found.in_hand_per_s) == (1.0, 0.5)
    assert (found.cpu_ms, found.own_cpu_ms) == (250.0, 125.0)
    assert found.in_flight == pytest.approx((0.5 + 1.5) / 2.0)


def test_a_run_without_an_answer_is_an_error() -> None:
    with pytest.raises(measure.CompetitorError, match="answered nothing"):
        measure.to_run("pool", [entry(0, 1.0, 2.0, status=500)], 3.0, (0, 0), (0, 0))


def test_the_share_of_a_rate_counts_only_its_own_duration() -> None:
    # 60 per minute for 10 s: the first refused, 9 answered, then one more after the 10 s.
    book = [entry(0, 100.0, 100.1, status=429), *(entry(i, 100.0 + i, 101.0 + i) for i in range(1, 10))]
    book.append(entry(10, 110.0, 111.0))
    assert measure.shares_of_rate(book, 60, 10) == (pytest.approx(0.9), pytest.approx(0.1))
    assert measure.shares_of_rate([], 60, 10) == (0.0, 0.0)


def test_ratios_are_medians_over_turns_and_time_the_pool_until_it_has_its_answers() -> None:
    runs = {
        ("pool", 256): [made_up("pool", 100, 2, 1), made_up("pool", 100, 4, 1, late_s=1.0), made_up("pool", 100, 3, 1)],
        ("bare", 256): [made_up("bare", 100, 2), made_up("bare", 50, 2), made_up("bare", 200, 2)],
        ("distilabel", 256): [made_up("distilabel", 25, 2)],
    }
    found = fanout.headline(runs)
    assert found["pool_vs_bare"] == pytest.approx(1.0)  # of 100/100, 50/50, 100/200
    assert found["pool_vs_distilabel"] == pytest.approx(100 / 25)
    assert found["cpu_vs_bare"] == pytest.approx(1.5)
    assert found["cpu_vs_bare_without_ray_services"] == pytest.approx(1.0)
    assert "pool_vs_curator" not in found


@pytest.mark.slow
@pytest.mark.competitors
def test_a_peer_that_cannot_be_installed_is_reported(tmp_path: Path) -> None:
    peer = Peer("nothing", (str(tmp_path / "no-such-package"),), "nothing.py")
    with pytest.raises(RuntimeError, match="nothing can't be installed"):
        python_of(peer, tmp_path)
    assert not list(tmp_path.glob("*/installed"))


def test_a_failed_competitor_reports_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('no such thing')")
    monkeypatch.setattr(measure, "FOLDER", tmp_path)
    with pytest.raises(measure.CompetitorError, match="no such thing"):
        measure.Competitor("broken.py", {})


@pytest.mark.slow
def test_the_cpu_of_a_tree_includes_ended_processes() -> None:
    burn = "import time; t = time.process_time()\nwhile time.process_time() - t < 1.0: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    cpu = measure.TreeCpu(process.pid)
    try:
        deadline = time.monotonic() + 300
        while cpu.seconds()[0] < 0.6 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert 0.6 <= cpu.seconds()[0] < 3.0
    finally:
        cpu.stop()
        process.communicate()


@pytest.mark.slow
@pytest.mark.competitors
def test_a_short_run_of_the_script(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "fanout.py"), "--parts", "fanout", "--without-peers"]
    short = ["--in-flight", "256", "--requests", "300", "--repeats", "1", "--latency-s", "0.05"]
    written = tmp_path / "fanout.json"
    subprocess.run([*command, *short, "--json", str(written)], check=True, timeout=600)
    figures = json.loads(written.read_text())
    assert figures["pool_vs_bare"] > 0
    assert figures["cpu_vs_bare"] > figures["cpu_vs_bare_without_ray_services"] > 0
    assert {one["side"] for one in figures["runs"]} == {"pool", "bare", "httpx"}
    assert figures["missing"] == {}
