"""A file that somebody sent: untrusted bytes → the profile that `memwall calibrate` makes of it, or what `memwall validate` says.

The bytes are written to a private temporary folder under a harmless name, read from there by the readers of the command line,
and removed. Kernel tables, layer timings and an engine's run are folders: they come as a ZIP. What is wrong with a file is one
sentence (`InputError`), which names the file as it was sent and never the folder.
"""

from __future__ import annotations

import io
import logging
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pyarrow.parquet as pq

from simulator import catalog
from simulator.calibration.comparison import Progress, Validation
from simulator.calibration.server_results import SUPPORTED, read_server_results
from simulator.calibration.sources import CALIBRATING, Kind, Options, kind_of, profile_from, validations_of
from simulator.errors import InputError, MemwallError
from simulator.scenario import Scenario

MOST_BYTES = 32 * 2**20
"""Of one upload; the measurements of ten minutes are 300 kB, all kernel tables of three GPUs 3 MB."""
MOST_LINES = 20_000
"""Of a measurement file: a fit holds them all and is made a dozen times."""
MOST_UNPACKED_BYTES = 64 * 2**20
"""Of all files of a ZIP together."""
MOST_FILES = 64
MOST_TABLE_ROWS = 500_000
"""Of one Parquet table, whose few bytes may stand for any number of rows; the largest real one has 107,000."""
ENDINGS = (".jsonl", ".json", ".csv", ".zip")
"""What an upload may end in."""
PACKED_ENDINGS = (".parquet", ".csv", ".json", ".jsonl", ".yaml")
"""What is unpacked of a ZIP; other files are passed over."""

FITTED_FROM = (
    "be a file of memwall measure (JSON lines, a header first), a CSV of timings with the columns kind and median, or a ZIP of "
    "kernel tables or layer timings"
)
_NO_TIMES = {
    "published": "hold times of kernels or steps; published speeds can be validated, not fitted",
    "engine run": "hold times of kernels or steps; an engine's run can be validated, not fitted",
}

T = TypeVar("T")
Clean = Callable[[str], str]
"""Puts the name that was sent where our folder's stands."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FittedUpload:
    """A device as somebody measured it."""

    name: str
    """Of the profile: the file's, as far as it can be one."""
    kind: Kind
    profile_yaml: str
    """The profile, to be saved; its path works wherever a GPU's name does."""
    validations: tuple[Validation, ...]
    """How well it does on what its fit did not see."""


def fit_upload(
    name: str, content: bytes, progress: Progress | None = None, *, gpu: str | None = None, link: str | None = None,
    salvage: bool = False,
) -> FittedUpload:  # fmt: skip
    """The profile that the measurements in `content` make.

    name      as the file was called; its ending tells a CSV from JSON lines and a ZIP
    gpu       device of tables (kernel tables, layer timings, a CSV without a column ``device``)
    link      link of kernel tables; the GPU's own unless given
    salvage   read a damaged measurement file up to the damage

    Takes some seconds for a measurement file and a minute for kernel tables. Raises MemwallError in one sentence, and
    nothing else but what `progress` raises.
    """

    def work(path: Path, options: Options, clean: Clean) -> FittedUpload:
        kind = kind_of(path)
        if kind not in CALIBRATING:
            raise InputError("file", _shown(name), _NO_TIMES.get(kind, FITTED_FROM))
        profile = profile_name_of(name)
        text, found = profile_from(path, profile, options)
        return FittedUpload(profile, kind, clean(text), tuple(_cleaned(v, clean) for v in found))

    return _guarded(name, content, work, Options(gpu=gpu, link=link, salvage=salvage), progress)


def validate_upload(
    name: str, content: bytes, progress: Progress | None = None, *, gpu: str | None = None,
    scenario: Scenario | None = None, salvage: bool = False,
) -> tuple[Validation, ...]:  # fmt: skip
    """What `content` says about predictions: a measurement file of its own fit (of `gpu`'s profile, where that is given),
    published speeds, an engine's run on `gpu`, or the result of a serving benchmark while `scenario` served.

    Raises as `fit_upload` does.
    """

    def work(path: Path, options: Options, clean: Clean) -> tuple[Validation, ...]:
        if kind_of(path) == "server":
            _check_result(path, name)  # before anybody is asked what served while it ran
        return tuple(_cleaned(v, clean) for v in validations_of(path, options))

    return _guarded(name, content, work, Options(gpu=gpu, scenario=scenario, salvage=salvage), progress)


def upload_kind(name: str, content: bytes) -> Kind:
    """What kind of measurements `content` holds. Raises as `fit_upload` does."""
    return _guarded(name, content, lambda path, *_: kind_of(path), Options(), None)


def profile_name_of(name: str) -> str:
    """A profile's name from a file's: lower case letters, digits, dots and hyphens, and not that of a bundled device."""
    stem = PurePosixPath(name.replace("\\", "/")).name
    for ending in ENDINGS:
        stem = stem[: -len(ending)] if stem.lower().endswith(ending) else stem
    plain = re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-.")[:60] or "mine"
    return f"{plain}-mine" if plain in catalog.names("gpu") else plain


def _guarded(
    name: str, content: bytes, work: Callable[[Path, Options, Clean], T], options: Options, progress: Progress | None
) -> T:
    """`work` on the file, with every error one sentence that names the file as it was sent."""
    shown = _shown(name)
    told = _Told(progress)
    with _on_disk(shown, content) as (folder, path):

        def clean(text: str) -> str:
            return re.sub(rf"{re.escape(str(folder))}(/[^\s:,'\"]*)?", lambda _: shown, text)

        try:
            return work(path, Options(options.gpu, options.link, options.scenario, options.salvage, told), clean)
        except InputError as error:
            error.field = error.field.removeprefix("--")  # there is no command line here
            error.where = clean(error.where)
            if isinstance(error.value, str):
                error.value = clean(error.value)
            error.rule = clean(error.rule)
            raise
        except MemwallError as error:
            raise MemwallError(clean(str(error))) from None
        except Exception as error:
            if error is told.raised:
                raise
            # A reader of ours should have said what is wrong; whoever sent the file must not see our insides instead.
            _log.exception("an uploaded file broke its reader")
            raise InputError("file", shown, "be measurements that can be read to their end") from None


