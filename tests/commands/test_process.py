"""The command as a process of its own: what it imports, pipes, interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator import InputError, UnknownName, __version__
from simulator.errors import MemwallError
from simulator.serving.cluster import compile_step_loop
from tests.commands.lines import DECODE

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def python(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, *argv], capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False, **options
    )


HEAVY = (
    "numpy",
    "pydantic",
    "scipy",
    "numba",
    "plotly",
    "pyarrow",
    "rich",
    "yaml",
    "simpy",
    "streamlit",
    "pandas",
    "torch",
)


@pytest.mark.parametrize("argv", [[], ["--help"], ["simulate", "--help"], ["--version"], ["decod"], ["decode"]])
def test_help_and_mistakes_import_nothing_heavy(argv: list[str]) -> None:
    code = (
        f"import sys; from simulator.cli import main; main({argv!r}); print(sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_table_needs_no_plotly_and_no_streamlit() -> None:
    code = f"import sys; from simulator.cli import main; main({DECODE!r}); print({{'plotly', 'pyarrow', 'streamlit', 'pandas'}} & set(sys.modules))"
    assert python("-c", code).stdout.splitlines()[-1] == "set()"


def test_the_module_runs_and_exits_with_the_code() -> None:
    assert python("-m", "simulator.cli", "--version").stdout == f"memwall {__version__}\n"
    done = python("-m", "simulator.cli", "decode", "--model", "nope", "--gpu", "h100")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "simulator.cli", "list", "models"],
            stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=120, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_of_a_running_process(scenario: str, folder: Path) -> None:
    compile_step_loop()  # so that the process is simulating when it is interrupted, not compiling
    running = subprocess.Popen(
        [sys.executable, "-m", "simulator.cli", "simulate", scenario, "--requests", "4000000", "--rows", "r.csv"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=folder, text=True,
        # A shell that starts the tests in the background has them ignore Ctrl-C, and all their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    time.sleep(3)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (130, "", "memwall: interrupted\n")
    assert os.listdir(folder) == ["s.yaml"]


def test_errors_are_memwall_errors() -> None:
    assert issubclass(UnknownName, InputError)
    assert issubclass(InputError, MemwallError)
