"""The command as a process of its own: what it imports, pipes, interruptions."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator import InputError, UnknownName, __version__
from simulator.errors import MemwallError
from simulator.serving.first_call import compile_step_loop
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


def test_ctrl_c_of_a_running_process_leaves_what_there_is(scenario: str, folder: Path) -> None:
    """Pressed as soon as the bar shows: exit code 130, and report, rows and document of what was simulated by then."""
    import pyarrow.parquet as pq

    compile_step_loop()  # so that the process is simulating when it is interrupted, not compiling
    terminal, its_end = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "simulator.cli", "simulate", scenario, "--requests", "200000", "--rows", "r.parquet",
         "--set", "traffic.lengths.output=2000", "--json", "r.json"],
        stdout=subprocess.PIPE, stderr=its_end, cwd=folder, env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100"},
        # A shell that starts the tests in the background has them ignore Ctrl-C, and all their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    os.close(its_end)
    said = seen(terminal, until=b"200000")
    running.send_signal(signal.SIGINT)
    said += seen(terminal)
    out = running.communicate(timeout=60)[0].decode()
    os.close(terminal)
    assert running.returncode == 130, out
    assert said.rstrip().endswith(b"memwall: interrupted")
    assert "Speculation interrupted at t = " in out
    document = json.loads((folder / "r.json").read_text())
    assert document["complete"] is False
    counts = document["runs"][0]["summary"]["requests"]
    assert counts["unfinished"] > 0 < counts["finished"]
    assert sum(counts.values()) == 200_000
    status = pq.read_table(folder / "r.parquet", columns=["status"]).column("status").to_pylist()
    assert status.count("finished") == counts["finished"]
    assert len(status) == 200_000
    assert sorted(os.listdir(folder)) == ["r.json", "r.parquet", "s.yaml"]


def seen(terminal: int, until: bytes | None = None) -> bytes:
    """What a process writes to its terminal up to `until`, or until it closes it."""
    said = b""
    while until is None or until not in said:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other end is closed
            return said
        if not part:
            return said
        said += part
    return said


def test_errors_are_memwall_errors() -> None:
    assert issubclass(UnknownName, InputError)
    assert issubclass(InputError, MemwallError)


def test_workers_end_with_a_process_that_is_killed(folder: Path) -> None:
    compile_step_loop()
    line = [
        "crossover",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100-sxm",
        "--draft",
        "ngram",
        "--acceptance",
        "0.6",
        "--gamma",
        "1..8",
    ]
    line += ["--load", "1,2,4,8,16", "--context", "512,1024", "--simulate", "--requests", "5000", "--jobs", "2"]  # fmt: skip
    argv = [sys.executable, "-m", "simulator.cli", *line, "--out", "cells.jsonl"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        for _ in range(1200):
            if Path("cells.jsonl").exists() and Path("cells.jsonl").read_bytes().count(b"\n") >= 2:
                break
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        # The workers have this pipe too: it ends when the last of them has.
        process.communicate(timeout=60)
    kept = Path("cells.jsonl").read_bytes()
    assert kept.count(b"\n") >= 2
