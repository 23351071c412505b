"""The corpus: text of this Python, split by file."""

import hashlib
import sysconfig

import pytest

from simulator.reference_decoder import corpus
from simulator.reference_decoder.corpus import CorpusError, split, standard_library
from simulator.reference_decoder.pair import passages


def test_python_s_own_sources_are_enough_to_train_from():
    found = standard_library()
    training, held_out = (sum(map(len, texts)) for texts in (found.training, found.held_out))
    assert training > 2_000_000
    assert 0.02 * training < held_out < 0.4 * training
    assert not set(found.training) & set(found.held_out) - {b""}  # empty __init__.py files are in both


def test_reading_again_gives_the_same_text():
    first = standard_library()
    standard_library.cache_clear()
    assert standard_library() == first


def test_a_file_s_part_depends_on_its_name_alone():
    files = {f"{i}.py": f"text {i}".encode() for i in range(200)}
    whole = split(files)
    half = split({name: text for name, text in files.items() if int(name[:-3]) % 2})
    assert set(half.held_out) <= set(whole.held_out)
    assert set(half.training) <= set(whole.training)
    assert len(whole.training) + len(whole.held_out) == 200
    assert 8 <= len(whole.held_out) <= 36  # of 200 draws at 0.1: 20 with a standard deviation of 4.2
    assert split(dict(reversed(files.items()))) == whole
    assert split(files | {"0.py": b"changed"}).sha256 != whole.sha256


def test_without_sources_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    standard_library.cache_clear()
    with pytest.raises(CorpusError, match="must hold the sources of Python's standard library"):
        standard_library()
    standard_library.cache_clear()


def test_folders_without_text_are_left_out(tmp_path, monkeypatch):
    for name in ("a/b.py", "test/c.py", "a/tests/d.py", "site-packages/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(corpus, "LEAST_BYTES", 1)
    standard_library.cache_clear()
    found = standard_library()
    standard_library.cache_clear()
    assert found.training + found.held_out == (b"a/b.py",)


def test_passages_are_pieces_of_held_out_files():
    files = {f"{i}.py": hashlib.sha256(bytes([i])).hexdigest().encode() for i in range(100)}
    text = split(files)
    pieces = passages(text, 30, 40)
    assert pieces == passages(text, 30, 40)
    assert pieces != passages(text, 30, 40, seed=1)
    assert all(len(piece) == 40 and any(bytes(piece) in file for file in text.held_out) for piece in pieces)
    with pytest.raises(CorpusError, match="length=65 must be at most"):
        passages(text, 1, 65)
