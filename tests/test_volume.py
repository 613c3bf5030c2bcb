from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from conftest import patient_volume

from cspine_utils.volume import axis_permutation, describe_grid, grid_map, lps_to_ras

ALL_CODES = ["".join(letters) for order in permutations(("LR", "PA", "SI")) for letters in product(*order)]


def test_there_are_48_orientations():
    assert len(set(ALL_CODES)) == 48


@pytest.mark.parametrize("codes", ALL_CODES)
def test_axis_permutation_undoes_every_orientation(codes):
    volume = patient_volume()
    image = nib.Nifti1Image(volume.hu, volume.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    order, reversed_axes = axis_permutation(grid_map(turned.affine, volume.affine))
    back = np.flip(np.asarray(turned.dataobj).transpose(order), reversed_axes)
    assert np.array_equal(back, volume.hu)


def test_axis_permutation_refuses_other_grids():
    volume = patient_volume()
    rotated = volume.affine.copy()
    angle = np.radians(3)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    rotated[:3, :3] = turn @ rotated[:3, :3]
    scaled = volume.affine @ np.diag([1, 1.5, 1, 1])
    assert axis_permutation(grid_map(rotated, volume.affine)) is None
    assert axis_permutation(grid_map(scaled, volume.affine)) is None
    assert axis_permutation(np.full((4, 4), np.nan)) is None


def test_positions_and_spacing():
    volume = patient_volume()
    assert volume.spacing_mm == pytest.approx((1.5, 0.7, 0.6))
    # 2 slices down, 3 rows back, 4 columns to the left of the first voxel
    assert volume.position_mm((2, 3, 4)) == pytest.approx((31.5 - 4 * 0.6, 18.25 - 3 * 0.7, 77.0 - 2 * 1.5))


def test_lps_and_ras_differ_in_the_first_two_axes_only():
    assert (lps_to_ras(np.eye(4)) @ [10, 20, 30, 1]).tolist() == [-10, -20, 30, 1]


def test_describe_grid_says_what_a_reader_needs():
    volume = patient_volume()
    text = describe_grid(volume.shape, volume.affine)
    assert "7 x 9 x 11" in text and "1.500 x 0.700 x 0.600 mm" in text and "axes IPL" in text and "31.50" in text
    assert "undefined" in describe_grid((2, 2, 2), np.full((4, 4), np.nan))
