"""What is wrong with a label map's grid is said in words and numbers; what no grid can tell, the bone tells."""

import re
from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
from conftest import neck_mask, patient_volume, write_label_file
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from test_volume import ALL_CODES

from cspine_utils import phantom, placement
from cspine_utils.errors import GridMismatch, MaskError
from cspine_utils.nifti import check_placement, flips_by_hu, read_mask
from cspine_utils.placement import FLIP_MARGIN_HU, diagnose, match
from cspine_utils.volume import Grid, Volume

# The CT: 7 x 9 x 11 voxels of 1.5 x 0.7 x 0.6 mm, first voxel at RAS (31.5, 18.25, 77).


def told(tmp_path, affine, shape=(7, 9, 11), codes="LAS", volume=None) -> str:
    """What the reader finds wrong with a label map that has this geometry."""
    volume = volume or patient_volume()
    path = write_label_file(
        tmp_path / "m.nii", np.ones(shape, np.uint8), Volume(np.zeros(shape, np.int16), affine), codes
    )
    with pytest.raises(GridMismatch) as error:
        read_mask(path, volume)
    message = str(error.value)
    assert "m.nii" in message and message.count("first voxel at RAS") == 2, "both geometries"
    return error.value.found.split(": grid ")[0]


def shifted(**voxels):
    affine = patient_volume().affine
    for name, amount in voxels.items():
        affine[:3, 3] += amount * affine[:3, "dhw".index(name)]
    return affine


@pytest.mark.parametrize("codes", ["LAS", "PIR", "IPL", "SRA"])
@pytest.mark.parametrize(
    ("voxels", "said"),
    [
        ({"d": 0.5}, "shifted by 0.50 voxel along d (0.75 mm towards the feet)"),
        ({"d": -0.5}, "shifted by 0.50 voxel along d (0.75 mm towards the head)"),
        ({"h": 0.5}, "shifted by 0.50 voxel along h (0.35 mm towards the back)"),
        ({"h": -0.25}, "shifted by 0.25 voxel along h (0.17 mm towards the front)"),
        ({"w": 0.5}, "shifted by 0.50 voxel along w (0.30 mm towards the left)"),
        ({"w": -2}, "shifted by 2.00 voxels along w (1.20 mm towards the right)"),
        (
            {"d": 1, "w": -0.5},
            "shifted by 1.00 voxel along d (1.50 mm towards the feet); "
            "shifted by 0.50 voxel along w (0.30 mm towards the right)",
        ),
    ],
)
def test_shifts(tmp_path, voxels, said, codes):
    assert told(tmp_path, shifted(**voxels), codes=codes) == said


@pytest.mark.parametrize(
    ("shape", "start", "said"),
    [
        ((6, 9, 11), {}, "1 slice short along d: 6 where the CT has 7 (1 missing at the feet)"),
        ((6, 9, 11), {"d": 1}, "1 slice short along d: 6 where the CT has 7 (1 missing at the head)"),
        (
            (4, 9, 11),
            {"d": 1},
            "3 slices short along d: 4 where the CT has 7 (1 missing at the head, 2 missing at the feet)",
        ),
        ((9, 9, 11), {"d": -2}, "2 slices too many along d: 9 where the CT has 7 (2 too many at the head)"),
        ((7, 8, 11), {}, "1 row short along h: 8 where the CT has 9 (1 missing at the back)"),
        ((7, 9, 12), {}, "1 column too many along w: 12 where the CT has 11 (1 too many at the left)"),
        (
            (6, 9, 11),
            {"d": 0.5},
            "1 slice short along d: 6 where the CT has 7 (1 missing at the feet); "
            "shifted by 0.50 voxel along d (0.75 mm towards the feet)",
        ),
    ],
)
def test_slices_missing_or_too_many(tmp_path, shape, start, said):
    assert told(tmp_path, shifted(**start), shape) == said


@pytest.mark.parametrize(
    ("signs", "names", "reason"),
    [
        ((-1, -1, 1), "x and y", "DICOM's LPS taken for NIfTI's RAS"),
        ((-1, 1, 1), "x", "one frame of axes taken for another"),
        ((1, -1, 1), "y", "one frame of axes taken for another"),
        ((1, 1, -1), "z", "one frame of axes taken for another"),
    ],
)
def test_mirrored_headers_are_named(tmp_path, signs, names, reason):
    turn = np.diag([*signs, 1.0])
    whole = told(tmp_path, turn @ patient_volume().affine)
    assert whole == f"a mirrored header: with {names} negated it lies on the CT exactly ({reason})"
    affine = turn @ patient_volume().affine
    affine[:3, 3] = patient_volume().affine[:3, 3]
    directions = told(tmp_path, affine, codes="".join(nib.aff2axcodes(affine)))  # as it is: its first voxel stays first
    assert directions.startswith("a mirrored header: the first voxel is at its place")
    assert f"the other way along {names} ({reason}" in directions


