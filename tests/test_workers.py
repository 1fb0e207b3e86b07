"""The pool gives every result once and leaves nothing behind; progress is honest about the time left."""

import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from wordsight import workers
from wordsight.cluster import WorkerKilled
from wordsight.workers import Meter, each, progress


def square(number):
    return number * number


def fails_at_three(number):
    if number == 3:
        raise ValueError("three")
    return number


def noted(number):
    logging.getLogger("wordsight").info("saw %d", number)
    return os.getpid()


def ends_itself(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def children() -> list:
    """Processes of ours that compute. Trackers of resources stay, which hold nothing, and what other tests
    copy processes from.
    """
    stay = ("resource_tracker", "forkserver")
    found = psutil.Process().children(recursive=True)
    return [one for one in found if not any(name in " ".join(one.cmdline()) for name in stay)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_threads_give_every_result_once(jobs):
    assert sorted(each(square, range(50), jobs=jobs)) == [number**2 for number in range(50)]
    assert list(each(square, [], jobs=jobs)) == []


def test_an_error_in_a_thread_reaches_the_caller():
    with pytest.raises(ValueError, match="three"):
        list(each(fails_at_three, range(8), jobs=2))


def test_threads_have_ended_their_item_when_the_caller_stops_early():
    running, begun = [], []

    def slow(number):
        running.append(number)
        begun.append(number)
        time.sleep(0.1)
        running.remove(number)
        return number

    results = each(slow, range(100), jobs=3)
    next(results)
    results.close()
    assert running == [] and len(begun) < 12
    time.sleep(0.15)
    assert running == []


@pytest.mark.slow
def test_processes(said):
    pids = set(each(noted, range(6), jobs=2, processes=True))
    assert os.getpid() not in pids and 1 <= len(pids) <= 2
    assert sorted(said) == [f"saw {n}" for n in range(6)]
    assert children() == []
    with pytest.raises(ValueError, match="three"):
        list(each(fails_at_three, range(8), jobs=2, processes=True))
    with pytest.raises(WorkerKilled):
        list(each(ends_itself, range(4), jobs=1, processes=True))
    assert children() == []


INTERRUPTED = """
import sys, time
from wordsight.workers import each
try:
    for result in each(time.sleep, [0, 60, 60], jobs=2, processes=True):
        print("begun", flush=True)
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGKILL],
)
def test_no_process_outlives_a_signal(tmp_path, number):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    with subprocess.Popen(
        [sys.executable, script], stdout=-1, stderr=-1, text=True, start_new_session=True
    ) as ours:
        assert ours.stdout.readline() == "begun\n"
        left = psutil.Process(ours.pid).children(recursive=True)
        (os.killpg if number == signal.SIGINT else os.kill)(
            ours.pid, number
        )  # Ctrl-C reaches the whole group
        out, err = ours.communicate(timeout=20)
    if number != signal.SIGKILL:  # after that one a helper of joblib warns of what it tidies up
        assert (out, err) == ("stopped\n", "")
    assert psutil.wait_procs(left, timeout=10)[1] == []


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_told_by_the_recent_speed(clock):
    meter = Meter(10_000, done=4_000)
    assert meter.seconds_left() is None and meter.left() == ""
    clock[0] += 1
    meter.advance(3_000)  # found in a cache
    for _ in range(60):
        clock[0] += 1
        meter.advance(10)
    assert str(meter) == "7,600 of 10,000" and meter.seconds_left() == pytest.approx(240, rel=0.01)
    assert meter.left() == "about 4 minutes left"
    clock[0] += 300  # it stands
    assert meter.seconds_left() > 2000
    assert Meter(None).left() == "" and str(Meter(None, 3)) == "3"


def test_what_was_done_before_is_no_speed(clock):
    meter = Meter(100, done=90)
    clock[0] += 600
    meter.advance()
    assert meter.seconds_left() == pytest.approx(9 * 600) and meter.left() == "about 2 hours left"


@pytest.mark.parametrize(
    "seconds, words",
    [(5, "less than a minute left"), (50, "about a minute left"), (7200, "about 2 hours left")],
)
def test_words_for_times(clock, seconds, words):
    meter = Meter(2)
    clock[0] += seconds
    meter.advance()
    assert meter.left() == words


def test_a_line_a_minute_where_nobody_sees_a_bar(clock, said):
    with progress("images", 8_000) as advance, progress("steps", 10) as inner:
        for _ in range(36):
            clock[0] += 5
            advance(100)
            inner()
    assert said == [
        "images 1,200 of 8,000, about 6 minutes left",
        "images 2,400 of 8,000, about 5 minutes left",
        "images 3,600 of 8,000, about 4 minutes left",
    ]


def test_nothing_is_shown_where_info_is_not(clock, said):
    logging.getLogger("wordsight").setLevel(logging.WARNING)
    with progress("images", 8_000) as advance:
        clock[0] += 600
        advance()
    assert said == [] and not workers._shown.locked()


def test_a_bar_on_a_terminal_after_two_seconds(clock, monkeypatch):
    before = threading.active_count()
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    logging.getLogger("wordsight").setLevel(logging.INFO)
    try:
        with progress("images", 8) as advance:
            advance()
            assert terminal.getvalue() == ""
            clock[0] += 3
            advance()
            time.sleep(0.3)  # it is drawn ten times a second
    finally:
        logging.getLogger("wordsight").setLevel(logging.NOTSET)
    assert "images" in terminal.getvalue() and "2 of 8" in terminal.getvalue()
    assert threading.active_count() <= before + 1  # the one that draws may be about to end


def slowly(number):
    time.sleep(0.2)
    return number


def test_two_pools_in_two_threads_end_neither():
    found: dict[str, list[int]] = {}

    def run(name, count):
        found[name] = sorted(each(slowly, range(count), jobs=2, processes=True))

    threads = [threading.Thread(target=run, args=pair) for pair in (("long", 6), ("short", 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"long": list(range(6)), "short": [0, 1]}


def test_many_quick_steps_are_kept_as_few():
    meter = Meter(10**6)
    for _ in range(10**5):
        meter.advance()
    assert meter.done == 10**5 and len(meter.steps) < 1000 and meter.seconds_left() is not None
