"""Answers that take a while: worked out in threads, at most a few at once, each by one key whoever asks for it.

Answers are kept by content, so that two sessions that ask the same share the work but nothing else.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from simulator.explorer.answer import Answer, Tell

WORKERS = 2
"""Threads: the compiled loop keeps one processor busy, and pages still have to be served."""
KEPT = 64
"""Answers remembered, or so much of `Answer.room` together: one with 100,000 requests takes that of twenty."""
_STOPS: weakref.WeakSet[threading.Event] = weakref.WeakSet()
"""Of all that was started and is not forgotten."""


def stop_all() -> None:
    """Ends whatever is being worked out."""
    for stop in list(_STOPS):
        stop.set()


# Python waits for the threads of a pool before it ends, and before it calls what `atexit` holds: Ctrl-C would wait for a simulation.
getattr(threading, "_register_atexit", atexit.register)(stop_all)


@dataclass(frozen=True)
class Job:
    """One answer being worked out, for one session."""

    key: str
    """What was asked."""
    tell: Tell
    future: Future[Answer]

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within `seconds`."""
        self.tell.asked_s = time.monotonic()
        until = self.tell.asked_s + seconds
        while not self.future.done() and time.monotonic() < until:
            time.sleep(0.01)
        return self.future.done()

    def cancel(self) -> None:
        """Ends it at its next breath; what waits for a thread never starts."""
        self.tell.stop.set()
        self.future.cancel()


class Jobs:
    """Threads, and the answers they found by key."""

    def __init__(self, workers: int = WORKERS, kept: int = KEPT):
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="answer")
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Answer] = OrderedDict()
        self._kept = kept

    def known(self, key: str) -> Answer | None:
        """The answer to `key`, if it was worked out and is still kept."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def keep(self, key: str, answer: Answer) -> Answer:
        """Remembers `answer`, unless it was cut short."""
        if answer.complete:
            with self._lock:
                self._known[key] = answer
                self._known.move_to_end(key)
                room = sum(one.room for one in self._known.values())
                while room > self._kept and len(self._known) > 2:  # two stand side by side
                    room -= self._known.popitem(last=False)[1].room
        return answer

    def start(self, key: str, work: Callable[[Tell], Answer]) -> Job:
        """`work` in a thread of its own, as soon as one is free."""
        tell = Tell()
        _STOPS.add(tell.stop)
        return Job(key, tell, self._threads.submit(lambda: self.keep(key, work(tell))))
