import json
import os
import subprocess
import sys
import time

import by_name
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import ROOT, neck_mask, neck_volume, patient_volume, write_label_file, write_series

from cspine_utils import parallel, screening
from cspine_utils.errors import DatasetError
from cspine_utils.rsna import RsnaDataset
from cspine_utils.screening import cohort
from cspine_utils.screening.study import _in_words, look_at
from cspine_utils.volume import Volume


def look(dataset, how=look_at, *, client=None, workers=0, resume=None):
    """A survey with another way to look at each study."""
    return cohort._survey(dataset, how, client=client, workers=workers, resume=resume, progress=False)


def test_survey_says_what_the_headers_and_the_label_map_say(rsna_folder):
    table = screening.survey(RsnaDataset(rsna_folder), progress=False)
    assert table.index.name == "study" and list(table.columns) == list(screening.SURVEY_COLUMNS)
    assert table["direction"].tolist() == ["head -> feet", "feet -> head", "head -> feet", "head -> feet"]
    assert table["has_mask"].tolist() == [True] * 3 + [False]
    assert table["mask"].tolist() == ["fits"] * 3 + ["none"]
    assert table["labels"].tolist() == ["", "C5", "", ""] and table["boxes"].tolist() == [0, 2, 0, 0]
    second = table.iloc[1].drop(["z_first_mm", "z_last_mm"]).dropna().to_dict()
    lengths = {"pixel_mm": 0.6, "pixel_rows_mm": 0.7, "step_mm": 1.5, "step_min_mm": 1.5, "step_max_mm": 1.5}
    for name, value in (lengths | {"thickness_mm": 2.0, "tilt_degrees": 0.0}).items():
        assert second.pop(name) == pytest.approx(value, abs=1e-5), name
    assert second == {
        "verdict": "use", "reason": "", "ct": "use", "mask": "fits", "files": 12, "left_out": 0, "first_number": 1,
        "last_number": 12, "direction": "feet -> head", "orientation": "axial", "rows": 9, "columns": 11,
        "transfer_syntax": "Explicit VR Little Endian", "has_mask": True, "mask_shape": "11 x 9 x 12",
        "mask_levels": "C1-C7, T1", "labels": "C5", "boxes": 2,
    }  # fmt: skip
    assert table["z_first_mm"].tolist() == pytest.approx([77, 77 - 11 * 1.5, 77, 77])
    assert table["z_last_mm"].tolist() == pytest.approx([77 - 11 * 1.5, 77, 77 - 11 * 1.5, 77 - 11 * 1.5])
    assert table.loc[table["has_mask"], "mask_shape"].notna().all() and pd.isna(table["mask_shape"].iloc[3])


def test_vertebrae_in_words():
    assert _in_words((3, 1, 2, 7, 8, 9, 11, 25)) == "C1-C3, C7, T1-T2, T4, label 25"
    assert _in_words(()) == ""


def write_positions(folder, z_mm, **options):
    """A series whose slice i lies at z_mm[i], in the order of the file numbers."""
    paths = write_series(folder, patient_volume((len(z_mm), 9, 11)), study_uid=folder.name, **options)
    for path, z in zip(paths, z_mm, strict=True):
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient[2] = z
        dataset.save_as(path)


def test_uneven_steps_are_measured_and_repairable(rsna_folder):
    """A real study has steps from 0.76 to 1.24 mm where 1 mm is meant."""
    dataset = RsnaDataset(rsna_folder)
    folder = dataset.series_dir(dataset.studies[3])
    gaps = [1.0, 0.76, 1.24, 1.0, 1.0, 0.9, 1.1, 1.0, 1.0, 1.0, 1.0]
    write_positions(folder, 50 - np.cumsum([0, *gaps]))
    row = screening.survey(dataset, progress=False).iloc[3]
    assert (row["step_mm"], row["step_min_mm"], row["step_max_mm"]) == pytest.approx((1.0, 0.76, 1.24))
    assert (row["verdict"], row["ct"], row["mask"]) == ("repair", "repair", "none")
    assert "0.760" in row["reason"] and "1.240" in row["reason"] and "resample_uneven=True" in row["reason"]
    assert row["files"] == 12 and row["direction"] == "head -> feet"


