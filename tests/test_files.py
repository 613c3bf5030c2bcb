"""Files that are written all or nothing."""

import os
import subprocess
import sys

import pytest

from cspine_utils import files


@pytest.mark.parametrize("shared", [False, True])
def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path, shared):
    path = tmp_path / "a.json"
    path.write_text("old")
    with files.replacing(path, shared=shared) as temporary:
        temporary.write_text("new, ha")
        assert path.read_text() == "old" and temporary.parent == tmp_path
        assert (str(os.getpid()) in temporary.name) == shared
    assert path.read_text() == "new, ha" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError("no room"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_write_that_fails(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(type(error)), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_a_killed_write_leaves_the_old_file_and_the_next_one_takes_over(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    code = f"""
import os, pathlib
from cspine_utils import files
with files.replacing(pathlib.Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    files.write_text(path, "näh\r\n")
    assert path.read_bytes() == "näh\r\n".encode() and os.listdir(tmp_path) == ["a.json"]
