"""What dcm2niix makes of a series, handed in as if it were a label map, is the HU volume that we read: every voxel.

dcm2niix knows nothing of this package: it sorts the slices, finds the step and writes the affine on its own. nibabel
then turns its file into other axis orders. So a flip, an order or a shift that only we believe in cannot pass.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import REAL_CT, needs_real_ct, patient_volume, write_series

from cspine_utils.dicom import read_series
from cspine_utils.errors import GridMismatch
from cspine_utils.nifti import read_aligned
from cspine_utils.volume import Volume

CODES = ("RAS", "LAS", "PIR", "ASR")


def convert(series: Path, out: Path) -> dict[str, Path]:
    """dcm2niix on a folder; the files that it made by their names (`_Tilt`: un-sheared, `_Eq`: on even steps)."""
    out.mkdir()
    command = [sys.executable, "-m", "dcm2niix", "-z", "n", "-b", "n", "-f", "series", "-o", str(out), str(series)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem: path for path in sorted(out.glob("*.nii"))}


def whole_numbers(path: Path, affine=None) -> nib.Nifti1Image:
    """A file of dcm2niix as int16 HU: its own may be scaled (stored + intercept), which nibabel would write anew."""
    image = nib.load(path)
    hu = np.asarray(image.dataobj)
    assert np.array_equal(hu, np.rint(hu))
    return nib.Nifti1Image(hu.astype(np.int16), image.affine if affine is None else affine)


def turned(image, codes, path: Path) -> Path:
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(turn), path)
    assert "".join(nib.aff2axcodes(nib.load(path).affine)) == codes
    return path


def assert_equal_in_any_order(image, volume, tmp_path) -> None:
    for codes in CODES:
        read = read_aligned(turned(image, codes, tmp_path / f"{codes}.nii"), volume)
        assert np.count_nonzero(read != volume.hu) == 0, codes


def true_affine(volume) -> np.ndarray:
    """The volume's own affine for its voxels in the order LAS, which dcm2niix writes."""
    las = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt("LAS"))
    return volume.affine @ nib.orientations.inv_ornt_aff(las, volume.shape)


def leaning(degrees_x, degrees_z) -> np.ndarray:
    """A turn about x, then about z."""
    a, b = np.radians(degrees_x), np.radians(degrees_z)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    turn = np.eye(4)
    turn[:3, :3] = about_z @ about_x
    return turn


