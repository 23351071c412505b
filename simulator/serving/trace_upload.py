"""A trace that somebody sent: untrusted bytes → a scenario's traffic, its rows accounted for.

The file lies in a private temporary folder, by its content, for as long as the process runs, so that a simulation can read it
later and again. The traffic names it as the sender does, relative to that folder: a scenario written as YAML works beside the
sender's own copy.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import InputError, MemwallError
from simulator.records import validate
from simulator.scenario import Scenario
from simulator.serving.trace_replay import Trace
from simulator.serving.traces import FORMATS, read_trace

MOST_BYTES = 32 * 2**20
"""Of one file: about a million rows of CSV, which take two seconds to read."""
MOST_NAME_CHARACTERS = 100
MOST_CLASS_CHARACTERS = 60
"""Of a class's name, which stands in tables and legends."""
KEPT = 32
"""Files that are kept; the one that nobody has used for longest goes first."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UploadedTrace:
    """A file that holds at least one usable row."""

    name: str
    """Of the file, as far as it can be one."""
    folder: Path
    """Where it lies, under that name."""
    format: str
    """A key of `traces.FORMATS`."""
    rows_read: int
    rows: int
    """Usable ones."""
    dropped: Mapping[str, int]
    """Reason → rows left out."""
    span_s: float
    """First to last arrival."""
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What was read, all rows accounted for, for people."""
        text = f"{self.name} ({FORMATS[self.format]}): {self.rows:,} of {self.rows_read:,} rows used"
        text += "".join(f", {n:,} dropped ({reason})" for reason, n in self.dropped.items())
        return "; ".join((text, *self.notes))

    def traffic(self, **changes: Any) -> Trace:
        """Its traffic; `changes` are fields of `Trace`, such as ``rate_per_s`` or ``limit``. Raises InputError."""
        return validate(Trace, {"kind": "trace", "path": self.name, **changes}, self.name)

    def replaying(self, scenario: Scenario, **changes: Any) -> Scenario:
        """`scenario` with this trace as its traffic. Raises InputError."""
        changed = scenario.model_copy(update={"traffic": self.traffic(**changes)})
        return changed.with_base(self.folder)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors that name the folder name the file alone."""
        try:
            yield
        except InputError as error:
            error.where = _without(error.where, self.folder)
            error.rule = _without(error.rule, self.folder)
            if isinstance(error.value, str):
                error.value = _without(error.value, self.folder)
            raise


def uploaded_trace(name: str, content: bytes) -> UploadedTrace:
    """The trace in `content`, of any format that `traces` knows, kept under `name`.

    The same name and content are read once. Raises MemwallError in one sentence that names the file as it was sent, and nothing
    else, whatever the bytes.
    """
    shown = plain_name(name)
    if not content:
        raise InputError("trace", shown, "not be empty")
    if b"\0" in content[:4096]:
        raise InputError("trace", "(binary)", "be UTF-8 text", where=shown)
    if len(content) > MOST_BYTES:
        size = f"{len(content) / 2**20:,.0f} MiB"
        raise InputError("trace", size, f"have at most {MOST_BYTES >> 20} MiB", where=shown)
    return _SHELF.get(shown, content)


def plain_name(name: str) -> str:
    """The last part of a file's name without what could lead elsewhere or hide in a terminal: what is not printable, leading dots and
    tildes."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c for c in last if c.isprintable()).strip().lstrip("~.").strip()
    stem, dot, ending = kept.rpartition(".")
    if not dot or len(ending) > 10:
        stem, dot, ending = kept, "", ""
    room = MOST_NAME_CHARACTERS - len(dot + ending)
    while len((stem[:room] + dot + ending).encode("utf-8", "replace")) > 200:  # a file system counts bytes
        room -= 10
    kept = (stem[:room] + dot + ending).encode("utf-8", "replace").decode("utf-8")
    return kept or "trace.csv"


class _Shelf:
    """Files by content and name, shared by all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._root: tempfile.TemporaryDirectory[str] | None = None
        self._kept: OrderedDict[str, UploadedTrace] = OrderedDict()
        self._readers: dict[str, tuple[threading.Lock, int]] = {}
        """By content: the lock of those who read it or wait for it, and how many they are."""

    def get(self, name: str, content: bytes) -> UploadedTrace:
        key = hashlib.sha256(name.encode() + b"\0" + content).hexdigest()
        # Whoever sends the same file waits for the first: it must not be written, or thrown away, while it is read.
        with self._reading(key):
            with self._lock:
                known = self._kept.get(key)
                if known is not None and (known.folder / name).is_file():
                    self._kept.move_to_end(key)
                    return known
                folder = self._written(key, name, content)
            try:
                found = _read(name, folder)
            except MemwallError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            with self._lock:
                self._kept[key] = found
                while len(self._kept) > KEPT:
                    shutil.rmtree(self._kept.popitem(last=False)[1].folder, ignore_errors=True)
            return found

    def _written(self, key: str, name: str, content: bytes) -> Path:
        """The folder that now holds the file."""
        if self._root is None:  # removed when the process ends
            self._root = tempfile.TemporaryDirectory(prefix="memwall-traces-", ignore_cleanup_errors=True)
        folder = Path(self._root.name) / key
        try:
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        except (OSError, ValueError) as error:
            _log.exception("an uploaded trace could not be kept")
            reason = getattr(error, "strerror", None) or "name not possible"
            raise InputError("trace", name, f"find a place on this server's disk ({reason})") from None
        return folder

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        with self._lock:
            own, waiting = self._readers.get(key, (threading.Lock(), 0))
            self._readers[key] = (own, waiting + 1)
        try:
            with own:
                yield
        finally:
            with self._lock:
                own, waiting = self._readers.pop(key)
                if waiting > 1:
                    self._readers[key] = (own, waiting - 1)


def _read(name: str, folder: Path) -> UploadedTrace:
    try:
        table = read_trace(folder / name)
    except InputError as error:
        error.where = _without(error.where, folder) or name
        if isinstance(error.value, str):
            error.value = _without(error.value, folder)
        raise
    except Exception:
        # A reader of ours should have said what is wrong; whoever sent the file must not see our insides instead.
        _log.exception("an uploaded trace broke its reader")
        raise InputError("trace", name, "be a trace that can be read to its end") from None
    for kind, _ in table.kinds:
        if kind is not None and (len(kind) > MOST_CLASS_CHARACTERS or not kind.isprintable()):
            rule = f"have printable names of at most {MOST_CLASS_CHARACTERS} characters for its classes"
            raise InputError("trace", kind, rule, where=name)
    return UploadedTrace(
        name, folder, table.format, table.rows_read, len(table.row), dict(table.dropped), float(table.arrival_s[-1]),
        table.notes,
    )  # fmt: skip


def _without(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "").replace(str(folder), "the uploaded file")


_SHELF = _Shelf()
