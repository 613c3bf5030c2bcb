"""Stores of prepared studies: what is in them, what keeps them consistent, and what is said when something is wrong."""

import errno
import threading

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import neck_mask, neck_volume, write_label_file, write_series

from cspine_utils import stacks
from cspine_utils.anatomy import TARGETS
from cspine_utils.dicom import read_series
from cspine_utils.errors import ParameterError, StackError
from cspine_utils.nifti import read_mask
from cspine_utils.rsna import RsnaDataset
from cspine_utils.screening import read_pair
from cspine_utils.stacks import making
from cspine_utils.stacks import store as files

ARGS = {"size": 8, "count": 12, "progress": False}


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def test_fingerprint_tells_equal_data_from_other_data(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, store, studies=dataset.studies[:3], **ARGS)
    labels = dataset.labels.iloc[:3]
    relabelled = labels.copy()
    relabelled.iloc[0, 0] = 1
    fingerprints = [
        stacks.StackDataset(store, labels).fingerprint,
        stacks.StackDataset(store, labels.iloc[::-1]).fingerprint,
        stacks.StackDataset(store, labels.iloc[:2]).fingerprint,
        stacks.StackDataset(store, relabelled).fingerprint,
        stacks.StackDataset(store, labels, window="soft").fingerprint,
        stacks.StackDataset(store, labels, blank_mask=True).fingerprint,
        stacks.StackDataset(store, labels, evidence=True).fingerprint,
    ]
    assert len(set(fingerprints)) == 7
    assert stacks.StackDataset(store, labels.copy()).fingerprint == fingerprints[0]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def names(*studies):
    return {f"{study}.{ending}" for study in studies for ending in ("hu.npy", "mask.npy", "json")}


def test_store_gives_back_the_studys_stack(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    table = stacks.prepare(dataset, store, **ARGS)
    assert table["status"].tolist() == ["made", "made", "made", "skipped"]
    assert "no label map" in table["reason"].iloc[3]
    usable = dataset.labels[table["status"].isin(["made", "kept"]).to_numpy()]
    samples = stacks.StackDataset(store, usable)
    study = dataset.studies[1]  # stored feet -> head
    volume = read_series(dataset.series_dir(study))
    direct = stacks.six_channel(volume, read_mask(dataset.mask_path(study), volume), frames=6, size=8)
    x, y = samples[1]
    assert len(samples) == 3 and x.dtype == torch.float32 and y.tolist() == [0, 0, 0, 0, 1, 0, 0, 1]
    assert np.array_equal(x.numpy(), stacks.normalise(direct))
    assert len(x[:, -1].unique()) == len(np.unique(direct[:, -1])) > 3
    blank = stacks.StackDataset(store, usable, blank_mask=True)[1][0]
    assert torch.equal(blank[:, -1].unique(), x[:, -1].min()[None]) and torch.equal(blank[:, :5], x[:, :5])


def test_prepare_resumes_without_redoing(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, store, **ARGS)
    before = contents(store)
    first, second, third = (store / f"{s}.hu.npy" for s in dataset.studies[:3])
    kept = third.stat().st_mtime_ns
    first.unlink()
    second.write_bytes(before[second.name][:200])  # damaged
    assert set(before) == names(*dataset.studies[:3])
    table = stacks.prepare(dataset, store, **ARGS)
    assert table["status"].tolist() == ["made", "made", "kept", "skipped"]
    assert contents(store) == before and third.stat().st_mtime_ns == kept
    assert stacks.prepare(dataset, store, **ARGS | {"size": 9})["status"].iloc[0] == "made"


@pytest.mark.parametrize("ending", ["hu.npy", "mask.npy", "json"])
def test_a_damaged_store_is_said_when_loading(rsna_folder, store, ending):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, store, studies=dataset.studies[:1], **ARGS)
    samples = stacks.StackDataset(store, dataset.labels.iloc[:1])
    path = store / f"{dataset.studies[0]}.{ending}"
    content = path.read_bytes()
    heading = 46 if ending == "json" else 120
    damaged = [content[:-3], content[:40], b"", content[9:]] + [
        content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :] for at in range(heading) for bit in (1, 64)
    ]
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(StackError, match="delete its three files and run stacks.prepare again") as refusal:
            samples[0]
        assert path.name in str(refusal.value)
    path.write_bytes(damaged[0])
    assert stacks.prepare(dataset, store, studies=dataset.studies[:1], **ARGS)["status"].tolist() == ["made"]
    assert path.read_bytes() == content


