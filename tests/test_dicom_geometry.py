"""Geometry of any kind: what is written is read, and lies where SimpleITK says it lies."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import patient_volume, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel import aff2axcodes
from test_dicom import edit

from cspine_utils.dicom import look_into, measure, read_series
from cspine_utils.errors import SeriesError
from cspine_utils.volume import Volume


def rotation(rx, ry, rz) -> np.ndarray:
    """About x, then y, then z, in degrees."""
    matrix = np.eye(3)
    for axis, degrees in enumerate((rx, ry, rz)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
        matrix = turn @ matrix
    return matrix


#: Directions (RAS) of slices, rows going down, columns going across, as scanners and workstations write them.
PLANES = {
    "axial": ((0, 0, -1), (0, -1, 0), (-1, 0, 0)),
    "coronal": ((0, -1, 0), (0, 0, -1), (-1, 0, 0)),
    "sagittal": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
}


def series_of(plane, shape=(6, 5, 7), spacing=(1.5, 0.7, 0.6), turn=None, tilt=0.0, origin=(31.5, -18.25, 77.0)):
    """A Volume whose first axis is the slices of a series in that plane; `tilt` leans the slices about their rows."""
    directions = np.array(PLANES[plane], float).T
    if turn is not None:
        directions = turn @ directions
    if tilt:
        lean = np.radians(tilt)
        slices, rows = directions[:, 0].copy(), directions[:, 1].copy()
        directions[:, 1] = rows * np.cos(lean) + slices * np.sin(lean)
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = np.round(origin, 3)
    return Volume(patient_volume(shape).hu, affine)


def by_place(volume: Volume) -> dict:
    """HU of every voxel by its place in the patient, to 1/100 mm."""
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    places = np.round(volume.position_mm(index).reshape(-1, 3), 2) + 0.0
    return dict(zip(map(tuple, places), volume.hu.ravel(), strict=True))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("reversed_order", [False, True])
def test_every_plane_ends_up_upright(tmp_path, plane, reversed_order):
    written = series_of(plane)
    write_series(tmp_path, written, feet_first=reversed_order)
    read = read_series(tmp_path)
    assert aff2axcodes(read.affine) == ("I", "P", "L") and read.hu.flags.c_contiguous
    order = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (1, 2, 0)}[plane]
    assert np.array_equal(read.hu, written.hu.transpose(order)), "an oracle that knows no affine"
    assert by_place(read) == by_place(written)
    assert measure(look_into(tmp_path).choose()).orientation == plane
    first = "6.dcm" if reversed_order else "1.dcm"
    assert read.file_names[0] == first, "from head, front or right, whichever way the slices run"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plane=st.sampled_from(sorted(PLANES)),
    angles=st.tuples(*[st.floats(-40, 40)] * 3),
    tilt=st.one_of(st.just(0.0), st.floats(-30, 30)),
    spacing=st.tuples(st.floats(0.3, 5), st.floats(0.2, 1.5), st.floats(0.2, 1.5)),
    shape=st.tuples(st.integers(2, 6), st.integers(2, 6), st.integers(2, 6)),
    origin=st.tuples(*[st.floats(-400, 400)] * 3),
    backwards=st.booleans(),
)
def test_any_geometry_is_read_back_and_agrees_with_simpleitk(
    tmp_path_factory, plane, angles, tilt, spacing, shape, origin, backwards
):
    folder = tmp_path_factory.mktemp("series")
    written = series_of(plane, shape, spacing, rotation(*angles), tilt, origin)
    paths = write_series(folder, written, feet_first=backwards)
    geometry = measure(look_into(folder).choose())
    read = read_series(folder)
    assert geometry.grid.shape == read.shape and np.array_equal(geometry.grid.affine, read.affine)
    assert geometry.tilt_degrees == pytest.approx(abs(tilt), abs=0.01)
    assert sorted(by_place(read).values()) == sorted(written.hu.ravel())
    # Where each written voxel went: through both affines, onto a whole index.
    index = np.moveaxis(np.indices(written.shape), 0, -1).reshape(-1, 3)
    to_read = np.linalg.inv(read.affine) @ np.c_[written.position_mm(index), np.ones(len(index))].T
    landed = np.rint(to_read[:3].T).astype(int)
    assert np.abs(to_read[:3].T - landed).max() < 0.01
    assert np.array_equal(read.hu[tuple(landed.T)], written.hu[tuple(index.T)])
    # The same, by an independent reader. It reads slice by slice, since its series reader knows no shear.
    for path in (paths[0], paths[-1]):
        image = sitk.ReadImage(str(path))
        for h, w in ((0, 0), (shape[1] - 1, shape[2] - 1), (0, shape[2] - 1)):
            lps = image.TransformIndexToPhysicalPoint((w, h, 0))
            place = np.linalg.inv(read.affine) @ (-lps[0], -lps[1], lps[2], 1)
            at = tuple(np.rint(place[:3]).astype(int))
            assert np.abs(place[:3] - at).max() < 0.01
            assert read.hu[at] == sitk.GetArrayFromImage(image)[0, h, w]
    # And no axis could be turned nearer to where it should run.
    directions = read.affine[:3, :3] / np.linalg.norm(read.affine[:3, :3], axis=0)
    assert aff2axcodes(read.affine) == ("I", "P", "L") or np.abs(directions).max(axis=0).min() < 0.8


def move_slices(paths, places_mm):
    """Put the slices of an axial series at these distances below the first."""
    top = float(pydicom.dcmread(paths[0]).ImagePositionPatient[2])
    for path, place in zip(paths, places_mm, strict=True):

        def change(dataset, place=place):
            dataset.ImagePositionPatient[2] = f"{top - place:.4f}"

        edit(path, change)


def test_a_study_like_the_real_one_with_uneven_steps(tmp_path):
    """Steps from 0.76 to 1.24 mm where 1.0 is meant: refused in words, and read on request."""
    places = np.array([0, 1.0, 2.24, 3.0, 4.0, 5.0, 5.76, 7.0, 8.0])
    volume = patient_volume((9, 5, 7))
    volume.hu[:] = (100 * places).astype(np.int16)[:, None, None] + np.arange(7, dtype=np.int16)
    paths = write_series(tmp_path, volume)
    move_slices(paths, places)
    geometry = measure(look_into(tmp_path).choose())
    assert geometry.repairable and geometry.gaps_mm.min() == pytest.approx(0.76) and geometry.step_mm == 1.0
    with pytest.raises(SeriesError, match=r"median 1\.000, smallest 0\.760, largest 1\.240 mm.*resample_uneven=True"):
        read_series(tmp_path)
    read = read_series(tmp_path, resample_uneven=True)
    assert read.shape == (9, 5, 7) and read.file_names == ()
    assert read.spacing_mm[0] == pytest.approx(1.0)
    expected = (100 * np.arange(9))[:, None, None] + np.arange(7)
    assert np.abs(read.hu - expected).max() <= 1, "HU that grow along z stay where they are in the patient"
    assert read.position_mm((8, 0, 0))[2] == pytest.approx(volume.position_mm((0, 0, 0))[2] - 8.0)


@pytest.mark.parametrize("feet_first", [False, True])
def test_resampling_of_a_tilted_series_keeps_every_place(tmp_path, feet_first):
    places = np.array([0, 1.0, 2.3, 3.0, 4.0])
    written = series_of("axial", (5, 5, 7), tilt=12)
    written.hu[:] = np.rint(100 * places).astype(np.int16)[:, None, None]
    paths = write_series(tmp_path, written, feet_first=feet_first)
    move_slices(paths, places)
    read = read_series(tmp_path, resample_uneven=True)
    assert read.hu[:, 2, 3].tolist() == [0, 100, 200, 300, 400]
    assert read.position_mm((4, 0, 0)) == pytest.approx(written.position_mm((0, 0, 0)) - [0, 0, 4], abs=1e-3)


def test_what_cannot_be_bridged_is_refused_with_the_option_too(tmp_path):
    paths = write_series(tmp_path, patient_volume((9, 5, 7)))
    for places in ([0, 1, 2, 3, 4.6, 5.6, 6.6, 7.6, 8.6], [0, 1, 2, 3, 5, 6, 7, 8, 9], [0, 1, 2, 3, 3, 4, 5, 6, 7]):
        move_slices(paths, places)
        with pytest.raises(SeriesError, match=r"(4\.dcm and 5\.dcm|5\.dcm and 4\.dcm)"):
            read_series(tmp_path, resample_uneven=True)


def test_small_differences_that_add_up(tmp_path):
    """Each gap within 10 % of the median, but the middle more than half a step from its place."""
    gaps = [1.0] * 12 + [1.095] * 12 + [1.0]
    paths = write_series(tmp_path, patient_volume((26, 5, 7)))
    move_slices(paths, np.concatenate([[0], np.cumsum(gaps)]))
    with pytest.raises(SeriesError, match=r"13\.dcm 0\.5 steps from its place"):
        read_series(tmp_path)
    assert read_series(tmp_path, resample_uneven=True).shape == (27, 5, 7)


def test_rounded_positions_are_even(tmp_path):
    paths = write_series(tmp_path, patient_volume((9, 5, 7)))
    move_slices(paths, np.round(0.6249 * np.arange(9), 2))
    assert read_series(tmp_path).spacing_mm[0] == pytest.approx(0.625, abs=1e-3)


def number_acquisitions(paths, numbers):
    for path, number in zip(paths, numbers, strict=True):
        if number is not None:
            edit(path, lambda dataset, number=number: setattr(dataset, "AcquisitionNumber", number))


def test_two_acquisitions_of_one_place_are_no_volume(tmp_path):
    """Half a step apart they would look like one series of thinner steps."""
    paths = write_series(tmp_path, patient_volume((8, 5, 7)))
    number_acquisitions(paths, [1, 2] * 4)
    for options in ({}, {"resample_uneven": True}):
        with pytest.raises(SeriesError, match="several acquisitions.*a folder of its own"):
            read_series(tmp_path, **options)


@pytest.mark.parametrize(
    "numbers",
    [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [1, 1, 1, 1, 2, 2, 2, 2],
        [3, 3, 2, 2, 1, 1, 4, 4],
        [1, 1, 1, 2, 2, 1, 1, 1],
        [1, 2, 3, 4, 1, 2, 3, 4],
        [1, 1, 1, 2, 1, 2, 2, 2],
        [1, None, 1, None, 1, None, 1, None],
    ],
)
def test_acquisitions_one_after_the_other_are_one_volume(tmp_path, numbers):
    volume = patient_volume((8, 5, 7))
    number_acquisitions(write_series(tmp_path, volume), numbers)
    assert np.array_equal(read_series(tmp_path).hu, volume.hu)


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even(tmp_path):
    """As some anonymisers write them: gaps of 0.6 and 0.7 mm where 0.625 is meant."""
    volume = patient_volume((33, 5, 7))
    paths = write_series(tmp_path, volume)
    move_slices(paths, np.round(0.625 * np.arange(33), 1))
    assert np.array_equal(read_series(tmp_path).hu, volume.hu)


def test_directions_of_two_digits_stretch_nothing(tmp_path):
    volume = patient_volume((3, 5, 7))
    paths = write_series(tmp_path, volume)
    for path in paths:
        edit(path, lambda dataset: setattr(dataset, "ImageOrientationPatient", [0.71, 0.71, 0, -0.71, 0.71, 0]))
    assert read_series(tmp_path).spacing_mm == pytest.approx((1.5, 0.7, 0.6), abs=1e-9)
