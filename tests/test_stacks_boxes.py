"""Boxes from DICOM files to the frames, and what they say about each voxel."""

import numpy as np
import pandas as pd
import pytest
import torch
from stacks_studies import ARGS, prepared

from cspine_utils import stacks
from cspine_utils.anatomy import TARGETS
from cspine_utils.rsna import RsnaDataset


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
                out[frame, row, column] = stored.labels[2 * frame, row, column]
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
