"""The comparison of readers in tests/bench: would it notice a wrong one, and does its table list all of them?"""

import sys
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "bench"))

import bench_io
import io_files
import io_report
from io_readers import READERS
from io_surveys import HEADER_READERS

SLICES, SIZE = 6, 64
TRUTH = io_files.neck(SLICES, SIZE)


@pytest.fixture(params=io_files.forms().values(), ids=lambda form: form.name)
def series(request, tmp_path):
    io_files.write_series(tmp_path / "series", request.param, slices=SLICES, size=SIZE)
    return request.param, tmp_path / "series"


def test_every_reader_reads_what_was_written_and_has_a_row(series):
    form, folder = series
    contest = bench_io.read_contest(form, folder, TRUTH, repeats=1)
    assert not contest.faults
    table = io_report.reading_table([contest])
    for reader in READERS:
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {reader.name} |"))
        assert ("not installed" in row) == (not reader.is_installed) and "cannot" not in row
    headers = bench_io.header_contest(form.name, [folder], repeats=1)
    assert not headers.faults
    assert set(headers.seconds) == {reader.name for reader in HEADER_READERS if reader.is_installed}


WRONG = {
    "slices the wrong way round": lambda hu: hu[::-1],
    "rows the wrong way round": lambda hu: hu[:, ::-1],
    "mirrored": lambda hu: hu[:, :, ::-1],
    "one voxel": lambda hu: hu + (np.arange(hu.size).reshape(hu.shape) == 77),
    "stored values": lambda hu: hu + 1024,
    "one slice short": lambda hu: hu[1:],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_reader_is_noticed(tmp_path, change):
    form, folder = io_files.forms()["explicit"], tmp_path / "series"
    io_files.write_series(folder, form, slices=SLICES, size=SIZE)
    wrong = replace(READERS[0], name="wrong", read=lambda *args: change(READERS[0].read(*args)))
    contest = bench_io.read_contest(form, folder, TRUTH, repeats=1, readers=(READERS[0], wrong))
    assert set(contest.faults) == {"wrong"} and contest.faults["wrong"].startswith("wrong")
    assert "wrong on explicit" in io_report.faults([contest])


def test_a_peer_that_fails_is_out_and_ours_may_not():
    def fail():
        raise RuntimeError("no such syntax")

    contest = bench_io.compete("x", {"ours": lambda: 1, "peer": fail}, lambda *_: "", files=1, repeats=2)
    assert set(contest.seconds) == {"ours"} and len(contest.seconds["ours"]) == 2
    assert "no such syntax" in contest.faults["peer"]
    with pytest.raises(RuntimeError):
        bench_io.compete("x", {"ours": fail}, lambda *_: "", files=1, repeats=1)


def test_wrong_positions_are_noticed(tmp_path):
    form, folder = io_files.forms()["thin"], tmp_path / "series"
    paths = io_files.write_series(folder, form, slices=SLICES, size=SIZE)
    paths[0].rename(tmp_path / "x")
    paths[1].rename(paths[0])
    (tmp_path / "x").rename(paths[1])
    assert bench_io.header_contest("thin", [folder], repeats=1, readers=HEADER_READERS[:1]).faults


def test_targets_are_judged_by_ratios_within_a_repeat():
    def contest(title, **seconds):
        names = {"ours": READERS[0].name, "sitk": "SimpleITK, names given", "sdl": "dicomsdl, careful"}
        return bench_io.Contest(title, 3, seconds={names[key]: value for key, value in seconds.items()})

    # Each repeat 1.4 times as long, though the medians alone would say 14.
    reading = contest("explicit", ours=[1, 10, 1], sitk=[1.4, 14, 1.4], sdl=[0.6, 6, 0.4])
    reading.peaks = {READERS[0].name: 2.3}
    judged = {what: (round(value, 2), met) for what, value, _, met in io_report.targets([reading], [])}
    assert list(judged.values()) == [(1.4, False), (1.67, True), (2.3, False)]


def test_series_is_what_it_says(series):
    form, folder = series
    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    assert {file.file_meta.TransferSyntaxUID for file in files} == {form.syntax}
    assert [float(file.ImagePositionPatient[2]) for file in files] == [bench_io.height_mm(n + 1) for n in range(SLICES)]
    assert len(files[0]) == (27 if form.thin else 94)
    if form.syntax == pydicom.uid.JPEGLosslessSV1:
        stream = next(pydicom.encaps.generate_frames(files[0].PixelData, number_of_frames=1))
        scan = stream.index(b"\xff\xda")
        assert stream[scan + 7] == 1, "the predictor of first-order prediction"


def test_hollow_studies_are_read_by_header_readers(tmp_path):
    folders = io_files.write_hollow_cohort(tmp_path, studies=2, slices=SLICES, size=SIZE)
    contest = bench_io.header_contest("2 studies", folders, 1, extra={"survey": bench_io.survey_job(tmp_path)})
    assert not contest.faults and contest.files == 2 * SLICES


def test_readme_takes_the_tables_between_its_marks(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    begin, end = "<!-- bench_io: begin -->", "<!-- bench_io: end -->"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(io_report, "README", readme)
    io_report.into_readme("new")
    assert readme.read_text() == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