class _Told:
    """Passes progress on, and remembers what it raised: that is no fault of the file."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self.raised: Exception | None = None

    def __call__(self, what: str, done: int, of: int) -> None:
        if self._progress is None:
            return
        try:
            self._progress(what, done, of)
        except Exception as error:
            self.raised = error
            raise


@contextmanager
def _on_disk(shown: str, content: bytes) -> Iterator[tuple[Path, Path]]:
    """A private folder, and in it the file or the folder that was packed. Raises InputError for what we do not read."""
    if not content:
        raise InputError("file", shown, "not be empty")
    if len(content) > MOST_BYTES:
        raise InputError(
            "file", f"{len(content) / 2**20:,.0f} MiB", f"have at most {MOST_BYTES >> 20} MiB", where=shown
        )
    ending = next((e for e in ENDINGS if shown.lower().endswith(e)), None)
    if ending is None:
        raise InputError("file", shown, f"end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if ending == ".jsonl" and (lines := content.count(b"\n")) > MOST_LINES:
        raise InputError("file", f"{lines:,} lines", f"have at most {MOST_LINES:,}", where=shown)
    with tempfile.TemporaryDirectory(prefix="memwall-") as made:  # which only we may enter
        folder = Path(made)
        if ending == ".zip":
            yield folder, _unpacked(folder / "packed", content, shown)
        else:
            path = folder / f"{profile_name_of(shown)}{ending}"
            path.write_bytes(content)
            yield folder, path


def _unpacked(folder: Path, content: bytes, shown: str) -> Path:
    """The files of a ZIP under `folder`, as far as they are measurements; the folder that holds them."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            wanted = [i for i in packed.infolist() if not i.is_dir() and i.filename.lower().endswith(PACKED_ENDINGS)]
            if len(wanted) > MOST_FILES:
                raise InputError("file", f"{len(wanted):,} packed files", f"hold at most {MOST_FILES}", where=shown)
            room = MOST_UNPACKED_BYTES
            for info in wanted:
                parts = PurePosixPath(info.filename).parts
                if any(part in ("..", "/") or not re.fullmatch(r"[\w.+ -]{1,100}", part) for part in parts):
                    raise InputError("packed file", info.filename, "have a plain name inside the archive", where=shown)
                with packed.open(info) as file:
                    data = file.read(room + 1)  # what the archive says of its sizes may be untrue
                room -= len(data)
                if room < 0:
                    limit = f"unpack to at most {MOST_UNPACKED_BYTES >> 20} MiB"
                    raise InputError("file", "its packed files", limit, where=shown)
                place = folder.joinpath(*parts)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
                if place.suffix == ".parquet":
                    _check_table(place, info.filename, shown)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError):
        raise InputError("file", shown, "be a whole ZIP archive without a password") from None
    except InputError:
        raise
    except Exception:
        raise InputError("file", shown, "be a whole ZIP archive") from None
    return _inner(folder, shown)


def _check_table(path: Path, packed_name: str, shown: str) -> None:
    try:
        metadata = pq.ParquetFile(path).metadata
    except Exception:
        raise InputError("packed file", packed_name, "be a Parquet table", where=shown) from None
    if metadata.num_rows > MOST_TABLE_ROWS:
        raise InputError("packed file", packed_name, f"have at most {MOST_TABLE_ROWS:,} rows", where=shown)
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if unpacked > 4 * MOST_UNPACKED_BYTES:
        raise InputError("packed file", packed_name, f"be at most {MOST_UNPACKED_BYTES >> 18} MiB large", where=shown)


def _inner(folder: Path, shown: str) -> Path:
    """The folder that is of a kind we know, at most two levels further in: people pack a folder or what is in it."""
    levels = [folder]
    for _ in range(3):
        for place in levels:
            try:
                kind_of(place)
            except InputError:
                continue
            return place
        levels = sorted(inner for place in levels if place.is_dir() for inner in place.iterdir() if inner.is_dir())
    rule = "hold a folder of kernel tables, layer timings or an engine's run"
    raise InputError("file", shown, rule)


def _check_result(path: Path, name: str) -> None:
    """Raises InputError unless the file is a benchmark's result: what is neither JSON nor a table could have been anything."""
    try:
        read_server_results(path)
    except InputError:
        start = path.read_bytes()[:256].lstrip()
        if path.suffix == ".json" or start[:1] in (b"{", b"["):
            raise
        raise InputError("file", _shown(name), f"{FITTED_FROM}, or a result of {SUPPORTED}") from None


def _cleaned(validation: Validation, clean: Clean) -> Validation:
    """`validation` without our folder's name, which readers put wherever they name the file."""
    return replace(
        validation,
        title=clean(validation.title),
        subject=clean(validation.subject),
        conditions=[(name, clean(text)) for name, text in validation.conditions],
        quantities=[replace(q, note=clean(q.note)) for q in validation.quantities],
        notes=[clean(note) for note in validation.notes],
    )


def _shown(name: str) -> str:
    """A file's name without folders, as it may stand in a sentence."""
    plain = PurePosixPath(name.replace("\\", "/")).name
    return "".join(c if c.isprintable() else "_" for c in plain)[:100] or "(unnamed)"