def test_numbers_that_do_not_follow_the_patient(rsna_folder):
    dataset = RsnaDataset(rsna_folder)
    folder = dataset.series_dir(dataset.studies[0])
    (folder / "3.dcm").rename(folder / "x")
    (folder / "4.dcm").rename(folder / "3.dcm")
    (folder / "x").rename(folder / "4.dcm")
    for path in dataset.series_dir(dataset.studies[3]).iterdir():
        path.rename(path.with_name(f"IM-{path.stem}.dcm"))
    table = screening.survey(dataset, progress=False)
    assert table["direction"].tolist()[::3] == ["not in order", "not numbered"]
    assert table["verdict"].tolist() == ["use"] * 4 and pd.isna(table["first_number"].iloc[3])


def test_label_maps_that_do_not_fit(rsna_folder):
    dataset = RsnaDataset(rsna_folder)
    half_off, short, not_judged, _ = dataset.studies
    image = nib.load(dataset.mask_path(half_off))
    affine = image.affine.copy()
    affine[0, 3] += 0.3  # half of 0.6 mm
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), dataset.mask_path(half_off))
    volume = patient_volume((12, 9, 11), seed=1)
    write_label_file(dataset.mask_path(short), neck_mask((12, 9, 11))[:11], Volume(volume.hu[:11], volume.affine))
    cut = dataset.series_dir(not_judged) / "5.dcm"
    cut.write_bytes(cut.read_bytes()[:-30])
    table = screening.survey(dataset, progress=False)
    assert table["mask"].tolist() == ["wrong", "wrong", "not judged", "none"]
    assert table["verdict"].tolist() == ["repair", "repair", "reject", "use"]
    assert table["ct"].tolist() == ["use", "use", "reject", "use"]
    assert table["mask_shape"].tolist()[:2] == ["11 x 9 x 12", "11 x 9 x 11"]
    for name in (half_off, short):
        assert f"{name}.nii" in table.loc[name, "reason"]
    assert screening.usable(table) == [half_off, short, dataset.studies[3]], "their CT is fine"
    with pytest.raises(DatasetError, match=f"with a label map.*{half_off}"):
        screening.usable(table, with_mask=True)


def test_bad_studies_are_listed_and_the_survey_goes_on(rsna_folder, volume):
    dataset = RsnaDataset(rsna_folder)
    gap, text, absent, good = dataset.studies
    (dataset.series_dir(gap) / "4.dcm").unlink()
    (dataset.series_dir(text) / "99.dcm").write_text("no DICOM")
    (dataset.series_dir(good) / "Thumbs.db").write_text("no DICOM")
    dataset.series_dir(absent).rename(rsna_folder / "elsewhere")
    for path in dataset.series_dir(good).glob("*.dcm"):
        path.unlink()
    write_series(dataset.series_dir(good), volume, first_number=2, study_uid=good)
    table = screening.survey(dataset, progress=False)
    assert table["verdict"].tolist() == ["reject", "reject", "reject", "use"]
    for study, words in ((gap, "1 slice(s) missing"), (text, "99.dcm"), (absent, "no such folder")):
        assert words in table.loc[study, "reason"] and "What to do:" in table.loc[study, "reason"]
    assert table.loc[good, ["first_number", "last_number", "files", "left_out"]].tolist() == [2, 8, 7, 1]
    assert table.loc[good, "reason"] == ""
    assert table.loc[gap, ["files", "step_mm", "step_max_mm"]].tolist() == pytest.approx([11, 1.5, 3.0])
    assert table.loc[absent, "labels"] == "" and pd.isna(table.loc[absent, "files"])


def test_a_file_cut_short_is_seen_without_reading_pixels(tmp_path):
    root, study = tmp_path / "rsna", "1.2.826.0.1.3680043.11"
    paths = write_series(root / "train_images" / study, patient_volume((4, 40, 50)), study_uid=study)
    content = paths[2].read_bytes()
    (root / "segmentations").mkdir()
    (root / "train.csv").write_text("StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n" + study + ",0" * 8 + "\n")
    (root / "train_bounding_boxes.csv").write_text("StudyInstanceUID,x,y,width,height,slice_number\n")
    for kept, verdict in ((len(content), "use"), (len(content) - 20, "reject")):
        paths[2].write_bytes(content[:kept])
        row = screening.survey(RsnaDataset(root), progress=False).iloc[0]
        assert row["verdict"] == verdict
    assert "3.dcm" in row["reason"] and "cut short" in row["reason"] and "40 x 50" in row["reason"]


