"""No access out of bounds: random scenarios through the loop compiled with checks, in a process of its own.

Without checks such an access reads or writes somebody else's memory, and shows much later, if at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_loop_stays_within_its_arrays():
    files = [
        f"tests/serving/{name}.py"
        for name in ("test_equals_plain", "test_steady_drafts", "test_relocation", "test_replay")
    ]
    checked = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "MEMWALL_EXAMPLES": os.environ.get("MEMWALL_EXAMPLES", "600")}
    command = [sys.executable, "-m", "pytest", "-q", "-x", *files]
    run = subprocess.run(command, cwd=ROOT, env=checked, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def test_checks_are_there(tmp_path):
    code = (
        "import numpy as np\n"
        "from simulator.serving.compiled import entry\n"
        "@entry\n"
        "def beyond(a, i):\n"
        "    return a[i]\n"
        "beyond(np.zeros(3), 7)\n"
    )
    (tmp_path / "beyond.py").write_text(code)
    checked = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "beyond.py")]
    run = subprocess.run(command, cwd=ROOT, env=checked, capture_output=True, text=True, check=False)
    assert "IndexError" in run.stderr
