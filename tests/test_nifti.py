import gzip

import nibabel as nib
import numpy as np
import pytest
from conftest import neck_mask, patient_volume, write_label_file
from test_volume import ALL_CODES

from cspine_utils.errors import GridMismatch, MaskError
from cspine_utils.nifti import read_mask
from cspine_utils.volume import Volume


@pytest.mark.parametrize("codes", ALL_CODES)
def test_any_stored_orientation_lands_on_the_grid(tmp_path, volume, codes):
    mask = neck_mask()
    read = read_mask(write_label_file(tmp_path / "m.nii", mask, volume, codes), volume)
    assert read.dtype == np.uint8 and read.flags.c_contiguous
    assert np.array_equal(read, mask)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz"])
def test_stored_types(tmp_path, volume, dtype, name):
    assert np.array_equal(
        read_mask(write_label_file(tmp_path / name, neck_mask(), volume, dtype=dtype), volume), neck_mask()
    )


def test_oblique_grids_agree_too(tmp_path):
    volume = patient_volume()
    lean = np.radians(12)
    turn = np.array([[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]])
    affine = volume.affine.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    oblique = Volume(volume.hu, affine)
    assert np.array_equal(read_mask(write_label_file(tmp_path / "m.nii", neck_mask(), oblique), oblique), neck_mask())


def moved(axis, voxels):
    def change(affine):
        affine[:3, 3] += voxels * affine[:3, axis]

    return change


def mirrored(affine):
    affine[0, 3] *= -1
    affine[0, :3] *= -1


def stretched(affine):
    affine[:3, 0] *= 1.05  # 0.4 voxels at the far end of seven slices


@pytest.mark.parametrize("change", [moved(0, 0.5), moved(1, 0.5), moved(2, -1), mirrored, stretched])
def test_other_grids_are_refused_with_both_geometries(tmp_path, volume, change):
    affine = volume.affine.copy()
    change(affine)
    path = write_label_file(tmp_path / "m.nii", neck_mask(), Volume(volume.hu, affine))
    with pytest.raises(GridMismatch) as error:
        read_mask(path, volume)
    assert "m.nii" in str(error.value) and str(error.value).count("first voxel at RAS") == 2


def test_header_rounding_is_tolerated(tmp_path, volume):
    affine = volume.affine.copy()
    affine[:3, 3] += 0.02
    path = write_label_file(tmp_path / "m.nii", neck_mask(), Volume(volume.hu, affine))
    assert np.array_equal(read_mask(path, volume), neck_mask())


def test_one_slice_short(tmp_path, volume):
    path = write_label_file(tmp_path / "m.nii", neck_mask()[:-1], volume)
    with pytest.raises(GridMismatch, match="11 x 9 x 6.*7 x 9 x 11"):
        read_mask(path, volume)


def test_mask_of_another_study(tmp_path, volume):
    other = patient_volume()
    other.affine[:3, 3] = (-12.0, 40.0, 310.0)
    with pytest.raises(GridMismatch, match="this very study"):
        read_mask(write_label_file(tmp_path / "m.nii", neck_mask(), other), volume)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.float32(1.5), "whole numbers"),
        (np.int16(-1), "values from -1"),
        (np.int16(900), "to 900"),
        (np.float32(np.nan), "values from nan"),
    ],
)
def test_values_that_are_no_labels(tmp_path, volume, values, said):
    mask = neck_mask().astype(values.dtype)
    mask[3, 3, 3] = values
    nib.save(nib.Nifti1Image(mask, volume.affine), tmp_path / "m.nii")
    with pytest.raises(MaskError, match=said):
        read_mask(tmp_path / "m.nii", volume)


def test_files_that_are_no_label_map(tmp_path, volume):
    path = write_label_file(tmp_path / "m.nii.gz", neck_mask(), volume)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(MaskError, match="cannot be read"):
        read_mask(path, volume)
    (tmp_path / "text.nii").write_text("labels")
    with pytest.raises(MaskError, match="cannot be read"):
        read_mask(tmp_path / "text.nii", volume)
    with pytest.raises(MaskError, match="no such file"):
        read_mask(tmp_path / "absent.nii", volume)
    (tmp_path / "named_wrong.nii").write_bytes(gzip.compress(b"x"))
    with pytest.raises(MaskError):
        read_mask(tmp_path / "named_wrong.nii", volume)
    nib.save(nib.Nifti1Image(np.zeros((7, 9, 11, 2), np.uint8), volume.affine), tmp_path / "4d.nii")
    with pytest.raises(MaskError, match="three axes"):
        read_mask(tmp_path / "4d.nii", volume)
