"""Corpus: text that every Python ships with, split into training and held-out text by file.

The sources of the standard library: English in docstrings and comments, and code. They differ between versions of Python,
so the digest says which text it was.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NO_TEXT = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "encodings", "lib2to3", "__pycache__")
)
"""Folders left out: what does not come with Python, what some systems leave out, and tables of code points."""
HELD_OUT_OF = 10
"""One file of so many is held out."""
LEAST_BYTES = 200_000


class CorpusError(RuntimeError):
    """No text to train from, said in one sentence."""


@dataclass(frozen=True)
class Corpus:
    """Whole files, in the order of their names."""

    training: tuple[bytes, ...]
    held_out: tuple[bytes, ...]
    sha256: str
    """Of all names and texts."""


@cache
def standard_library() -> Corpus:
    """The sources beside this Python. Raises CorpusError where they are not installed, or only zipped."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    files = {name: found[name].read_bytes() for name in sorted(found) if not NO_TEXT & set(name.split("/"))}
    if sum(map(len, files.values())) < LEAST_BYTES:
        raise CorpusError(f"no text to train from: {root} must hold the sources of Python's standard library")
    return split(files)


def split(files: dict[str, bytes]) -> Corpus:
    """Files by name. Which are held out depends on each file's name alone, so that adding one moves no other."""
    digest = hashlib.sha256()
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
        lot = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        parts[lot % HELD_OUT_OF == 0].append(files[name])
    return Corpus(tuple(parts[0]), tuple(parts[1]), digest.hexdigest())
