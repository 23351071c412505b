"""Files appear whole or not at all."""

from __future__ import annotations

import builtins
import errno
import os
import stat
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.output.files import check_writable, replacing, write_text


def test_text_replaces_what_was_there_and_leaves_no_other_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old and longer")
    write_text(str(target), "new γ")
    assert target.read_text(encoding="utf-8") == "new γ"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_halfway_leaves_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def half() -> None:
        with replacing(str(target)) as file:
            file.write(b"half")
            raise failure

    with pytest.raises((failure, InputError)):
        half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "a.txt", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_text(str(link), "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    write_text(str(tmp_path / "ours"), "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_device_is_written_to_not_replaced() -> None:
    check_writable([("--json", os.devnull), ("--html", os.devnull)])
    write_text(os.devnull, "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_check_writable_accepts_free_names_and_leaves_nothing(tmp_path: Path) -> None:
    check_writable([("--json", str(tmp_path / "a")), ("--html", None), ("--csv", str(tmp_path / "b"))])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("no/such/folder/a.json", "folder that exists"),
        ("", "name a file"),
        (".", "not a folder"),
        ("new/", "not a folder"),
        ("x" * 300, "too long"),
        ("a\0b", "file name"),
    ],
)
def test_check_writable_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rule: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rule):
        check_writable([("--json", name)])
    assert os.listdir(tmp_path) == []


def test_one_file_for_two_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another file than that of --json"):
        check_writable([("--json", str(tmp_path / "a")), ("--html", f"{tmp_path}/./a")])


def test_a_file_that_is_read_is_not_written_over(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("precious")
    with pytest.raises(InputError, match="another file than the one that is read"):
        check_writable([("--json", f"{tmp_path}/./log.csv")], [None, str(log)])
    check_writable([("--json", str(tmp_path / "bundled"))], ["bundled"])


def test_check_writable_refuses_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not stop root, so the file system's answer is played.
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(builtins, "open", read_only)
    with pytest.raises(InputError, match="writable"):
        check_writable([("--json", str(tmp_path / "a"))])
