"""Progress: rates with a fake clock, exact lines, plain and live output."""

import io
import re
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actors.teachers.batch_queue import BatchProgress
from jobs.runtime.progress import Meter, Progress, format_duration, format_progress, format_usd
from jobs.runtime.terminal import Terminal
from jobs.stages.ask import watched

FULL = Progress(
    done=1204,
    total=4000,
    reused=512,
    retries=3,
    requests_per_s=212.4,
    tokens_per_s=18_400.0,
    cost_usd=0.41,
    expected_usd=1.37,
    eta_s=13.2,
)
NOTE = "2 batches 30/80 (finalizing, in_progress)"
LINE = "1,204/4,000  212 req/s  18,400 tok/s  $0.41 of ~$1.37  retries 3  ledger 512  ETA 0:13"


ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_whole_line():
    assert format_progress(FULL) == LINE


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress(0, 360), "0/360"),
        (Progress(360, 360, reused=360), "360/360  ledger 360"),
        (Progress(5, 20, requests_per_s=0.25, tokens_per_s=9.96, eta_s=60.0), "5/20  0.2 req/s  10 tok/s  ETA 1:00"),
        (Progress(5, 20, requests_per_s=0.0, tokens_per_s=0.0), "5/20  0.0 req/s"),
        (
            Progress(9, 10**6, requests_per_s=9.951, tokens_per_s=0, cost_usd=0.004, expected_usd=444.4, eta_s=100_480),
            "9/1,000,000  10 req/s  $0.0040 of ~$444.40  ETA 27:54:40",
        ),
    ],
)
def test_zeros_and_unknowns_are_left_out(progress, line):
    assert format_progress(progress) == line


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (86, LINE),
        (85, "1,204/4,000  212 req/s  $0.41 of ~$1.37  retries 3  ledger 512  ETA 0:13"),
        (60, "1,204/4,000  212 req/s  $0.41 of ~$1.37  retries 3  ETA 0:13"),
        (50, "1,204/4,000  $0.41 of ~$1.37  retries 3  ETA 0:13"),
        (40, "1,204/4,000  $0.41 of ~$1.37  ETA 0:13"),
        (30, "1,204/4,000  ETA 0:13"),
        (0, "1,204/4,000"),
    ],
)
def test_a_narrow_terminal_drops_the_least_important_parts(width, line):
    assert format_progress(FULL, width) == line


@given(st.integers(12, 200))
def test_a_line_never_wraps(width):
    assert len(format_progress(FULL, width)) <= width


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (0, "$0.00"), (0.00001, "<$0.0001"), (0.0001, "$0.0001"), (0.0037, "$0.0037"), (0.00994, "$0.0099"),
        (0.00996, "$0.010"), (0.0412, "$0.041"), (0.0994, "$0.099"), (0.0996, "$0.10"), (0.41, "$0.41"),
        (1204.5, "$1,204.50"),
    ],
)  # fmt: skip
def test_dollars(dollars, text):
    assert format_usd(dollars) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (13.4, "0:13"), (59.6, "1:00"), (3599, "59:59"), (10_800, "3:00:00"), (3_600_000, "1,000:00:00")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_a_meter_separates_new_answers_from_ledger_answers(clock):
    meter = Meter(clock=clock)
    meter.expect(100)
    meter.count(reused=40)
    assert meter.progress() == Progress(40, 100, reused=40)
    clock.now += 10
    meter.count(new=20, tokens=3000, cost_usd=0.5, retries=2)
    assert meter.progress() == Progress(
        60,
        100,
        reused=40,
        retries=2,
        requests_per_s=2.0,
        tokens_per_s=300.0,
        cost_usd=0.5,
        expected_usd=1.5,
        eta_s=20.0,
    )
    meter.expect(20)  # a second round
    assert meter.progress().eta_s == 30.0
    clock.now += 10
    meter.count(new=60, tokens=3000, cost_usd=1.5)
    done = meter.progress()
    assert (done.done, done.eta_s, done.expected_usd, done.requests_per_s) == (120, None, 2.0, 4.0)


def test_rates_are_of_the_last_minute(clock):
    meter = Meter(clock=clock)
    meter.expect(100_000)
    for _ in range(300):
        clock.now += 1
        meter.count(new=10, tokens=100)
    for _ in range(60):
        clock.now += 1
        meter.count(new=50, tokens=500)
    rates = meter.progress()
    assert rates.requests_per_s == pytest.approx(50, rel=0.05)
    assert rates.tokens_per_s == pytest.approx(500, rel=0.05)


def test_a_silent_teacher_is_shown(clock):
    meter = Meter(clock=clock)
    meter.expect(10_000)
    for _ in range(100):
        clock.now += 1
        meter.count(new=100)
    assert meter.progress().requests_per_s == pytest.approx(100, rel=0.05)
    clock.now += 600
    stalled = meter.progress()
    assert stalled.requests_per_s < 1
    assert meter.progress() == stalled


def test_batches_slower_than_the_window_still_make_a_rate(clock):
    meter = Meter(clock=clock)
    meter.expect(1000)
    for _ in range(5):
        clock.now += 200
        meter.count(new=64, tokens=6400)
        assert meter.progress().requests_per_s == pytest.approx(64 / 200)