def planes(d, h, w) -> np.ndarray:
    """An affine with these axes (unit vectors in RAS, all in the patient's planes) at an odd place."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([d, h, w]).T @ np.diag([1.5, 0.7, 0.6])
    affine[:3, 3] = (31.5, 18.25, 77.0)
    return affine


AXIAL = patient_volume().affine
GEOMETRIES = {
    "axial": AXIAL,
    "oblique": leaning(12, 7) @ AXIAL,
    "coronal": planes(d=(0, -1, 0), h=(0, 0, -1), w=(-1, 0, 0)),
    "sagittal": planes(d=(-1, 0, 0), h=(0, 0, -1), w=(0, -1, 0)),
    "oblique coronal": leaning(9, -14) @ planes(d=(0, -1, 0), h=(0, 0, -1), w=(-1, 0, 0)),
    "prone": planes(d=(0, 0, -1), h=(0, 1, 0), w=(1, 0, 0)),
}


@pytest.mark.parametrize("feet_first", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_no_voxel_differs(tmp_path, geometry, feet_first):
    made = Volume(patient_volume((8, 9, 11)).hu, GEOMETRIES[geometry])
    write_series(tmp_path / "series", made, feet_first=feet_first)
    volume = read_series(tmp_path / "series")
    (path,) = convert(tmp_path / "series", tmp_path / "out").values()
    assert np.array_equal(np.sort(volume.hu, axis=None), np.sort(made.hu, axis=None)), "all values are there once"
    assert np.count_nonzero(read_aligned(path, volume) != volume.hu) == 0, "the file as it is"
    assert_equal_in_any_order(whole_numbers(path), volume, tmp_path)


def test_a_wrong_flip_would_be_seen(tmp_path):
    """The test above can fail: the same file with one axis of its data reversed differs nearly everywhere."""
    write_series(tmp_path / "series", patient_volume((8, 9, 11)))
    volume = read_series(tmp_path / "series")
    (path,) = convert(tmp_path / "series", tmp_path / "out").values()
    image = whole_numbers(path)
    flipped = nib.Nifti1Image(np.asarray(image.dataobj)[:, ::-1], image.affine)
    read = read_aligned(turned(flipped, "PIR", tmp_path / "m.nii"), volume)
    assert np.mean(read != volume.hu) == pytest.approx(8 / 9), "all rows but the middle one"


# Gantry tilt. dcm2niix writes two files: the voxels as they are, and a copy that it has un-sheared by interpolation.
# The affine of the first is not the truth: its step along the table is that between the planes (shorter by the cosine
# of the tilt), and where it had to reverse the slices, the first voxel is off too. NIfTI's qform cannot hold a shear.

TILT_DEGREES = 18.5


def tilted_series(folder, **options):
    """HU that grow linearly in space, in slices that lean while the table runs straight."""
    affine = leaning(TILT_DEGREES, 0) @ AXIAL
    affine[:3, 0] = AXIAL[:3, 0]
    shape = (24, 30, 20)
    place_mm = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    write_series(folder, Volume(np.rint(place_mm @ [3, 11, 7]).astype(np.int16), affine), **options)
    return read_series(folder)


@pytest.mark.parametrize("feet_first", [False, True])
def test_tilted_voxels_are_equal_once_the_affine_is_true(tmp_path, feet_first):
    volume = tilted_series(tmp_path / "series", feet_first=feet_first)
    made = convert(tmp_path / "series", tmp_path / "out")
    assert sorted(made) == ["series", "series_Tilt_1"]
    image = whole_numbers(made["series"])
    short = 1.5 * np.cos(np.radians(TILT_DEGREES))
    assert np.linalg.norm(image.affine[:3, 2]) == pytest.approx(short, abs=1e-3), (
        "1.4225 mm, but the table moved by 1.5"
    )
    with pytest.raises(GridMismatch, match="another spacing: 1.422 mm along d where the CT has 1.5"):
        read_aligned(turned(image, "LAS", tmp_path / "untrue.nii"), volume)
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
    assert_equal_in_any_order(whole_numbers(made["series"], true_affine(volume)), volume, tmp_path)


def test_the_unsheared_copy_shows_the_same_place_in_the_patient(tmp_path):
    """Stored feet -> head, where dcm2niix's first voxel is right: its un-sheared grid agrees with our sheared one."""
    volume = tilted_series(tmp_path / "series", feet_first=True)
    copy = convert(tmp_path / "series", tmp_path / "out")["series_Tilt_1"]
    copy = whole_numbers(copy)
    assert copy.shape[1] > volume.shape[1], "padded, to hold the sheared block"
    read = read_aligned(turned(copy, "PIR", tmp_path / "copy.nii"), volume, resample=True)
    inside = read[2:-2, 2:-2, 2:-2].astype(float) - volume.hu[2:-2, 2:-2, 2:-2]
    # The nearest voxel is within half a voxel along each axis of the copy; HU grow by 3, 11 and 7 a mm.
    most = np.abs(np.array([3, 11, 7]) @ copy.affine[:3, :3]).sum() / 2 + 1
    assert np.abs(np.median(inside)) < 1 and np.abs(inside).max() <= most
    upright = Volume(volume.hu, volume.affine.copy())  # the same planes, stacked along their normal
    normal = np.cross(volume.affine[:3, 2], volume.affine[:3, 1])
    upright.affine[:3, 0] = 1.5 * normal / np.linalg.norm(normal) * np.sign(normal @ volume.affine[:3, 0])
    wrong = read_aligned(tmp_path / "copy.nii", upright, resample=True).astype(float) - volume.hu
    assert np.abs(wrong[2:-2, 2:-2, 2:-2]).max() > most, "an affine without the shear would be seen"


# Real scanners


@needs_real_ct("t11-t12-jpeg2000")
def test_a_real_chest_no_voxel_differs(tmp_path):
    folder = REAL_CT / "t11-t12-jpeg2000" / "dicom"
    volume = read_series(folder)
    (path,) = convert(folder, tmp_path / "out").values()
    assert_equal_in_any_order(whole_numbers(path), volume, tmp_path)


@needs_real_ct("head-gantry-tilt")
@pytest.mark.parametrize("numbers", [range(1, 15), range(15, 29)], ids=["4 mm", "7 mm"])
def test_a_real_tilted_head_no_voxel_differs(tmp_path, numbers):
    """The series has two even parts. The affine of dcm2niix is untrue as above; its voxels are placed by ours."""
    (tmp_path / "part").mkdir()
    for number in numbers:
        name = f"{number:02d}.dcm"
        (tmp_path / "part" / name).symlink_to(REAL_CT / "head-gantry-tilt" / name)
    volume = read_series(tmp_path / "part")
    path = convert(tmp_path / "part", tmp_path / "out")["series"]
    with pytest.raises(GridMismatch, match="another spacing"):
        read_aligned(path, volume)
    assert_equal_in_any_order(whole_numbers(path, true_affine(volume)), volume, tmp_path)
