"""Label maps that other people made of real scans, stored sagittally and obliquely, on axes of our order."""

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import REAL_CT, needs_real_ct

from cspine_utils.nifti import check_placement, describe_mask, flips_by_hu, read_aligned, read_mask, write_mask
from cspine_utils.volume import AXIS_CODES, Grid, Volume

VERSE, LUMBAR = REAL_CT / "verse-mask-pir", REAL_CT / "lumbar-mask-pir"
L3, T9_TO_L5 = 22, tuple(range(16, 25))


def upright_grid(path) -> Grid:
    """The grid of a stored file with its axes in the order of our volumes; nibabel does the turning."""
    image = nib.load(path)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(AXIS_CODES))
    upright = image.as_reoriented(turn)
    return Grid(upright.shape, upright.affine)


@needs_real_ct("verse-mask-pir")
def test_every_centroid_stays_on_its_own_label():
    """VerSe's centroids are voxel indices (X, Y, Z) along the axes that the first entry of the JSON names: P, I, R."""
    path = VERSE / "sub-verse004_seg-vert_msk.nii.gz"
    header, *centroids = json.loads((VERSE / "sub-verse004_seg-subreg_ctd.json").read_text())
    image = nib.load(path)
    assert tuple(header["direction"]) == nib.aff2axcodes(image.affine) == ("P", "I", "R")
    indices = np.array([[point[axis] for axis in "XYZ"] for point in centroids])
    labels = [point["label"] for point in centroids]
    assert tuple(labels) == T9_TO_L5
    stored = np.asarray(image.dataobj)
    assert [stored[tuple(index)] for index in np.rint(indices).astype(int)] == labels, "on the stored grid"

    grid = upright_grid(path)
    mask = read_mask(path, grid)
    assert mask.dtype == np.uint8 and nib.aff2axcodes(grid.affine) == AXIS_CODES
    in_patient_mm = nib.affines.apply_affine(image.affine, indices)
    moved = nib.affines.apply_affine(np.linalg.inv(grid.affine), in_patient_mm)
    assert [int(mask[tuple(index)]) for index in np.rint(moved).astype(int)] == labels, "on ours"
    assert (np.diff(moved[:, 0]) > 0).all(), "T9 to L5: head to feet along d"
    for label in T9_TO_L5:
        assert np.count_nonzero(mask == label) == np.count_nonzero(stored == label)
    report = describe_mask(path, grid)
    assert (report.shape, report.codes, report.labels, report.problem) == ((161, 338, 61), "PIR", T9_TO_L5, None)


@needs_real_ct("verse-mask-pir")
def test_an_oblique_mask_is_written_and_read_again(tmp_path):
    path = VERSE / "sub-verse004_seg-vert_msk.nii.gz"
    grid = upright_grid(path)
    mask = read_mask(path, grid)
    write_mask(tmp_path / "m.nii.gz", mask, grid)
    assert nib.aff2axcodes(nib.load(tmp_path / "m.nii.gz").affine) == ("L", "A", "S")
    assert np.array_equal(read_mask(tmp_path / "m.nii.gz", grid), mask)
    assert np.array_equal(read_mask(tmp_path / "m.nii.gz", nib.load(path)), np.asarray(nib.load(path).dataobj))


@needs_real_ct("lumbar-mask-pir")
def test_ct_and_both_masks_of_one_frame():
    ct = LUMBAR / "sub-ct_label-22_ct.nii.gz"
    grid = upright_grid(ct)
    volume = Volume(read_aligned(ct, grid), grid.affine)
    stored = nib.load(ct)
    assert volume.hu.dtype == np.int16 and volume.shape == (47, 73, 73)
    # P, I, R -> I, P, L: the first two axes change places, the third is turned round.
    assert np.array_equal(volume.hu, np.asarray(stored.dataobj).transpose(1, 0, 2)[:, :, ::-1])
    vertebrae = read_mask(LUMBAR / "sub-ct_seg-vert_label-22_msk.nii.gz", volume)
    parts = read_mask(LUMBAR / "sub-ct_seg-subreg_label-22_msk.nii.gz", volume)
    for name, mask in (("vert", vertebrae), ("subreg", parts)):
        image = nib.load(LUMBAR / f"sub-ct_seg-{name}_label-22_msk.nii.gz")
        assert np.array_equal(mask, np.asarray(image.dataobj).transpose(1, 0, 2)[:, :, ::-1])
    assert set(np.unique(vertebrae)) == {0, 21, L3, 23} and set(np.unique(parts)) == {0, *range(41, 51)}
    check_placement(volume, vertebrae, labels=[L3])
    means = flips_by_hu(volume, vertebrae, labels=[L3])
    print("\n" + means.round().to_string())
    as_stored = np.asarray(nib.load(LUMBAR / "sub-ct_seg-vert_label-22_msk.nii.gz").dataobj) == L3
    assert (
        means["as placed"] == pytest.approx(np.asarray(stored.dataobj)[as_stored].mean()) == pytest.approx(244, abs=1)
    )
    assert means.drop("as placed").max() == pytest.approx(192, abs=1), "the best flip, left to right"