def test_many_small_batches_need_little_memory(clock):
    meter = Meter(clock=clock)
    for _ in range(20_000):
        clock.now += 0.01
        meter.count(new=1)
    assert meter.progress().requests_per_s == pytest.approx(100, rel=0.05)
    assert len(meter._samples) < 200


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50), st.integers(0, 50)), max_size=30), st.floats(0, 100))
def test_numbers_stay_in_bounds_for_any_batches(batches, pause):
    clock = Clock()
    meter = Meter(clock=clock)
    meter.expect(sum(new + reused for _, new, reused in batches))
    for wait, new, reused in batches:
        clock.now += wait
        meter.count(new=new, reused=reused, tokens=10 * new, cost_usd=0.01 * new)
        progress = meter.progress()
        assert 0 <= progress.done <= progress.total
        assert progress.expected_usd is None or progress.cost_usd <= progress.expected_usd
    clock.now += pause
    progress = meter.progress()
    assert progress.eta_s is None
    assert progress.expected_usd in (None, pytest.approx(progress.cost_usd))
    format_progress(progress)


def test_the_numbers_are_recorded_every_ten_seconds_at_most(clock):
    recorded = []
    meter = Meter(lambda values, step: recorded.append((step, values)), clock)
    meter.expect(100)
    for _ in range(25):
        clock.now += 1.5
        meter.count(new=3, reused=1, tokens=30, cost_usd=0.01)
    assert [step for step, _ in recorded] == [10, 21, 31]
    assert recorded[0][1] == {
        "progress/requests": 28,
        "progress/requests_reused": 7,
        "progress/requests_per_s": 2.0,
        "progress/tokens_per_s": 20.0,
        "progress/cost_usd": pytest.approx(0.07),
        "progress/retries": 0,
    }


def lines_of(stream):
    return [line for line in stream.getvalue().splitlines() if line.strip()]


def wait_for(condition):
    end = time.monotonic() + 120
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_a_log_file_gets_plain_lines_also_when_nothing_comes():
    stream = io.StringIO()
    terminal = Terminal(Console(file=stream, width=60), plain_every_s=0.02)
    with terminal.stage("generate") as line:
        line.note("loading")
        line.follow(lambda: FULL)
        wait_for(lambda: len(lines_of(stream)) >= 2)
        line.summary = "4,000 texts"
    *plain, last = lines_of(stream)
    assert set(plain) == {f"  generate  {LINE}"}  # one line each, however narrow
    assert last.startswith("generate ")
    assert last.endswith(" s  4,000 texts")
    assert "\x1b" not in stream.getvalue()


def test_a_short_stage_leaves_one_line_and_no_thread():
    stream = io.StringIO()
    before = threading.active_count()
    with Terminal(Console(file=stream, width=120)).stage("relabel") as line:
        line.follow(lambda: FULL)
    assert threading.active_count() <= before
    assert len(lines_of(stream)) == 1


def test_an_interrupted_stage_is_reported():
    stream = io.StringIO()

    def break_off():
        with Terminal(Console(file=stream, width=120)).stage("generate") as line:
            line.follow(lambda: FULL)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert lines_of(stream)[-1].endswith("stopped")


@pytest.mark.parametrize(("width", "shown"), [(160, LINE), (120, LINE), (80, "1,204/4,000  $0.41 of ~$1.37  ETA 0:13")])
def test_a_terminal_gets_a_live_line(width, shown):
    stream = io.StringIO()
    terminal = Terminal(Console(file=stream, width=width, force_terminal=True, color_system=None))
    with terminal.stage("generate") as line:
        line.follow(lambda: FULL)
        wait_for(lambda: shown in stream.getvalue())
        line.summary = "done with it"
    *live, last = [ANSI.sub("", part) for part in re.split(r"[\r\n]+", stream.getvalue()) if ANSI.sub("", part)]
    assert last.endswith("done with it")
    assert any("generate" in part and shown in part for part in live)
    assert all(len(part) <= width for part in live)


class TwoBatches:
    """The part of a pool that ``watched`` uses."""

    def batch_progress(self):
        return BatchProgress(2, 80, 30, ("finalizing", "in_progress"))

    def held_because(self):
        return "waiting for the endpoint's rate limit (429), next try in 20 s"


class NoBatches(TwoBatches):
    def batch_progress(self):
        return None


def test_the_reason_all_requests_wait_is_shown():
    meter = Meter()
    meter.expect(10)
    with watched(NoBatches(), meter, every_s=0.01):
        until = time.monotonic() + 120
        while not meter.progress().note:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert format_progress(meter.progress()) == (
            "0/10  waiting for the endpoint's rate limit (429), next try in 20 s"
        )
    assert not meter.progress().note


def test_running_batches_are_shown():
    meter = Meter()
    with watched(TwoBatches(), meter, every_s=0.01):
        until = time.monotonic() + 120
        while not meter.progress().note:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert format_progress(meter.progress()) == f"0/0  {NOTE}"
    assert meter.progress().note == ""
