import pytest

from cspine_utils.errors import ParameterError
from cspine_utils.journal import Journal


def test_what_was_written_is_there_again(tmp_path):
    path = tmp_path / "new" / "rows"
    with Journal(path) as journal:
        journal.add("a", "1", {"x": 0.1, "y": None, "z": "ä"})
        journal.add("b", "1", [2])
        journal.add("a", "2", {"x": 3})
        assert path.read_bytes().count(b"\n") == 3, "flushed as they come"
    with Journal(path) as journal:
        assert journal.value("a", "2") == {"x": 3} and journal.value("a", "1") is None, "the last one counts"
        assert journal.value("b", "1") == [2] and journal.value("c", "1") is None
        assert "a" in journal and "c" not in journal


@pytest.mark.parametrize("kept", range(1, 45, 4))
def test_a_line_cut_in_two_counts_for_nothing(tmp_path, kept):
    path = tmp_path / "rows"
    with Journal(path) as journal:
        journal.add("a", "1", "whole")
        journal.add("b", "1", "cut")
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(first + b"\n" + second[:kept])
    with Journal(path) as journal:
        assert journal.value("a", "1") == "whole" and "b" not in journal
        journal.add("b", "1", "again")
    with Journal(path) as journal:
        assert journal.value("b", "1") == "again" and journal.value("a", "1") == "whole"


@pytest.mark.parametrize("content", [b"StudyInstanceUID,C1\n1.2,0\n", b"{}\n", b"no line", b"[1]\n", b"\x00\xff"])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    with pytest.raises(ParameterError, match="another kind"):
        Journal(path)
    assert path.read_bytes() == content


def test_a_place_that_is_no_file(tmp_path):
    with pytest.raises(ParameterError, match="cannot be written"):
        Journal(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ParameterError, match="cannot be written"):
        Journal(tmp_path / "file" / "rows")