def test_readable_pairs_go_on_past_damaged_ones(rsna_folder):
    dataset = RsnaDataset(rsna_folder)
    damaged, good, foreign, no_mask = dataset.studies
    dataset.mask_path(damaged).write_text("not a label map")
    dataset.mask_path(foreign).write_bytes(
        write_label_file(rsna_folder / "m.nii", neck_mask(), patient_volume()).read_bytes()
    )
    failures = {}
    pairs = list(screening.read_pairs(dataset, dataset.studies, failures))
    assert [study for study, _, _ in pairs] == [good]
    _, volume, mask = pairs[0]
    assert np.array_equal(mask, neck_mask((12, 9, 11))) and np.array_equal(volume.hu, neck_volume(seed=1).hu)
    assert list(failures) == [damaged, foreign, no_mask]
    for study, words in ((damaged, "cannot be read"), (foreign, "the CT's own grid"), (no_mask, "no label map")):
        assert words in failures[study]
    assert screening.example(dataset, dataset.studies)[0] == good
    with pytest.raises(DatasetError, match="among 2 studies.*mend the first.*cannot be read"):
        screening.example(dataset, [damaged, foreign])


def test_usable_studies_or_the_first_reason(rsna_folder):
    dataset = RsnaDataset(rsna_folder)
    (dataset.series_dir(dataset.studies[0]) / "4.dcm").unlink()
    table = screening.survey(dataset, progress=False)
    assert screening.usable(table) == dataset.studies[1:]
    assert screening.usable(table, with_mask=True) == dataset.studies[1:3]
    with pytest.raises(DatasetError, match="none of them usable.*1 slice.s. missing"):
        screening.usable(table.iloc[:1])
    with pytest.raises(DatasetError, match="none of them usable with a label map.*segmentations"):
        screening.usable(table.iloc[3:], with_mask=True)


def test_the_funnel_counts_each_study_out_once():
    rows = [("use", "fits")] * 5 + [("use", "none")] * 4 + [("use", "wrong")] * 2 + [("repair", "none")]
    rows += [("repair", "fits")] + [("reject", "not judged")] * 3 + [("reject", "none")]
    table = pd.DataFrame(rows, columns=["ct", "mask"], index=[f"s{i}" for i in range(len(rows))])
    found = screening.funnel(table.assign(reason=""))
    assert found["studies"].tolist() == [17, 13, 11, 7, 5] and found["left_out"].tolist() == [0, 4, 2, 4, 2]
    assert found["why"].iloc[1:].str.len().min() > 10
    assert screening.usable(table.assign(reason=""), with_mask=True) == ["s0", "s1", "s2", "s3", "s4"]


def test_mirrored_label_maps_are_left_out_with_a_reason(tmp_path, rsna_folder):
    """Centred on x = 0, a mask with x negated lies on the very grid of the CT: only the bone under it tells."""
    dataset = RsnaDataset(rsna_folder)
    shape = (12, 40, 40)
    mask = np.zeros(shape, np.uint8)
    mask[1:11, 10:25, 4:16] = 1 + np.arange(10)[:, None, None] % 7
    hu = np.where(mask > 0, 500, 20).astype(np.int16)
    affine = np.array([[0, 0, -0.6, 0.3 * 39], [0, -0.7, 0, 8], [-1.5, 0, 0, 77], [0, 0, 0, 1]])
    volume = Volume(hu, affine)
    for name, labels in zip(dataset.studies, (mask, mask[:, :, ::-1]), strict=False):
        for path in dataset.series_dir(name).iterdir():
            path.unlink()
        write_series(dataset.series_dir(name), volume, study_uid=name)
        write_label_file(dataset.mask_path(name), labels, volume)
    good, mirrored = dataset.studies[:2]
    assert screening.survey(dataset, progress=False)["mask"].tolist()[:2] == ["fits", "fits"], "by headers they do"
    failures = {}
    assert [s for s, _, _ in screening.read_pairs(dataset, [good, mirrored], failures)] == [good]
    assert list(failures) == [mirrored] and "20 HU under the labels" in failures[mirrored]


WORDS = ("DOE^JANE", "19710203", "Ward 7 North", "SECRET-4711")


def plant(path):
    """Names and dates in every text of a header that geometry does not need."""
    dataset = pydicom.dcmread(path)
    for keyword, vr in (
        ("PatientName", 0), ("PatientBirthDate", 1), ("PatientID", 3), ("OtherPatientIDs", 3), ("StudyDescription", 2),
        ("SeriesDescription", 2), ("InstitutionName", 2), ("ReferringPhysicianName", 0), ("AccessionNumber", 3),
        ("StudyDate", 1), ("ImageComments", 0), ("StationName", 2), ("ProtocolName", 2), ("DeviceSerialNumber", 3),
        ("Manufacturer", 2), ("ConvolutionKernel", 2), ("PatientComments", 0), ("StudyID", 3), ("OperatorsName", 0),
    ):  # fmt: skip
        setattr(dataset, keyword, WORDS[vr])
    dataset.save_as(path)


