import hashlib
import subprocess
import sys

import pytest

from reducr._internal.files import file_checksum, remove_partial_files, replaced_atomically, write_text_atomically


def test_the_new_file_is_in_place_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "values.txt"
    write_text_atomically(path, "größe")
    assert path.read_bytes() == "größe".encode()
    assert [file.name for file in path.parent.iterdir()] == ["values.txt"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "values.txt"
    path.write_text("old")
    with replaced_atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_while_writing_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "values.txt"
    path.write_text("old")

    def crash():
        with replaced_atomically(path) as temporary:
            temporary.write_text("half of it")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        crash()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_nothing_is_an_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "values.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError, match="partial"), replaced_atomically(path):
        pass
    assert path.read_text() == "old"


def test_only_partial_files_of_killed_processes_are_removed(tmp_path):
    path = tmp_path / "seed_0" / "values.txt"
    write_text_atomically(path, "whole")
    code = f"""
import os, pathlib, reducr._internal.files
with reducr._internal.files.replaced_atomically(pathlib.Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(list(path.parent.iterdir())) == 2
    remove_partial_files(tmp_path)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text() == "whole"


def test_file_checksum_is_the_sha256_of_the_content(tmp_path):
    path = tmp_path / "content"
    path.write_bytes(b"reducr" * 100_000)
    assert file_checksum(path) == hashlib.sha256(b"reducr" * 100_000).hexdigest()
