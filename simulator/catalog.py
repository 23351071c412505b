"""Names → bundled files. A user's own file, given by path, works wherever a bundled name does."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from simulator.errors import InputError, UnknownName

_FOLDERS = {
    "gpu": ("hardware_profiles/gpus", ".yaml"),
    "link": ("hardware_profiles/links", ".yaml"),
    "engine": ("hardware_profiles/engines", ".yaml"),
    "calibration": ("hardware_profiles/calibrations", ".yaml"),
    "model": ("workloads/models", ".json"),
    "drafter": ("workloads/drafters", ".yaml"),
    "acceptance": ("workloads/acceptance", ".yaml"),
    "tree": ("workloads/trees", ".yaml"),
    "traffic": ("workloads/traffic", ".yaml"),
    "scenario": ("workloads/scenarios", ".yaml"),
    "experiment": ("workloads/scenarios/article", ".yaml"),
}


@cache
def root() -> Path:
    """Where the bundled folders lie: inside an installed wheel, or beside the package in a source tree."""
    package = Path(__file__).resolve().parent
    wheel = package / "_bundled"
    return wheel if wheel.is_dir() else package.parent


def names(kind: str) -> list[str]:
    """Sorted names of the bundled files of `kind` (a key of the table above)."""
    folder, suffix = _FOLDERS[kind]
    return sorted(p.name.removesuffix(suffix) for p in (root() / folder).glob(f"*{suffix}"))


def locate(kind: str, name: str, *, aliases: dict[str, str] | None = None, base: Path | None = None) -> Path:
    """The file for `name`: a bundled name or alias (any case), or a path, relative ones also tried from `base`.

    Raises UnknownName with the nearest bundled name, InputError when a path names no file.
    """
    folder, suffix = _FOLDERS[kind]
    key = name.lower()
    known = names(kind)
    bundled = {n.lower(): n for n in known} | {a.lower(): n for a, n in (aliases or {}).items()}
    if key in bundled:
        return root() / folder / f"{bundled[key]}{suffix}"
    looks_like_path = "/" in name or "\\" in name or name.endswith((".yaml", ".yml", ".json"))
    found = _existing(kind, name, base)
    if found is not None:
        return found
    if looks_like_path:
        raise InputError(kind, name, "be an existing file")
    raise UnknownName(kind, name, [*known, *(aliases or {})], kind=kind)


def _existing(kind: str, name: str, base: Path | None) -> Path | None:
    try:
        candidates = [Path(name).expanduser()]
        if base is not None and not candidates[0].is_absolute():
            candidates.insert(0, base / candidates[0])
        for candidate in candidates:
            if candidate.is_dir() and kind == "model" and (candidate / "config.json").is_file():
                return candidate / "config.json"
            if candidate.is_file():
                return candidate
    except (OSError, RuntimeError):  # a name too long for the file system, or the home folder of nobody
        return None
    return None
