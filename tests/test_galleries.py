"""Galleries show what they say: the right slice, the right voxels under the arrows and names."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cspine_utils import examples, galleries, phantom, surfaces
from cspine_utils.anatomy import LABEL_IDS
from cspine_utils.phantom.mimics import KINDS_OF_MIMICS
from cspine_utils.volume import Volume


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def shown(ax) -> np.ndarray:
    return np.asarray(ax.get_images()[0].get_array())


def names_of(ax) -> dict[str, tuple]:
    """Name -> (column, row) that its arrow points at."""
    return {text.get_text(): text.xy for text in ax.texts if hasattr(text, "xy") and text.get_text()}


def block(*gaps, spacing_mm=1.0) -> phantom.Rendered:
    """A bone that fills rows 20-39 of every slice from side to side, with gaps at the given columns."""
    hu = np.full((10, 60, 80), 50, np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    hu[:, 20:40, 5:75], labels[:, 20:40, 5:75] = 900, 3
    for column in gaps:
        hu[:, 20:40, column] = 60
    return phantom.Rendered(hu, labels, hu == 60, np.diag([-spacing_mm] * 3 + [1.0]), (), ())


def test_arrows_point_at_the_gaps_and_nowhere_else():
    found = galleries.sites(block(20, 60), block(), "axial", 5, gaps=True)
    assert sorted(found[:, 1]) == [20, 60] and (abs(found[:, 0] - 29.5) < 6).all()
    assert len(galleries.sites(block(20, 26), block(), "axial", 5, gaps=True)) == 1, "two arrows would overlap"


def test_an_edge_that_moved_is_not_taken_for_the_gap():
    """A piece that slid leaves a dark rim, here beside another bone; the arrow belongs to the break."""
    moved, plain = block(30), block()
    moved.hu[:, 38:40, 31:75] = 50
    for study in (moved, plain):
        study.hu[:, 41:58, 5:75], study.labels[:, 41:58, 5:75] = 900, 4
    (row, column), *more = galleries.sites(moved, plain, "axial", 5, gaps=True)
    assert column == 30 and not more


def test_a_look_alike_that_adds_bone_gets_its_arrow_too():
    lipped = block()
    lipped.hu[:, 12:20, 40:46] = 900
    ((row, column),) = galleries.sites(lipped, block(), "axial", 5, gaps=False)
    assert 12 <= row <= 20 and 40 <= column <= 46


@pytest.fixture(scope="module")
def pairs():
    return examples.fractures(5, size=96, kinds=("dens_ii", "teardrop"))


def test_every_kind_and_every_look_alike_has_its_place(pairs):
    assert list(pairs) == ["C2: dens II", "C5: teardrop"]
    shown_at = examples.MIMIC_SHOWN_AT
    assert all(level in KINDS_OF_MIMICS[name].levels for name, level in shown_at.items())
    for kind, level in examples.FRACTURE_SHOWN_AT.items():
        assert kind in phantom.FRACTURE_TYPES[level]


def test_the_gallery_shows_the_twins_and_nothing_but_the_fracture_between_them(pairs):
    figure = galleries.twin_gallery(pairs, across=2)
    axes = figure.axes
    assert axes[0].get_title() == "C2: dens II" and axes[3].get_title() == "C5: teardrop"
    for first, (fractured, intact, plane) in zip((0, 3), pairs.values(), strict=True):
        broken, whole, difference = (shown(ax) for ax in axes[first : first + 3])
        assert plane == "sagittal" and np.array_equal(difference, broken.astype(float) - whole)
        index = next(i for i in range(intact.hu.shape[2]) if np.array_equal(intact.hu[:, :, i], whole))
        altered = fractured.altered.sum(axis=(0, 1))
        assert altered[index] > 0.4 * altered.max(), "a slice that shows much of the fracture"
        rows, columns = np.nonzero(fractured.altered[:, :, index])
        spacing = Volume(fractured.hu, fractured.affine).spacing_mm
        for row, column in galleries.sites(fractured, intact, plane, index, gaps=True):
            distance = np.hypot((rows - row) * spacing[0], (columns - column) * spacing[1]).min()
            assert distance < 1.5, "the arrow points into the fracture"
        (left, right), (bottom, top) = axes[first].get_xlim(), axes[first].get_ylim()
        assert left <= columns.min() and columns.max() <= right and top <= rows.min() and rows.max() <= bottom
    assert "400/1800 HU" in figure.get_supxlabel() and "800 HU" in figure.get_supxlabel()


def test_difficulties_stand_in_the_order_that_they_are_given(pairs):
    dens, teardrop = pairs.values()
    figure = galleries.difficulties({"a break": {"easy": dens, "hard": teardrop}})
    assert [ax.get_title() for ax in figure.axes] == ["a break, easy", "a break, hard"]
    assert shown(figure.axes[0]).shape == dens[0].hu.shape[:2]
    assert shown(figure.axes[1]).shape == teardrop[0].hu.shape[:2]


@pytest.fixture(scope="module")
def neck():
    plan = phantom.draw_plan(5, 1, size=96, difficulty="easy", levels=("C2",))
    plan = replace(plan, grid=replace(plan.grid, motion=None))
    return plan, phantom.render(plan)


def test_patients_show_their_own_planes(neck):
    plan, study = neck
    other = replace(study, hu=study.hu[:, ::-1].copy())
    figure = galleries.patients({"one": study, "two": other}, across=1)
    middle = np.median(np.argwhere(study.labels == LABEL_IDS["C4"]), axis=0).astype(int)
    assert figure.axes[0].get_ylabel() == "one" and figure.axes[4].get_ylabel() == "two"
    assert np.array_equal(shown(figure.axes[0]), study.hu[middle[0]])
    assert np.array_equal(shown(figure.axes[1]), study.hu[:, middle[1]])
    assert np.array_equal(shown(figure.axes[2]), study.hu[:, :, middle[2]])
    assert np.array_equal(shown(figure.axes[4]), other.hu[middle[0]])
    d_mm, h_mm, _ = plan.grid.spacing_mm
    assert f"pixels {h_mm:.2f} mm, slices {d_mm:.2f} mm" in figure.get_supxlabel()


def test_the_overview_boxes_a_fracture(neck):
    _, study = neck
    ax = galleries.overview(study).axes[3]
    (box,) = ax.patches
    index = next(i for i in range(len(study.hu)) if np.array_equal(study.hu[i], shown(ax)))
    rows, columns = np.nonzero(study.altered[index])
    assert box.get_x() <= columns.min() and columns.max() <= box.get_x() + box.get_width()
    assert box.get_y() <= rows.min() and rows.max() <= box.get_y() + box.get_height()
    assert len(rows) == study.altered.sum(axis=(1, 2)).max()


def test_names_in_a_plane_point_at_their_voxels(neck):
    plan, study = neck
    volume, parts = Volume(study.hu, study.affine), surfaces.neck_parts(plan)
    at = parts["C5"]["body"][0]
    figure = galleries.labelled_planes(volume, {"C5": ("sagittal", at, parts["C5"])})
    names = names_of(figure.axes[0])
    assert set(names) >= {"body", "spinous process", "vertebral canal"} and "pedicle" not in names
    for name in ("body", "spinous process"):
        column, row = np.round(names[name]).astype(int)
        index = next(i for i in range(volume.shape[2]) if np.array_equal(study.hu[:, :, i], shown(figure.axes[0])))
        around = study.labels[row - 1 : row + 2, column - 1 : column + 2, index]
        assert LABEL_IDS["C5"] in around, name
    column, row = np.round(names["vertebral canal"]).astype(int)
    assert study.labels[row, column, index] == 0


def test_atlas_plates_share_one_scale_and_leave_out_what_they_are_told(neck):
    plan, study = neck
    parts = surfaces.neck_parts(plan)
    plates = {"C1": ("C1", (180, 90), ("lateral mass",)), "C7": ("C7", (180, 90), ())}
    figure = galleries.atlas(study, plates, parts)
    first, second = figure.axes
    assert np.ptp(first.get_xlim()) == pytest.approx(np.ptp(second.get_xlim()))
    assert "lateral mass" not in names_of(first) and "posterior arch" in names_of(first)
    assert set(names_of(second)) == set(parts["C7"])


def test_soft_kernels_have_coarse_noise():
    figure = galleries.noise_spectra(examples.kernels(3, size=160))
    lines = {line.get_label().split(":")[0]: line.get_xydata() for line in figure.axes[-1].lines}
    mean = {name: np.average(xy[:, 0], weights=xy[:, 1]) for name, xy in lines.items()}
    assert mean["soft"] < 0.75 * mean["bone"] and mean["bone"] < 1.05 * mean["sharp"]
    assert set(lines) == set(phantom.KERNELS)
