"""The decorator that compiles the step loop, with a cache on disk that notices every change of what the loop is made of.

numba's own cache looks at the decorated function's file only: a function that calls a changed one in another module would
go on running the old code. So the cache lives in a folder named after the sources of all modules involved.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.types import unliteral

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCES = (
    "serving/compiled.py", "serving/state.py", "serving/heap.py", "serving/kv_cache.py", "serving/line.py",
    "serving/luck.py", "serving/passes.py", "serving/drafting.py", "serving/record.py", "serving/batching.py",
    "serving/steady.py", "serving/arrays.py", "serving/replica.py", "serving/routing.py", "serving/pool.py",
    "serving/model.py", "serving/leaving.py", "serving/verifying.py", "speculation/shape.py", "speculation/policies.py", "speculation/round.py", "speculation/stretches.py",
    "cost/roofline.py", "cost/forward.py", "operators.py", "randomness.py",
)  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`function`, compiled by numba on first call and cached, and inlined wherever compiled code calls it."""
    # A call copies every array's descriptor (56 bytes and more), and a step's functions share a dozen.
    return _compiled(function, inline=True)


def compiled_apart(function: F) -> F:
    """`function`, compiled likewise but called, not inlined: for what is large and seldom."""
    return _compiled(function, inline=False)


def entry(function: F) -> F:
    """`function`, compiled likewise, for Python to call: the others have no way in from there, which halves their code."""
    return _compiled(function, inline=False, from_python=True)


_REFUSAL = ctypes.cast(ctypes.pythonapi.PyErr_BadArgument, ctypes.c_void_p).value
"""What Python meets that calls such a function all the same: a TypeError."""


class _Within(JITCodeLibrary):
    """Code that is only ever linked into other code: neither optimised by itself nor turned into machine code.

    numba does both for every function with all that it calls inside, which for functions ten deep means ten times. Ours have one
    way in, so one time is enough.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int | None:
        self._ensure_finalized()
        return _REFUSAL

    @property
    def codegen(self) -> Any:
        return _NoEnvironments()


class _NoEnvironments:
    """In the place of a code generator: there is no machine code that would need its environment set."""

    def set_env(self, name: str, environment: Any) -> None:
        pass


class _Inner(Compiler):
    """Compiles functions that only compiled ones call."""

    def define_pipelines(self) -> Any:
        library = self.state.targetctx.codegen().create_library(self.state.func_id.func_qualname)
        library.__class__ = _Within
        self.state.library = library
        return super().define_pipelines()


def _compiled(function: F, *, inline: bool, from_python: bool = False) -> F:
    # Nothing here makes an array, so nobody has to count who refers to one (`_nrt`).
    options: dict[str, Any] = {"error_model": "numpy", "forceinline": inline, "no_cfunc_wrapper": True, "_nrt": False}
    jit: Any = numba.njit
    if not from_python:
        dispatcher: Any = jit(no_cpython_wrapper=True, pipeline_class=_Inner, **options)(function)
    else:
        config: Any = numba.config
        before = config.CACHE_DIR
        config.CACHE_DIR = str(_cache_folder())
        try:
            # Nothing in the loop touches Python's objects, so other threads may run Python meanwhile: a server's pages, for one.
            dispatcher = jit(cache=True, nogil=True, **options)(function)
        finally:
            config.CACHE_DIR = before
    resolve = dispatcher.get_call_template

    def for_any_number(args: Any, kws: Any) -> Any:
        # Else a function is compiled once more for every constant that it is called with.
        return resolve(tuple(map(unliteral, args)), {name: unliteral(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = for_any_number
    return cast(F, dispatcher)


@contextmanager
def interrupted_afterwards() -> Iterator[None]:
    """Holds Ctrl-C back until the block has ended: pressed while LLVM compiles, it would be lost in one of its callbacks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@contextmanager
def uncollected(dispatcher: Any) -> Iterator[None]:
    """The block without garbage collection where it will compile `dispatcher`: numba makes millions of small objects that live,
    and looking through them again and again is an eighth of the time."""
    if dispatcher.signatures or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def is_cold() -> bool:
    """Whether the loop has never been compiled from these sources here."""
    return not any(_cache_folder().rglob("*.nbc"))


@cache
def _cache_folder() -> Path:
    sources = b"".join((_PACKAGE / source).read_bytes() for source in _SOURCES)
    checks = os.environ.get("NUMBA_BOUNDSCHECK", "")  # what was compiled without checks must not pass for checked
    digest = hashlib.sha256(sources + checks.encode()).hexdigest()[:16]
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memwall"
    for parent in (_PACKAGE / "__pycache__", user):
        folder = parent / f"numba-{digest}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="memwall-"))
