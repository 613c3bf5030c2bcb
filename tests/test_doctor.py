import subprocess
import sys

from conftest import ROOT

from cspine_utils import doctor

READY = {"version": (3, 11, 7), "free_bytes": 50e9, "memory_bytes": 16e9, "has_venv": True}


def test_a_ready_machine_gets_no_sentence():
    assert doctor.problems(**READY) == []


def test_each_missing_piece_gets_one_sentence_with_its_remedy():
    for change, words in (
        ({"version": (3, 9, 2)}, ["Python 3.9.2", "3.11", "install it"]),
        ({"version": (3, 12, 0)}, ["Python 3.12.0", "3.11"]),
        ({"free_bytes": 1.5e9}, ["Only 1.5 GB", "need 4 GB", "free some space"]),
        ({"memory_bytes": 2e9}, ["2.0 GB of memory", "larger machine"]),
        ({"has_venv": False}, ["virtual environments", "apt install python3.11-venv"]),
    ):
        sentences = doctor.problems(**READY | change)
        assert len(sentences) == 1 and all(word in sentences[0] for word in words), sentences
    assert len(doctor.problems(**READY | {"version": (3, 9, 2), "free_bytes": 0})) == 2


def test_a_compiler_is_only_missed_where_wheels_may_lack():
    assert doctor.notes(machine="x86_64", has_compiler=False) == []
    assert "gcc" in doctor.notes(machine="riscv64", has_compiler=False)[0]
    assert doctor.notes(machine="riscv64", has_compiler=True) == []


def test_it_runs_without_any_package():
    """As the Makefile runs it: before the environment exists, on a Python that has nothing installed."""
    run = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "cspine_utils" / "doctor.py")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "fine" in run.stdout


def test_make_stops_before_downloading_anything(tmp_path):
    """A Python of the wrong version: one sentence, exit code 2 of make, no environment begun."""
    fake = tmp_path / "python3.9"
    fake.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c \'import sys; sys.version_info = (3, 9, 2, "final", 0); '
        f'sys.argv = sys.argv[1:]; exec(open(sys.argv[0]).read())\' "$@"\n'
    )
    fake.chmod(0o755)
    run = subprocess.run(
        ["make", "-s", "course", f"PYTHON={fake}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0 and "Python 3.9.2 was found" in run.stderr
    assert not (tmp_path / "venv").exists()
