"""Long answers: worked out once, kept by content, stopped when nobody waits for them."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from simulator.errors import InputError
from simulator.explorer import answer as answers
from simulator.explorer.answer import Answer, Tell
from simulator.explorer.jobs import Jobs


def answer(text: str, *, complete: bool = True) -> Answer:
    return Answer(text, [], [], [], complete=complete)


def test_an_answer_is_kept_by_its_key():
    jobs = Jobs(kept=2)
    job = jobs.start("k", lambda tell: answer("found"))
    assert job.wait(10)
    assert job.future.result().verdict == "found"
    assert jobs.known("k") is job.future.result()
    for key in "ab":
        jobs.keep(key, answer(key))
    assert jobs.known("k") is None  # the oldest went


def test_large_answers_take_the_room_of_many():
    jobs = Jobs(kept=10)
    for key in "abcdefgh":
        jobs.keep(key, answer(key))
    jobs.keep("large", replace(answer("large"), room=7))
    assert [key for key in ("large", *"abcdefgh") if jobs.known(key)] == ["large", "f", "g", "h"]
    assert jobs.known("large")
    jobs.keep("larger", replace(answer("larger"), room=99))
    assert jobs.known("large")  # two that stand side by side stay, or they would be worked out again and again
    assert jobs.known("larger")
    assert not jobs.known("h")
    jobs.keep("small", answer("small"))
    assert not jobs.known("large")


def test_what_was_cut_short_is_not_kept():
    jobs = Jobs()

    def until_stopped(tell: Tell) -> Answer:
        tell("half", 1, 2)
        assert tell.stop.wait(10)
        return answer("half of it", complete=False)

    job = jobs.start("k", until_stopped)
    assert not job.wait(0.05)
    job.cancel()
    assert job.wait(10)
    assert job.future.result().verdict == "half of it"
    assert jobs.known("k") is None
    assert job.tell.share == 0.5


def test_two_who_ask_the_same_do_not_stop_each_other():
    jobs, gate = Jobs(), threading.Event()

    def work(tell: Tell) -> Answer:
        gate.wait(10)
        return answer("whole", complete=not tell.stop.is_set())

    first, second = jobs.start("k", work), jobs.start("k", work)
    first.cancel()
    gate.set()
    assert second.wait(10)
    assert second.future.result().complete


def test_a_mistake_comes_out_as_it_was():
    def wrong(tell: Tell) -> Answer:
        raise InputError("rate", -1, "be above 0")

    job = Jobs().start("k", wrong)
    assert job.wait(10)
    with pytest.raises(InputError, match="rate=-1"):
        job.future.result()


def test_what_nobody_looks_after_is_given_up(monkeypatch):
    monkeypatch.setattr(answers, "FORSAKEN_S", -1.0)
    tell = Tell()
    tell("going on", 1, 10)
    assert tell.stop.is_set()


def test_python_ends_though_an_answer_is_being_worked_out():
    program = """
import threading
from simulator.explorer.jobs import Jobs

begun = threading.Event()

def work(tell):
    begun.set()
    tell.stop.wait()

jobs = Jobs(workers=1)
kept = [jobs.start("running", work), jobs.start("waiting", work)]
begun.wait()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
