"""Files that are either there in full or not at all: written under another name in the same folder, then renamed."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from simulator.errors import InputError


def check_writable(paths: Iterable[tuple[str, str | None]], read: Iterable[str | None] = ()) -> None:
    """Raises InputError unless every (option, path) can be written, no file is named twice and none is among those that are
    `read`; None is skipped.

    Called before the work starts: nobody should wait for a simulation whose result has no place to go.
    """
    seen: dict[str, str] = {}
    sources = {os.path.realpath(path) for path in read if path and os.path.isfile(path)}
    for option, path in paths:
        if path is None:
            continue
        with _as_input_error(option, path):
            if not path:
                raise InputError(option, path, "name a file")
            _check_place(option, path)
            place = os.path.realpath(path)
            if place in sources:
                raise InputError(option, path, "be another file than the one that is read")
            if place in seen and not _is_special(path):
                raise InputError(option, path, f"be another file than that of {seen[place]}")
            seen[place] = option


def write_text(path: str, text: str, option: str = "file") -> None:
    """`text` in UTF-8 as the whole content of `path`. Raises InputError."""
    with replacing(path, option) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: str, option: str = "file") -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends, and vanishes when it fails. Raises InputError."""
    with _as_input_error(option, path):
        if _is_special(path):  # a rename would replace the device or pipe itself
            with open(path, "wb") as special:
                yield special
            return
        target = Path(os.path.realpath(path))
        temporary, file = _beside(target)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            os.replace(temporary, target)
        except BaseException:  # Ctrl-C too must leave nothing behind
            temporary.unlink(missing_ok=True)
            raise


def discard_output() -> None:
    """Lets what is still to be written to standard output go nowhere: the interpreter flushes it once more on exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_place(option: str, path: str) -> None:
    target = Path(os.path.realpath(path))
    if target.is_dir() or path.endswith(("/", os.sep)):
        raise InputError(option, path, "be a file, not a folder")
    if _is_special(path):
        return
    if not target.parent.is_dir():
        raise InputError(option, path, f"lie in a folder that exists, and {str(target.parent)!r} does not")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(option, path, "be writable")
    # Permissions, read-only disks and over-long names: whether a file can be made is known only by making one.
    temporary, file = _beside(target)
    file.close()
    temporary.unlink()


def _beside(target: Path) -> tuple[Path, IO[bytes]]:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    return temporary, open(temporary, "xb")


def _is_special(path: str) -> bool:
    """Whether `path` is a device or pipe (/dev/null, /dev/stdout) rather than a file or a name still free."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextmanager
def _as_input_error(option: str, path: str) -> Iterator[Any]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(option, path, f"be writable ({error.strerror or error})") from None
    except ValueError as error:  # a NUL byte in the name
        raise InputError(option, path, f"be a file name ({error})") from None