def test_the_remedy_for_a_mirrored_header_mends_it():
    volume = patient_volume()
    turned = np.diag([-1, -1, 1, 1]) @ volume.affine
    _, remedy = diagnose(volume.shape, turned, volume)
    assert "diag(-1, -1, 1, 1)" in remedy
    assert match(volume.shape, np.diag([-1, -1, 1, 1]) @ turned, volume) is not None


def test_another_spacing(tmp_path):
    stretched = patient_volume().affine @ np.diag([1.05, 1, 1, 1])  # 0.3 voxels at the far end of seven slices
    assert told(tmp_path, stretched) == "another spacing: 1.575 mm along d where the CT has 1.5"
    finer = patient_volume().affine @ np.diag([1, 0.5, 0.5, 1])
    finer[:3, 3] -= (patient_volume().affine @ [0, 0.25, 0.25, 0])[:3]  # the same edges, so other first centres
    assert told(tmp_path, finer, (7, 18, 22)) == (
        "another spacing: 0.35 mm along h where the CT has 0.7, 0.3 mm along w where the CT has 0.6; the same field of "
        "view, so it was resampled; 9 rows too many along h: 18 where the CT has 9; "
        "11 columns too many along w: 22 where the CT has 11"
    )


def turned(degrees, axes=(1, 2)):
    i, j = axes
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[i, i], turn[j, j], turn[i, j], turn[j, i] = c, c, -s, s
    return turn


def test_rotated_and_sheared(tmp_path):
    volume = patient_volume()
    middle = np.eye(4)
    middle[:3, 3] = volume.position_mm((3, 4, 5))
    rotated = middle @ turned(12) @ np.linalg.inv(middle) @ volume.affine
    assert told(tmp_path, rotated) == "rotated by 12.00 degrees"
    twice = middle @ turned(9, (0, 1)) @ turned(12) @ np.linalg.inv(middle) @ volume.affine
    cosine = (1 + np.cos(np.radians(9))) * (1 + np.cos(np.radians(12))) / 2 - 1  # of the turn that two turns make
    assert told(tmp_path, twice) == f"rotated by {np.degrees(np.arccos(cosine)):.2f} degrees"
    tilted = rotated.copy()
    tilted[:3, 0] = volume.affine[:3, 0]  # rows and columns as in `rotated`, slices straight below each other
    said = told(tmp_path, rotated, volume=Volume(volume.hu, tilted))
    assert said.startswith("sheared: d leans 12.00 degrees from the CT's while the other axes agree")


def test_a_small_turn_counts_where_it_moves_a_far_corner(tmp_path):
    """0.1 degrees is 0.06 voxels over nine rows, and five over 500."""
    small, wide = patient_volume(), Grid((40, 512, 512), patient_volume().affine)
    assert match(small.shape, turned(0.1) @ small.affine, small) is None, "its origin is far from the axis of the turn"
    about_first = small.affine.copy()
    about_first[:3, :3] = (turned(0.1) @ small.affine)[:3, :3]
    assert match(small.shape, about_first, small) is not None
    assert match(wide.shape, about_first, wide) is None
    assert diagnose(wide.shape, about_first, wide)[0] == "rotated by 0.10 degrees"


def test_another_study(tmp_path):
    far = patient_volume().affine
    far[:3, 3] = (-12.0, 40.0, 310.0)
    assert told(tmp_path, far) == "another study altogether: the two grids do not overlap"
    near = patient_volume().affine @ np.diag([1.2, 1.1, 1.1, 1])
    near[:3, 3] += (3, -4, 6)
    said = told(tmp_path, near, (8, 9, 11))
    assert said.startswith("another study altogether: another spacing: 1.8 mm along d where the CT has 1.5, 0.77 mm")
    assert "1 slice too many along d: 8 where the CT has 7" in said and "its middle lies" in said


def test_an_identity_knows_nothing(tmp_path):
    assert told(tmp_path, np.eye(4), codes="RAS").startswith("an affine that is the identity")


def test_a_qform_that_fits_where_the_sform_does_not_is_mentioned(tmp_path):
    volume = patient_volume()
    image = nib.Nifti1Image(neck_mask(), volume.affine)
    image.set_qform(volume.affine, 1)
    image.set_sform(shifted(d=0.5), 1)
    nib.save(image, tmp_path / "m.nii")
    with pytest.raises(GridMismatch, match=r"0.50 voxel along d .*the qform of the same header does lie on the CT"):
        read_mask(tmp_path / "m.nii", volume)


