"""A log of acceptance that somebody sent: untrusted bytes → rates by depth, fitted at once.

The bytes are written to a private temporary folder, read there by the reader of the command line, and removed. Rates by depth are
closed-form, so that they come at once; the laws above them (`simulator.speculation.ladder`) take up to a minute and are
``memwall acceptance fit``'s.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from simulator.errors import InputError, MemwallError
from simulator.speculation.acceptance import MAX_GAMMA, AcceptanceConfig
from simulator.speculation.acceptance_text import text_of_fields
from simulator.speculation.ladder.counters import PositionCounts
from simulator.speculation.ladder.logs import read_log
from simulator.speculation.ladder.result import LogFit
from simulator.speculation.ladder.rungs import RateByDepth

MOST_BYTES = 50 * 2**20
KEPT = 32
"""Fits that are kept; the one that nobody has used for longest goes first."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UploadedLog:
    """A log with its rates by depth."""

    name: str
    """Of the file, as far as it can be one."""
    fit: LogFit
    """Its law is of rates by depth; nothing is judged."""

    @property
    def config(self) -> AcceptanceConfig:
        """The law as a scenario has it, its source included."""
        return self.fit.config

    @property
    def rates(self) -> str:
        """Its rates as a line of text, which `acceptance_text.fields_of_text` reads."""
        return text_of_fields(self.config.model_dump())

    @property
    def sentence(self) -> str:
        """What was read and fitted, for people."""
        log = self.fit.log
        if isinstance(log, PositionCounts):
            return f"{self.name}: counts of {log.rounds:,.0f} rounds of up to {log.gamma} drafts"
        left_out = f"; {log.without_rounds:,} without a round left out" if log.without_rounds else ""
        requests = f"{len(log.accepted):,} request" + ("s" if len(log.accepted) != 1 else "")
        return f"{self.name}: {len(log.rounds):,} rounds of {requests} with up to {log.gamma} drafts{left_out}"


def uploaded_log(name: str, content: bytes) -> UploadedLog:
    """What the log in `content` tells, of any layout that `logs` knows. The same name and content are fitted once.

    Raises MemwallError in one sentence that names the file as it was sent, and nothing else, whatever the bytes.
    """
    shown = _shown(name)
    if not content:
        raise InputError("log", shown, "not be empty")
    if len(content) > MOST_BYTES:
        size = f"{len(content) / 2**20:,.0f} MiB"
        raise InputError("log", size, f"have at most {MOST_BYTES >> 20} MiB", where=shown)
    key = hashlib.sha256(shown.encode("utf-8", "replace") + b"\0" + content).hexdigest()
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    found = _fitted(shown, content)
    with _lock:
        _kept[key] = found
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return found


_kept: OrderedDict[str, UploadedLog] = OrderedDict()
_lock = threading.Lock()


def _fitted(shown: str, content: bytes) -> UploadedLog:
    with tempfile.TemporaryDirectory(prefix="memwall-logs-") as folder:  # which only we may enter
        path = Path(folder) / "log"

        def clean(text: str) -> str:
            return text.replace(str(path), shown)

        try:
            path.write_bytes(content)
            log = read_log(path)
            if log.gamma > MAX_GAMMA:
                raise InputError("drafts per step", log.gamma, f"be at most {MAX_GAMMA}", where=shown)
            rung = RateByDepth.of(log.conditional) if isinstance(log, PositionCounts) else RateByDepth.fit(log)
            return UploadedLog(shown, LogFit(log, shown, rung, None))
        except InputError as error:
            error.where = clean(error.where)
            error.rule = clean(error.rule)
            if isinstance(error.value, str):
                error.value = clean(error.value)
            raise
        except MemwallError as error:
            raise MemwallError(clean(str(error))) from None
        except Exception:
            # A reader of ours should have said what is wrong; whoever sent the file must not see our insides instead.
            _log.exception("an uploaded log broke its reader")
            raise InputError("log", shown, "be a log that can be read to its end") from None


def _shown(name: str) -> str:
    """A file's name without folders, as it may stand in a sentence."""
    plain = PurePosixPath(name.replace("\\", "/")).name
    return "".join(c if c.isprintable() else "_" for c in plain)[:100] or "(unnamed)"
