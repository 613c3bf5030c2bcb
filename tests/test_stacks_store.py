"""Stores of prepared studies: what is in them, what keeps them consistent, and what is said when something is wrong."""

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import neck_mask, neck_volume
from stacks_studies import ARGS, contents, names, prepared

from cspine_utils import stacks
from cspine_utils.dicom import read_series
from cspine_utils.errors import ParameterError, StackError
from cspine_utils.nifti import read_mask
from cspine_utils.rsna import RsnaDataset
from cspine_utils.screening import read_pair


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
    assert stored.facts["settings"] == {"size": [8, 8], "count": 12, "field_mm": 5.0}
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
    row = stacks.prepare(dataset, store, field_mm=4.0, **ARGS | {"count": 23}).iloc[0]
    assert row["status"] == "skipped", "whoever did not ask for it does not get it from an earlier run"
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
