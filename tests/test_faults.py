"""Every faulty file is refused in words or read rightly; and the runner notices each way of failing at that."""

import re
from pathlib import Path

import faults
import faults_child
import numpy as np
import pytest
from faults import EITHER, READ, REFUSED, SANE, Fault, Result, judge

NAMES = [fault.name for fault in faults.make_corpus(Path("unused"))[0]]


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    """Name of a fault -> what is wrong with the way it was met, or ""; one process reads all of them, once."""
    corpus = faults.make_corpus(tmp_path_factory.mktemp("good"))
    with faults.open_folder() as folder:
        results = faults.run(corpus, Path(folder))
        paths = faults.paths_of(corpus, Path(folder))
    return {fault.name: judge(fault, paths[fault.name], results[fault.name]) for fault in corpus[0]}


@pytest.mark.parametrize("name", NAMES)
def test_fault_is_met_properly(met, name):
    assert met[name] == ""


def test_every_fault_has_a_name_of_its_own():
    assert len(set(NAMES)) == len(NAMES) > 500


def empty(home: Path) -> Path:
    (home / "series").mkdir()
    return home / "series"


CASES = [Fault(name, "series", empty, good="series") for name in ("first", "second")]
GOOD = {"series": {"hu": np.zeros((2, 3, 4), np.int16), "affine": np.eye(4), "names": np.array(["1.dcm", "2.dcm"])}}


@pytest.mark.parametrize(
    ("reader", "outcome", "said"),
    [
        ("leaks", "leaks", r"leaks: ValueError: could not convert string.*faults_child\.py:\d+"),
        ("hangs", "hangs", "hangs: nothing after 0.5 s"),
        ("hangs for good", "hangs", "hangs: the process ended by SIGKILL"),
        ("eats", "memory", "memory: refused only after memory ran out"),
        ("grows", "refused", "took 4[0-9]{2} MB for a small file"),
        ("dies", "killed", "killed: the process ended by SIGSEGV"),
        ("leaves", "killed", "killed: the process ended by exit code 3"),
        ("vague", "refused", "does not say where"),
        ("talks", "refused", "a traceback was printed"),
    ],
)
def test_a_reader_that_fails_is_noticed_and_the_next_fault_is_read(tmp_path, reader, outcome, said):
    seconds = 0.5 if "hangs" in reader else 20.0
    results = faults.run((CASES, GOOD), tmp_path, reader=reader, seconds=seconds)
    paths = faults.paths_of((CASES, GOOD), tmp_path)
    assert list(results) == ["first", "second"]
    for fault in CASES:
        assert results[fault.name].outcome == outcome
        problem = judge(fault, paths[fault.name], results[fault.name])
        assert re.search(said, problem), problem


REFUSAL = "/x/5.dcm: found damage; expected none. What to do: look."


@pytest.mark.parametrize(
    ("expected", "result", "problem"),
    [
        (REFUSED, Result("", "refused", message=REFUSAL), ""),
        (EITHER, Result("", "refused", message=REFUSAL), ""),
        (SANE, Result("", "refused", message=REFUSAL), ""),
        (READ, Result("", "refused", message=REFUSAL), "refused"),
        (REFUSED, Result("", "refused", message=REFUSAL.replace("/x", "/y")), "does not say where"),
        (REFUSED, Result("", "refused", message=REFUSAL.replace("What to do", "")), "does not say where"),
        (REFUSED, Result("", "refused", message=REFUSAL.replace("5.dcm", "6.dcm")), "does not say '5.dcm'"),
        (REFUSED, Result("", "refused", message=REFUSAL + "x" * 3000), "3056 characters"),
        (REFUSED, Result("", "read", equal=True), "as if nothing"),
        (READ, Result("", "read", equal=True), ""),
        (READ, Result("", "read"), "other values"),
        (EITHER, Result("", "read"), "other values"),
        (SANE, Result("", "read"), ""),
        (SANE, Result("", "read", strange="spacing 0"), "but spacing 0"),
        (READ, Result("", "read", equal=True, strange="9.dcm neither"), "but 9.dcm"),
    ],
)
def test_judging(expected, result, problem):
    said = judge(Fault("", "series", empty, expected, says="5.dcm"), "/x", result)
    assert problem in said and bool(problem) == bool(said)


class Read:
    """What a reader might give back: by default what the good files hold."""

    def __init__(self, **changes):
        self.hu, self.affine = np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([2.0, 1, 1, 1])
        self.file_names, self.left_out = ("1.dcm", "2.dcm"), {}
        self.__dict__.update(changes)


@pytest.mark.parametrize(
    ("changes", "equal", "strange"),
    [
        ({}, True, ""),
        ({"hu": np.arange(24, dtype=np.int16).reshape(2, 3, 4)[::-1]}, False, "1.dcm, which is not damaged"),
        ({"hu": np.arange(24).reshape(2, 3, 4)}, True, "int64"),
        ({"hu": np.zeros((2, 4, 3), np.int16)}, False, "(2, 4, 3)"),
        ({"file_names": ("1.dcm",)}, True, "from 1 files"),
        ({"affine": np.diag([3.0, 1, 1, 1])}, False, ""),
        ({"affine": np.diag([np.nan, 1, 1, 1])}, False, "spacing"),
        ({"affine": np.diag([0, 1.0, 1, 1])}, False, "spacing"),
        ({"file_names": ("1.dcm", "9.dcm")}, True, "['2.dcm'] neither"),
        ({"file_names": ("1.dcm", "9.dcm"), "left_out": {"2.dcm": "one slice of another series"}}, True, ""),
        ({"file_names": ("1.dcm", "9.dcm"), "left_out": {"2.dcm": ""}}, True, "without reasons"),
    ],
)
def test_comparing_what_was_read(tmp_path, changes, equal, strange):
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).touch()
    good = {"hu": Read().hu, "affine": Read().affine, "names": np.array(["1.dcm", "2.dcm"])}
    job = {"kind": "series", "path": str(tmp_path), "damaged": "2.dcm"}
    is_equal, said = faults_child.compare(job, Read(**changes), good)
    assert is_equal == equal
    assert strange in said and bool(strange) == bool(said)
