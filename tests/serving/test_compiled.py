"""Ctrl-C while the loop is compiled: held back, never lost."""

from __future__ import annotations

import signal
import threading

import pytest

from simulator.serving.compiled import interrupted_afterwards


def test_an_interrupt_waits_for_the_end_of_the_block():
    reached = []
    before = signal.getsignal(signal.SIGINT)

    def work():
        with interrupted_afterwards():
            signal.raise_signal(signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_block_comes_through_and_the_handler_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="ours"), interrupted_afterwards():
        raise ValueError("ours")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_have_no_signals_to_hold_back():
    done = []

    def work():
        with interrupted_afterwards():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