def test_a_mirrored_label_map_does_not_enter_the_store(rsna_folder, store):
    """Its header lies on the CT's grid; only the bone under the labels tells."""
    dataset = RsnaDataset(rsna_folder)
    path = dataset.mask_path(dataset.studies[1])
    image = nib.load(path)
    turned = nib.Nifti1Image(np.asarray(image.dataobj)[::-1, ::-1].copy(), image.affine)
    path.unlink()
    nib.save(turned, path)
    table = stacks.prepare(dataset, store, studies=dataset.studies[:3], **ARGS)
    assert table["status"].tolist() == ["made", "failed", "made"]
    assert "flipped h and w" in table["reason"].iloc[1]


def test_prepare_notices_a_changed_source(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, store, studies=dataset.studies[:2], **ARGS)
    path = dataset.mask_path(dataset.studies[0])
    content = bytearray(path.read_bytes())
    path.write_bytes(content)  # same bytes, new time: a source that may have changed is read again
    table = stacks.prepare(dataset, store, studies=dataset.studies[:2], **ARGS)
    assert table["status"].tolist() == ["made", "kept"]


def test_one_bad_study_does_not_stop_the_cohort(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    next(dataset.series_dir(dataset.studies[0]).glob("5.dcm")).unlink()
    dataset.mask_path(dataset.studies[2]).write_text("not a label map")
    table = stacks.prepare(dataset, store, **ARGS)
    assert table["status"].tolist() == ["failed", "made", "failed", "skipped"]
    assert "1 slice(s) missing" in table["reason"].iloc[0] and "cannot be read" in table["reason"].iloc[2]
    assert set(contents(store)) == names(dataset.studies[1]), "nothing half-written is left"
    with pytest.raises(StackError, match=dataset.studies[0]):
        stacks.StackDataset(store, dataset.labels)


def test_two_sets_hold_every_usable_study_once_and_depend_on_the_seed_alone(rsna_folder, tmp_path):
    dataset = RsnaDataset(rsna_folder)
    train, validation, report = stacks.two_sets(dataset, tmp_path, size=8, validation_share=0.34, seed=1)
    usable = [study for study in dataset.studies if dataset.mask_path(study) is not None]
    assert sorted(train.studies + validation.studies) == sorted(usable) and len(validation) == 2
    assert (report["status"] == "made").sum() == len(usable) and (report["status"] == "skipped").sum() == 1
    again, _, report = stacks.two_sets(dataset, tmp_path, size=8, validation_share=0.34, seed=1)
    assert again.studies == train.studies and (report["status"] == "kept").sum() == len(usable)
    others = {
        tuple(stacks.two_sets(dataset, tmp_path, size=8, validation_share=0.34, seed=s)[0].studies) for s in range(8)
    }
    assert len(others) > 1


def test_odd_folders_are_listed_and_odd_settings_refused(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    for study, name in zip(dataset.studies, ("13.dcm", "notes.txt"), strict=False):
        (dataset.series_dir(study) / name).symlink_to("nowhere")
    studies = [dataset.studies[0], "1.2.3", dataset.studies[1]]
    table = stacks.prepare(dataset, store, studies=studies, **ARGS)
    assert table["status"].tolist() == ["failed", "failed", "made"]
    assert "a link that leads nowhere" in table["reason"].iloc[0] and "no study" in table["reason"].iloc[1]
    occupied = store / "file"
    occupied.write_text("")
    for options in ({"size": 0}, {"count": 1}, {"field_mm": -1.0}, {"size": None, "field_mm": 5.0}, {"out": occupied}):
        with pytest.raises(StackError):
            stacks.prepare(dataset, **{"out": store} | ARGS | options)
    with pytest.raises(ParameterError, match="'maybe'; expected 'skip' or 'whole'"):
        stacks.prepare(dataset, store, without_mask="maybe", **ARGS)


# ---------------------------------------------------------------------------- what is in a store


def test_files_say_what_they_are_made_of(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, store, field_mm=5.0, **ARGS)
    study = dataset.studies[1]
    volume, mask = read_pair(dataset, study)
    stored = stacks.open_study(store, study)
    hu, labels = stacks.resample_slices(volume, mask, 12, 8, 5.0)
    assert isinstance(stored.hu, np.memmap) and np.array_equal(stored.hu, hu) and np.array_equal(stored.labels, labels)
    geometry = stored.facts["geometry"]
    assert np.array_equal(stored.positions, stacks.cervical_slices(mask, 12))
    assert geometry["pixel_mm"] == pytest.approx([5 / 8, 5 / 8]) and geometry["source_shape"] == [12, 9, 11]
    assert geometry["slice_mm"] == pytest.approx(9 / 11 * 1.5) and np.allclose(geometry["source_affine"], volume.affine)
    place = geometry["rows"]["start"] + geometry["rows"]["step"] * 4  # the middle of the square
    shown = np.flatnonzero(((mask >= 1) & (mask <= 7)).any(axis=(0, 2)))
    assert place == pytest.approx((shown[0] + shown[-1] + 1) / 2)
    assert stored.facts["settings"] == {"size": [8, 8], "count": 12, "field_mm": 5.0, "without_mask": "skip"}
    assert stored.facts["study"] == study and stored.facts["notes"] == []


def test_frames_and_the_files_of_the_seed_are_the_stack(rsna_folder, store, tmp_path):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, store, studies=dataset.studies[:2], **ARGS | {"count": 210})
    study = dataset.studies[1]
    stack = stacks.six_channel(*read_pair(dataset, study), size=8)
    stored = stacks.open_study(store, study)
    assert len(stored) == 105 and np.array_equal(stored.stack(), stack)
    for window in stacks.WINDOWS:
        assert np.array_equal(stored.normalised(window), stacks.normalise(stack, window))
    paths = stacks.export_seed_layout(store, study, tmp_path / "seed")
    assert [path.name for path in paths] == [f"{study}_{n}.npy" for n in range(1, 210, 2)]
    assert sorted((tmp_path / "seed").iterdir()) == sorted(paths)
    for index, path in enumerate(paths):
        frame = np.load(path)
        assert frame.dtype == np.float64 and np.array_equal(frame, stack[index])
        assert np.array_equal(stored.frame(index), frame)
    x, _ = stacks.StackDataset(store, dataset.labels.iloc[[1]])[0]
    assert np.array_equal(x.numpy(), stacks.normalise(np.stack([np.load(path) for path in paths]).astype(np.float32)))
    with pytest.raises(StackError, match="run stacks.prepare for it"):
        stacks.export_seed_layout(store, "1.2.3", tmp_path / "seed")


def make_study(root, *, shape=(12, 9, 11), kept=slice(None), mask=None, feet_first=False, with_map=True, boxes=()):
    """One study, slices `kept` of `neck_volume`'s; boxes are (x, y, width, height, file number). C4 is fractured."""
    study = "1.2.826.0.1.3680043.77"
    whole = neck_volume(seed=4)
    hu, mask = whole.hu[kept], (neck_mask(shape) if mask is None else mask)[kept]
    volume = type(whole)(hu, whole.affine)
    write_series(root / "train_images" / study, volume, feet_first=feet_first, study_uid=study, series_uid=study + ".1")
    (root / "segmentations").mkdir(exist_ok=True)
    if with_map:
        write_label_file(root / "segmentations" / f"{study}.nii", mask, volume)
    levels = {f"C{level}": int(level == 4 and bool(boxes is not None)) for level in range(1, 8)}
    table = pd.DataFrame([{"StudyInstanceUID": study, "patient_overall": max(levels.values()), **levels}])
    table.to_csv(root / "train.csv", index=False)
    rows = [[study, *box] for box in boxes or ()]
    columns = ["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "train_bounding_boxes.csv", index=False)
    return RsnaDataset(root), study, volume, mask


def prepared(root, store, count=12, **options):
    """One study, made: (row of the report, Stored, volume, mask)."""
    asked = {name: options.pop(name) for name in ("without_mask", "field_mm") if name in options}
    dataset, study, volume, mask = make_study(root, **options)
    row = stacks.prepare(dataset, store, **ARGS | {"count": count} | asked).loc[study]
    return row, stacks.open_study(store, study) if row["status"] == "made" else None, volume, mask


def test_a_study_without_a_label_map_is_skipped_or_taken_whole(tmp_path, store):
    row, stored, _, _ = prepared(tmp_path, store, with_map=False)
    assert row["status"] == "skipped" and "no label map" in row["reason"] and stored is None
    dataset = RsnaDataset(tmp_path)
    row = stacks.prepare(dataset, store, without_mask="whole", field_mm=4.0, **ARGS | {"count": 23}).iloc[0]
    assert row["status"] == "made" and row["reason"] == "no label map: all slices and the whole field of view"
    stored, volume = stacks.open_study(store, dataset.studies[0]), neck_volume(seed=4)
    assert stored.facts["notes"] == [row["reason"]] and not stored.labels.any() and stored.hu.shape == (23, 8, 8)
    assert stored.positions.tolist() == np.arange(0, 11.5, 0.5).tolist()
    assert stored.facts["geometry"]["pixel_mm"] == pytest.approx([9 * 0.7 / 8, 11 * 0.6 / 8])
    between = volume.hu[4:6].mean(axis=0, dtype=np.float32)
    size = {"size": (8, 8), "mode": "bilinear", "antialias": True}
    expected = torch.nn.functional.interpolate(torch.from_numpy(between)[None, None], **size)[0, 0]
    assert np.abs(stored.hu[9] - expected.numpy()).max() <= 0.51
    assert stacks.prepare(dataset, store, without_mask="whole", field_mm=4.0, **ARGS | {"count": 23}).iloc[
        0
    ].tolist() == ["kept", row["reason"]]
    assert stored.evidence(["C4"]).shape == (12, 8, 8) and np.isnan(stored.evidence(["C4"])).all()


def test_an_empty_label_map_fails_by_name(tmp_path, store):
    mask = neck_mask((12, 9, 11))
    row, stored, _, _ = prepared(tmp_path, store, mask=np.where(mask == 8, mask, 0), without_mask="whole")
    assert row["status"] == "failed" and "labels [1, 2, 3, 4, 5, 6, 7]" in row["reason"] and not stored
    assert contents(store) == {}


@pytest.mark.parametrize("feet_first", [False, True])
def test_few_slices_in_either_order(tmp_path, store, feet_first):
    """12 slices become 210; the order of the files changes nothing."""
    row, stored, volume, mask = prepared(tmp_path, store, count=210, feet_first=feet_first)
    assert row.tolist() == ["made", ""]
    assert np.array_equal(stored.stack(), stacks.six_channel(volume, mask, size=8))
    levels = [int(frame[frame > 0].min()) for frame in stored.labels if frame.any()]
    assert levels == sorted(levels) and set(levels) == set(range(1, 8))


def test_necks_that_are_cut_off_say_so(tmp_path, store):
    (tmp_path / "low").mkdir()
    row, stored, _, mask = prepared(tmp_path / "low", store, kept=slice(3, None))  # C1 is gone, C2 partly
    assert mask[0].max() == 2 and row["status"] == "made"
    assert row["reason"] == "the label map shows no C1; the scan begins within C2"
    assert stored.positions[0] == 0
    (tmp_path / "high").mkdir()
    row, _, _, _ = prepared(tmp_path / "high", store, kept=slice(None, 9))
    assert row["reason"] == "the label map shows no C7; the scan ends within C6"


# ---------------------------------------------------------------------------- boxes


@pytest.mark.parametrize("feet_first", [False, True])
def test_boxes_lie_on_the_slices_and_pixels_of_their_files(tmp_path, store, feet_first):
    """Slice 5 of the volume is file 6, or file 7 of 12 where the files run feet -> head."""
    file_number = 7 if feet_first else 6
    boxes = [(2.0, 1.0, 3.0, 2.5, file_number)]
    row, stored, volume, mask = prepared(tmp_path, store, count=20, field_mm=6.0, feet_first=feet_first, boxes=boxes)
    ((place, x, y, width, height),) = stored.facts["boxes"]
    geometry = stored.facts["geometry"]
    assert np.interp(place, range(20), stored.positions) == pytest.approx(5, abs=1e-3)
    assert (width, height) == pytest.approx((3 * 0.6 * 8 / 6, 2.5 * 0.7 * 8 / 6), abs=1e-3)
    rows, columns = geometry["rows"], geometry["columns"]
    assert columns["start"] + columns["step"] * x == pytest.approx(2.0, abs=1e-3)
    assert rows["start"] + rows["step"] * y == pytest.approx(1.0, abs=1e-3)
    assert stored.facts["boxes_known"] and row["reason"] == ""
    assert [int(v) for v in np.unique(mask[5])] == [0, 3]


def brute_evidence(stored, boxes, mask_ids):
    """Voxel by voxel, from the volume's side: does the voxel's own place lie in a box, and is its label asked for?"""
    geometry = stored.facts["geometry"]
    out = np.zeros((len(stored), *stored.hu.shape[1:]), np.float32)
    for frame, row, column in np.ndindex(*out.shape):
        d = stored.positions[2 * frame]
        h = geometry["rows"]["start"] + geometry["rows"]["step"] * (row + 0.5)
        w = geometry["columns"]["start"] + geometry["columns"]["step"] * (column + 0.5)
        for x, y, width, height, number in boxes:
            inside = x <= w < x + width and y <= h < y + height and abs(d - (number - 1)) <= 0.5
            if inside and stored.labels[2 * frame, row, column] in mask_ids:
                out[frame, row, column] = 1
    return out


def test_evidence_is_what_lies_in_a_box_and_in_a_broken_vertebra(tmp_path, store):
    boxes = [(2.0, 1.0, 2.4, 1.6, 6), (3.0, 0.0, 9.0, 9.0, 7), (0.0, 0.0, 20.0, 20.0, 9), (1.0, 1.0, 3.0, 3.0, 40)]
    row, stored, _, mask = prepared(tmp_path, store, count=37, boxes=boxes)
    assert row["reason"] == "boxes on slices without a file: 40" and len(stored.facts["boxes"]) == 3
    for levels, ids in ((["C4"], {4}), (["C3", "C4"], {3, 4}), (["C6"], {6}), ([], set())):
        expected = brute_evidence(stored, boxes[:3], ids)
        assert np.array_equal(stored.evidence(levels), expected)
        assert (expected.sum() > 0) == (levels not in (["C6"], [])) or levels == ["C6"]
    labels = pd.DataFrame([[0, 0, 1, 1, 0, 0, 0, 1]], columns=list(TARGETS), index=[stored.study])
    plain, y = stacks.StackDataset(store, labels)[0]
    x, same = stacks.StackDataset(store, labels, evidence=True, blank_mask=True)[0]
    assert x.shape == (19, 7, 8, 8) and torch.equal(y, same) and x.dtype == torch.float32
    assert np.array_equal(x[:, 6].numpy(), brute_evidence(stored, boxes[:3], {3, 4})) and x[:, 6].sum() > 5
    assert torch.equal(x[:, :5], plain[:, :5]) and len(x[:, 5].unique()) == 1, "a blank mask hides no evidence"


def test_evidence_of_intact_studies_is_zero_and_of_others_unknown(rsna_folder, tmp_path, store):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, store, **ARGS)
    x, _ = stacks.StackDataset(store, dataset.labels.iloc[[0]], evidence=True)[0]
    assert not stacks.open_study(store, dataset.studies[0]).facts["boxes"] and torch.equal(x[:, 6], x[:, 6] * 0)
    root = tmp_path / "no_boxes"
    root.mkdir()
    row, stored, _, _ = prepared(root, store, boxes=())
    assert row["status"] == "made" and stored.facts["boxes_known"] is False
    x, _ = stacks.StackDataset(store, RsnaDataset(root).labels, evidence=True)[0]
    assert x[:, 6].isnan().all() and not x[:, :6].isnan().any()


def test_new_boxes_make_a_study_anew(rsna_folder, store):
    stacks.prepare(RsnaDataset(rsna_folder), store, **ARGS)
    fingerprint = stacks.StackDataset(store, RsnaDataset(rsna_folder).labels.iloc[:3]).fingerprint
    path = rsna_folder / "train_bounding_boxes.csv"
    path.write_text(path.read_text().replace("2.5,1.0", "2.5,1.5"))
    dataset = RsnaDataset(rsna_folder)
    assert stacks.prepare(dataset, store, **ARGS)["status"].tolist() == ["kept", "made", "kept", "skipped"]
    assert stacks.StackDataset(store, dataset.labels.iloc[:3]).fingerprint != fingerprint


# ---------------------------------------------------------------------------- what keeps it consistent


def test_processes_and_dask_make_the_same_bytes(rsna_folder, tmp_path):
    distributed = pytest.importorskip("distributed")
    dataset = RsnaDataset(rsna_folder)
    reports = [stacks.prepare(dataset, tmp_path / "here", **ARGS)]
    reports.append(stacks.prepare(dataset, tmp_path / "processes", workers=1, **ARGS))
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        reports.append(stacks.prepare(dataset, tmp_path / "dask", client=client, **ARGS))
    expected = contents(tmp_path / "here")
    assert len(expected) == 9
    for folder, report in zip(("processes", "dask"), reports[1:], strict=True):
        assert contents(tmp_path / folder) == expected and report.equals(reports[0])


def full_disk(monkeypatch, after):
    """Writing an array fails from the `after`-th on, when half of it is written."""
    real, calls = np.lib.format.write_array, []

    def write_array(file, array, **options):
        calls.append(None)
        if len(calls) > after:
            file.write(b"\x93NUMPY half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, array, **options)

    monkeypatch.setattr(np.lib.format, "write_array", write_array)


@pytest.mark.parametrize("after", [2, 3])
def test_a_full_disk_is_said_and_the_store_stays_consistent(rsna_folder, store, monkeypatch, after):
    dataset = RsnaDataset(rsna_folder)
    with monkeypatch.context() as patch:
        full_disk(patch, after)
        table = stacks.prepare(dataset, store, **ARGS)
    assert table["status"].tolist() == ["made", "failed", "failed", "skipped"]
    assert "found a full disk" in table["reason"].iloc[1] and "run stacks.prepare again" in table["reason"].iloc[1]
    assert set(contents(store)) == names(dataset.studies[0])
    assert stacks.prepare(dataset, store, **ARGS)["status"].tolist() == ["kept", "made", "made", "skipped"]
    before = contents(store)
    with monkeypatch.context() as patch:
        full_disk(patch, after)
        stacks.prepare(dataset, store, **ARGS | {"size": 9})
    assert set(contents(store)) == names(dataset.studies[0]), "nothing of the old settings beside the new ones"
    stacks.prepare(dataset, store, **ARGS)
    assert contents(store) == before
    with monkeypatch.context() as patch, pytest.raises(StackError, match="a full disk"):
        full_disk(patch, after)
        stacks.export_seed_layout(store, dataset.studies[0], store / "seed")
    assert len(list((store / "seed").iterdir())) == after


def test_a_study_that_became_unreadable_leaves_the_store(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, store, **ARGS)
    path = next(dataset.series_dir(dataset.studies[2]).glob("7.dcm"))
    path.write_bytes(path.read_bytes()[:-9])
    table = stacks.prepare(dataset, store, **ARGS)
    assert table["status"].tolist() == ["kept", "kept", "failed", "skipped"] and "7.dcm" in table["reason"].iloc[2]
    assert set(contents(store)) == names(*dataset.studies[:2])


def test_two_runs_at_once_share_the_work(rsna_folder, tmp_path, store, monkeypatch):
    """A run that finds another one at a study waits for it and takes what that one has made."""
    dataset = RsnaDataset(rsna_folder)
    study = dataset.studies[0]
    stacks.prepare(dataset, tmp_path / "other", studies=[study], **ARGS)
    store.mkdir()
    arrived, result, real = threading.Event(), [], making.locked

    def locked(folder, name):
        arrived.set()
        return real(folder, name)

    monkeypatch.setattr(making, "locked", locked)
    second = threading.Thread(
        target=lambda: result.append(stacks.prepare(dataset, store, studies=[study], workers=0, **ARGS))
    )
    with real(store, study):  # the first run
        half = store / f".{study}.hu.npy.part"
        half.write_bytes(b"half")
        second.start()
        assert arrived.wait(60)
        second.join(0.2)
        assert second.is_alive() and half.read_bytes() == b"half", "it waits and touches nothing"
        half.unlink()
        for path in (tmp_path / "other").glob("[!.]*"):
            (store / path.name).write_bytes(path.read_bytes())
    second.join(60)
    assert result[0]["status"].tolist() == ["kept"] and contents(store) == contents(tmp_path / "other")


def test_leftovers_of_a_killed_run_go(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    study = dataset.studies[0]
    store.mkdir()
    (store / f".{study}.mask.npy.part").write_bytes(b"half")
    (store / f".{study}.9.mask.npy.part").write_bytes(b"of a study whose name begins alike, being written")
    stacks.prepare(dataset, store, studies=[study], **ARGS)
    assert set(contents(store)) == names(study) | {f".{study}.9.mask.npy.part"}
    assert files.read_facts(store, study)["version"] == files.VERSION