@st.composite
def grids(draw):
    """Any shape, spacing, place and turn, and a shear of the first axis as a gantry tilt makes it."""
    number = st.floats(-1, 1)
    turn = Rotation.from_rotvec([3 * draw(number) for _ in range(3)]).as_matrix()
    shear = np.array([[1, 0, 0], [0.3 * draw(number), 1, 0], [0.3 * draw(number), 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ shear @ np.diag([draw(st.floats(0.3, 5)) for _ in range(3)])
    affine[:3, 3] = [300 * draw(number) for _ in range(3)]
    return Grid(tuple(draw(st.integers(2, 9)) for _ in range(3)), affine)


@given(
    grid=grids(),
    codes=st.sampled_from(ALL_CODES),
    axis=st.sampled_from([0, 1, 2]),
    off=st.floats(0.15, 0.9),
    sign=st.sampled_from([-1, 1]),
)
def test_any_grid_is_found_again_and_any_shift_is_measured(grid, codes, axis, off, sign):
    values = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    stored = nib.Nifti1Image(values.astype(np.int32), grid.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(grid.affine), nib.orientations.axcodes2ornt(codes))
    stored = stored.as_reoriented(turn)
    order, reversed_axes = match(stored.shape, stored.affine.astype(np.float32).astype(float), grid)
    assert np.array_equal(np.flip(np.asarray(stored.dataobj).transpose(order), reversed_axes), values)
    moved = stored.affine.copy()
    moved[:3, 3] += sign * off * grid.affine[:3, axis]
    assert match(stored.shape, moved, grid) is None
    what, _ = diagnose(stored.shape, moved, grid)
    voxels, name, way_mm = re.search(r"^shifted by (\S+) voxel along (\w) \((\S+) mm", what).groups()
    assert name == "dhw"[axis] and float(voxels) == pytest.approx(off, abs=0.006)
    assert float(way_mm) == pytest.approx(off * np.linalg.norm(grid.affine[:3, axis]), abs=0.006)


# What no grid can tell


@pytest.fixture(scope="module", params=[(3, 0), (9, 0), (5, 2)], ids=str)
def neck(request):
    """Necks of the phantom; that of seed 9 is nearly its own mirror image."""
    rendered = phantom.render(phantom.draw_plan(*request.param, size=64))
    return Volume(rendered.hu, rendered.affine), rendered.labels


WRONG_FLIPS = [axes for n in (1, 2, 3) for axes in combinations(range(3), n)]


def test_the_right_placement_is_the_brightest(neck):
    volume, mask = neck
    means = flips_by_hu(volume, mask)
    for axes in WRONG_FLIPS:  # oracle: flip the mask itself, over the whole array
        inside = np.isin(np.flip(mask, axes), range(1, 8))
        name = "flipped " + " and ".join("dhw"[axis] for axis in axes)
        assert means[name] == pytest.approx(volume.hu[inside].astype(float).mean())
    assert len(means) == 8 and means.idxmax() == "as placed"
    check_placement(volume, mask)


@pytest.mark.parametrize("axes", WRONG_FLIPS, ids=str)
def test_every_wrong_flip_is_found(neck, axes):
    volume, mask = neck
    names = " and ".join("dhw"[axis] for axis in axes)
    with pytest.raises(GridMismatch, match=f"HU flipped {names}; expected bone"):
        check_placement(volume, np.flip(mask, axes))


def test_a_mirrored_header_on_a_symmetric_grid_is_found_by_its_bones(tmp_path, neck):
    """Centred on x = 0 and y = 0, the mirrored grid is the grid itself: read_mask cannot know."""
    volume, mask = neck
    affine = volume.affine.copy()
    affine[:2, 3] = -(affine[:2, :3] @ ((np.array(volume.shape) - 1) / 2))
    volume = Volume(volume.hu, affine, study_uid="1.2.3")
    mirrored = Volume(volume.hu, np.diag([-1, -1, 1, 1]) @ affine)
    placed = read_mask(write_label_file(tmp_path / "m.nii", mask, mirrored), volume)
    assert np.array_equal(placed, mask[:, ::-1, ::-1])
    with pytest.raises(GridMismatch, match="1.2.3.* flipped h and w") as error:
        check_placement(volume, placed)
    assert "mirrored" in error.value.remedy


def test_the_margin_is_what_decides(monkeypatch):
    """Labels over one bright voxel, whose mirror image is brighter by a little less, or more, than the margin."""
    for brighter, wrong in ((FLIP_MARGIN_HU - 1, False), (FLIP_MARGIN_HU + 1, True)):
        hu = np.zeros((3, 5, 7), np.int16)
        hu[1, 2, 1], hu[1, 2, 5] = 300, 300 + brighter
        mask = np.zeros(hu.shape, np.uint8)
        mask[1, 2, 1] = 4
        volume = Volume(hu, patient_volume().affine)
        if wrong:
            with pytest.raises(GridMismatch, match="311 HU flipped w"):
                check_placement(volume, mask)
        else:
            check_placement(volume, mask)


def test_thoracic_labels_count_only_where_asked(neck):
    volume, mask = neck
    only_thoracic = np.where(mask > 7, mask, 0).astype(np.uint8)
    with pytest.raises(MaskError, match="some of the labels"):
        flips_by_hu(volume, only_thoracic)
    assert flips_by_hu(volume, only_thoracic, labels=[8, 9]).idxmax() == "as placed"
    with pytest.raises(MaskError, match="shape"):
        flips_by_hu(volume, mask[1:])
    assert placement.flips_by_hu is flips_by_hu, "one function, at hand beside read_mask"