def test_nothing_but_geometry_reaches_the_table(rsna_folder, tmp_path):
    dataset = RsnaDataset(rsna_folder)
    for path in (rsna_folder / "train_images").rglob("*.dcm"):
        plant(path)
    good, spacing, bits, cut = dataset.studies
    syntax = b"1.2.840.10008.1.2.1\0"
    for name, old, new in (
        (spacing, b"0.7\\0.6 ", b"JANE DOE"),
        (bits, b"MONOCHROME2 ", b"JANE DOE    "),
        (bits, syntax, b"JANE DOE".ljust(len(syntax))),
    ):
        path = dataset.series_dir(name) / "5.dcm"
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))
    path = dataset.series_dir(cut) / "5.dcm"
    path.write_bytes(path.read_bytes()[:-60])
    table = look(dataset, resume=tmp_path / "rows")
    assert table["verdict"].tolist()[0] == "use" and (table["reason"] != "").tolist()[1:] == [True, True, True]
    written = table.to_csv() + (tmp_path / "rows").read_text()
    for word in (*WORDS, "JANE", "DOE"):
        assert word not in written
    assert good in written


@pytest.fixture(scope="module")
def client():
    import dask
    from distributed import Client, LocalCluster

    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as one:
            yield one


@pytest.fixture
def mixed(rsna_folder):
    """Good, repairable, rejected and absent studies."""
    dataset = RsnaDataset(rsna_folder)
    first, _, third, fourth = dataset.studies
    (dataset.series_dir(first) / "4.dcm").unlink()
    dataset.mask_path(third).write_bytes(dataset.mask_path(third).read_bytes()[:-50])
    dataset.series_dir(fourth).rename(rsna_folder / "elsewhere")
    return dataset


def test_the_same_rows_on_any_number_of_workers_and_on_dask(mixed, client):
    alone = screening.survey(mixed, workers=0, progress=False)
    assert alone["verdict"].tolist() == ["reject", "use", "repair", "reject"]
    for options in ({"workers": 1}, {"workers": 2}, {"client": client}, {}):
        pd.testing.assert_frame_equal(screening.survey(mixed, progress=False, **options), alone)


