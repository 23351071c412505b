"""Simulations in threads of one process: the same results as alone, room for others meanwhile, and an end on demand."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from simulator import catalog, load_scenario, simulate
from simulator.output.rows import interruption
from simulator.serving import pool, state
from simulator.serving.simulation import Stopped

REQUESTS = {
    "chat-8b-h100-eagle": 400,
    "agents-multi-turn": 300,
    "mixed-classes": 400,
    "disaggregated-8b": 300,
    "failing-replica": 300,
    "tree-8b-sglang": 200,
    "code-edits-ngram": 300,
}


def chosen(name, requests=None):
    return load_scenario(name, load={"requests": requests or REQUESTS[name]})


def outcome(name):
    """All that a simulation leaves, as bytes and text."""
    result = simulate(chosen(name))
    arrays = [a for run in result.runs for a in (run.requests, run.rows, run.series, run.held_s)]
    return [np.asarray(a).tobytes() for a in arrays] + [repr(run.summary) for run in result.runs]


def test_simulations_in_threads_are_those_one_after_another():
    alone = {name: outcome(name) for name in REQUESTS}
    names = [*REQUESTS, *REQUESTS]  # also the same one twice at the same time
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(outcome, names))
    for name, found in zip(names, together, strict=True):
        assert found == alone[name], name


def test_several_threads_may_be_the_first_to_simulate():
    """In a process of its own: nothing is imported, read or compiled before the threads come."""
    script = (
        "import threading, hashlib\n"
        "found, gate = [], threading.Barrier(4)\n"
        "def work():\n"
        "    gate.wait()\n"
        "    from simulator import load_scenario, simulate\n"
        "    requests = simulate(load_scenario('mixed-classes', load={'requests': 60})).main.requests\n"
        "    found.append(hashlib.sha256(requests.tobytes()).hexdigest())\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert len(found) == 4 and len(set(found)) == 1, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=catalog.root(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_other_threads_run_while_the_loop_does(monkeypatch):
    """A thread that wakes up again and again does so in the middle of one call of the compiled loop."""
    scenario = load_scenario("stock-8b-h100", load={"requests": 100_000})
    simulate(chosen("stock-8b-h100", 10))
    monkeypatch.setattr("simulator.serving.stages.WINDOW_ARRIVALS", 1 << 40)  # one call, of a tenth of a second
    calls, ticks, done = [], [], threading.Event()
    serve = pool.Pool.serve

    def timed(self, until_s=float("inf"), most_steps=1 << 60):
        begun_s = time.perf_counter()
        try:
            return serve(self, until_s, 1 << 60)
        finally:
            calls.append((begun_s, time.perf_counter()))

    def tick():
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    monkeypatch.setattr(pool.Pool, "serve", timed)
    watch = threading.Thread(target=tick)
    watch.start()
    try:
        simulate(scenario)
    finally:
        done.set()
        watch.join()
    begun_s, ended_s = max(calls, key=lambda call: call[1] - call[0])
    quarter_s = (ended_s - begun_s) / 4
    assert any(begun_s + quarter_s < at_s < ended_s - quarter_s for at_s in ticks)


class Stopper:
    """A `progress` that, once `after` requests have ended, waits until another thread has set `stop`."""

    def __init__(self, after, variant="speculation"):
        self.after, self.variant = after, variant
        self.begun, self.stop = threading.Event(), threading.Event()
        self.told = []

    def __call__(self, variant, done, of):
        self.told.append((variant, done, of))
        if variant == self.variant and done >= self.after:
            self.begun.set()
            assert self.stop.wait(60)


@pytest.fixture
def often(monkeypatch):
    """Windows of few arrivals, so that a short simulation breathes many times."""
    monkeypatch.setattr("simulator.serving.stages.WINDOW_ARRIVALS", 25)


def stopped(name, stopper, **changes):
    scenario = load_scenario(name, load={"requests": REQUESTS[name]}, **changes)
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(simulate, scenario, stopper, stop=stopper.stop)
        assert stopper.begun.wait(60)
        stopper.stop.set()
        return found.result(60)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("name", ["chat-8b-h100-eagle", "mixed-classes", "failing-replica"])
def test_another_thread_stops_it_and_what_was_reached_is_kept(name):
    whole = simulate(chosen(name)).main.requests
    stopper = Stopper(after=REQUESTS[name] // 4, variant=simulate(chosen(name, 2)).main.variant)
    result = stopped(name, stopper)
    (run,) = result.runs
    assert result.interrupted_s == run.interrupted_s == run.summary.interrupted_s > 0
    assert f"{run.variant} interrupted at t = " in interruption(result)
    ended = run.requests["status"] == state.FINISHED
    before = ended & (run.requests["finish_s"] < run.interrupted_s)
    assert REQUESTS[name] // 4 <= ended.sum() < REQUESTS[name]
    for field in ("first_token_s", "finish_s", "accepted_tokens"):
        assert (run.requests[field][before] == whole[field][before]).all()
    assert sum(run.summary.requests.values()) == REQUESTS[name]


@pytest.mark.usefixtures("often")
def test_stopped_in_its_second_variant_it_keeps_the_first_whole():
    result = stopped("chat-8b-h100-eagle", Stopper(after=100, variant="plain"))
    whole = simulate(chosen("chat-8b-h100-eagle"))
    assert [run.interrupted_s is None for run in result.runs] == [True, False]
    assert result.main.requests.tobytes() == whole.main.requests.tobytes()
    assert "plain interrupted at t = " in interruption(result)


def test_stopped_at_the_end_of_its_first_variant_it_does_not_begin_the_second():
    stop = threading.Event()

    def progress(variant, done, of):
        assert variant == "speculation"
        if done == of:
            stop.set()

    (run,) = simulate(chosen("chat-8b-h100-eagle"), progress, stop=stop).runs
    assert run.summary.requests == {"finished": 400}


def test_stopped_before_it_begins_it_says_so():
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped, match="before the first request came"):
        simulate(chosen("mixed-classes"), stop=stop)


def test_a_progress_that_fails_ends_the_simulation():
    def progress(variant, done, of):
        raise TimeoutError

    with pytest.raises(TimeoutError):
        simulate(chosen("mixed-classes"), progress)