@pytest.mark.parametrize("where", ["one process", "two processes", "dask"])
def test_a_study_that_kills_its_worker_becomes_a_row(rsna_folder, client, where):
    dataset = RsnaDataset(rsna_folder)
    expected = look(dataset)
    options = {"one process": {"workers": 1}, "two processes": {"workers": 2}, "dask": {"client": client}}[where]
    table = look(dataset, by_name.look_and_die_of_12, **options)
    others = [s for s in dataset.studies if not s.endswith(".12")]
    pd.testing.assert_frame_equal(table.loc[others], expected.loc[others])
    row = table.loc[dataset.studies[1]]
    assert row["verdict"] == "reject" and "ended" in row["reason"] and "What to do" in row["reason"]
    assert row["labels"] == "C5" and row["boxes"] == 2 and row["mask"] == "not judged"
    if where != "dask":
        assert "SIGKILL" in row["reason"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unexpected_exception_becomes_a_row(rsna_folder, workers):
    dataset = RsnaDataset(rsna_folder)
    table = look(dataset, by_name.look_and_raise_at_12, workers=workers)
    assert table["verdict"].tolist() == ["use", "reject", "use", "use"]
    assert "KeyError in by_name.py" in table["reason"].iloc[1] and "DOE" not in table["reason"].iloc[1]


def looked_at(root):
    log = root / "log"
    return log.read_text().split() if log.exists() else []


def test_rows_that_are_there_are_not_read_again(mixed, tmp_path):
    there = tmp_path / "deep" / "rows.jsonl"
    first = look(mixed, by_name.look_and_log, resume=there)
    assert sorted(looked_at(mixed.root)) == sorted(mixed.studies[:3])
    again = look(mixed, by_name.look_and_log, resume=there)
    assert len(looked_at(mixed.root)) == 3, "nothing was read"
    pd.testing.assert_frame_equal(again, first)
    pd.testing.assert_frame_equal(first, look(mixed))


def touch(path):
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("what", ["time", "size", "name", "new file", "label map", "no label map", "label", "version"])
def test_a_changed_study_is_read_again(rsna_folder, tmp_path, what, monkeypatch):
    dataset = RsnaDataset(rsna_folder)
    name = dataset.studies[1]
    look(dataset, by_name.look_and_log, resume=tmp_path / "rows")
    (rsna_folder / "log").unlink()
    file = dataset.series_dir(name) / "7.dcm"
    if what == "time":
        touch(file)
    elif what == "size":
        file.write_bytes(file.read_bytes()[:-40])
    elif what == "name":
        file.rename(file.with_name("77.dcm"))
    elif what == "new file":
        (file.parent / "README").write_text("hello")
    elif what == "label map":
        touch(dataset.mask_path(name))
    elif what == "no label map":
        dataset.mask_path(name).unlink()
    elif what == "label":
        dataset.labels.loc[name, "C1"] = 1
    else:
        monkeypatch.setattr("cspine_utils.__version__", "0.0.0")
    again = look(dataset, by_name.look_and_log, resume=tmp_path / "rows")
    assert looked_at(rsna_folder) == (dataset.studies if what == "version" else [name])
    pd.testing.assert_frame_equal(again, look(dataset))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_goes_while_the_survey_runs(rsna_folder, tmp_path, monkeypatch, workers):
    dataset = RsnaDataset(rsna_folder)
    gone = dataset.series_dir(dataset.studies[2])
    gone.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(RsnaDataset, "series_dir", lambda self, study: self.root / "train_images" / study)
    for _ in range(2):
        table = look(dataset, workers=workers, resume=tmp_path / "rows")
        assert table["verdict"].tolist() == ["use", "use", "reject", "use"]
        assert "no such folder" in table["reason"].iloc[2]


def test_killed_in_the_middle_and_called_again(rsna_folder, tmp_path):
    dataset, there = RsnaDataset(rsna_folder), tmp_path / "rows"
    script = (
        "import sys, by_name; from cspine_utils.rsna import RsnaDataset; from cspine_utils.screening import cohort\n"
        "cohort._survey(RsnaDataset(sys.argv[1]), by_name.look_slowly, client=None, workers=0, resume=sys.argv[2],"
        " progress=False)"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen([sys.executable, "-c", script, str(rsna_folder), str(there)], env=env)
    deadline = time.monotonic() + 60
    while not (there.exists() and there.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = [json.loads(line)["key"] for line in there.read_text().splitlines()]
    assert 2 <= len(done) < 4
    with open(there, "ab") as file:
        file.write(b'{"key": "1.2.826.0.1.3680043.14", "mark": "half a li')
    (rsna_folder / "log").unlink()
    table = look(dataset, by_name.look_and_log, resume=there)
    assert sorted(looked_at(rsna_folder) + done) == sorted(dataset.studies), "each once, none twice"
    pd.testing.assert_frame_equal(table, look(dataset))
    assert len(there.read_text().splitlines()) == 4


def test_a_killed_worker_is_tried_again_at_the_next_call(rsna_folder, tmp_path):
    dataset = RsnaDataset(rsna_folder)
    table = look(dataset, by_name.look_and_die_of_12, workers=1, resume=tmp_path / "rows")
    assert table["verdict"].tolist() == ["use", "reject", "use", "use"]
    table = look(dataset, by_name.look_and_log, resume=tmp_path / "rows")
    assert table["verdict"].tolist() == ["use"] * 4
    assert looked_at(rsna_folder)[-1] == dataset.studies[1] and len(looked_at(rsna_folder)) == 4


def test_processes_where_they_pay(monkeypatch, rsna_folder):
    asked = []

    def each(function, items, *, workers, client):
        asked.append(workers)
        return ((item, function(item)) for item in items)

    monkeypatch.setattr(parallel, "each", each)
    monkeypatch.setattr(parallel, "processors", lambda: 3)
    screening.survey(RsnaDataset(rsna_folder), progress=False)
    monkeypatch.setattr(cohort, "_PAYS_FROM", 4)
    screening.survey(RsnaDataset(rsna_folder), progress=False)
    assert asked == [0, 3]


def test_progress_counts_studies(rsna_folder, tmp_path, capsys):
    screening.survey(RsnaDataset(rsna_folder), resume=tmp_path / "rows")
    assert "4/4" in capsys.readouterr().err
    screening.survey(RsnaDataset(rsna_folder), resume=tmp_path / "rows", progress=False)
    assert capsys.readouterr().err == ""
