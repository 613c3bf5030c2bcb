"""Smooth surfaces: the right bone at the right place, lit from the right side."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from cspine_utils import phantom, surfaces
from cspine_utils.anatomy import LABEL_IDS
from cspine_utils.volume import lps_to_ras

RED, GREEN, BLUE, GREY = "#CC3311", "#117733", "#0077BB", "#BBBBBB"


def placed(mask, spacing_mm=(1.0, 1.0, 1.0), first_lps=(0.0, 0.0, 0.0)):
    """Mask and affine (to RAS+ mm): d runs to the feet, h to the back, w to the left."""
    d_mm, h_mm, w_mm = spacing_mm
    x, y, z = first_lps
    return mask, lps_to_ras(np.array([[0, 0, w_mm, x], [0, h_mm, 0, y], [-d_mm, 0, 0, z], [0, 0, 0, 1.0]]))


def ball(radius_mm=10.0, spacing_mm=(1.0, 1.0, 1.0), first_lps=(0.0, 0.0, 0.0)):
    """A ball in the middle of a box of 30 mm, label 1."""
    axes = [np.arange(0, 30.01, s) - 15 for s in spacing_mm]
    d, h, w = np.meshgrid(*axes, indexing="ij")
    return placed((d**2 + h**2 + w**2 < radius_mm**2).astype(np.uint8), spacing_mm, first_lps)


def hue(colour):
    """The direction of a colour, which shading leaves alone."""
    colour = np.asarray(colour, float)
    return colour / np.linalg.norm(colour)


def is_colour(pixel, colour):
    return np.allclose(hue(pixel), hue(to_rgb(colour)), atol=0.05)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.6, 0.7, 0.7)])
def test_a_ball_is_round_true_to_scale_and_smooth(spacing_mm):
    """Depths are those of a ball to a fifth of a millimetre: voxel steps would be five times that."""
    view = surfaces.look(surfaces.soften(*ball(10.0, spacing_mm)), 40, 25)
    middle = view.project([15.0, 15.0, -15.0])
    rows, columns = np.indices(view.labels.shape)
    off = np.hypot(columns - middle[0], rows - middle[1]) * view.pixel_mm
    assert (view.labels[off < 9.0] == 1).all() and (view.labels[off > 10.7] == 0).all()
    expected = np.array([15.0, 15.0, -15.0]) @ view.axes[2] + np.sqrt(np.maximum(10.0**2 - off**2, 0))
    error = (view.depth_mm - expected)[off < 7.0]
    assert abs(error.mean()) < 0.35 and error.std() < 0.2


def test_a_ball_is_brightest_where_it_faces_the_lamp():
    view = surfaces.look(surfaces.soften(*ball()), 0, 0)
    middle = view.project([15.0, 15.0, -15.0])
    light = view.picture.sum(axis=2) * (view.labels > 0)
    row, column = np.unravel_index(light.argmax(), light.shape)
    seen = np.array([column - middle[0], middle[1] - row]) * view.pixel_mm / 10.0
    lamps = sum(strength * np.array(d) / np.linalg.norm(d) for d, strength in surfaces.LAMPS)
    expected = (lamps / np.linalg.norm(lamps))[:2]  # two cosines add up to one
    assert np.hypot(*(seen - expected)) < 0.25 < np.hypot(*(seen - expected * [1, -1])), "lit from above"
    left, right = light[:, : int(middle[0])].sum(), light[:, int(middle[0]) + 1 :].sum()
    above, below = light[: int(middle[1])].sum(), light[int(middle[1]) + 1 :].sum()
    assert left > 1.02 * right and above > 1.1 * below, "the stronger lamp stands on the left, and high"
    assert np.array_equal(view.picture[0, 0], [1, 1, 1]), "where nothing is, the picture is white"


def block_with_marks():
    """A block (7) with a knob on each side: 1 in front, 2 behind, 3 right, 4 left, each off the middle."""
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[10:30, 10:30, 10:30] = 7
    mask[13:17, 5:10, 12:16] = 1  # in front, toward the patient's right, above the middle
    mask[13:17, 30:35, 12:16] = 2
    mask[13:17, 24:28, 5:10] = 3  # on the right, toward the back
    mask[13:17, 24:28, 30:35] = 4
    return placed(mask)


@pytest.mark.parametrize(
    ("standpoint", "seen", "hidden", "on_the_left", "letters"),
    [
        ("front", 1, 2, True, "RL"),
        ("back", 2, 1, False, "LR"),
        ("right", 3, 4, False, "PA"),
        ("left", 4, 3, True, "AP"),
    ],
)
def test_each_view_shows_the_side_that_faces_it(standpoint, seen, hidden, on_the_left, letters):
    """The knob in front hides nothing; the one behind is hidden by the block. The letters name the right sides."""
    colours = {1: RED, 2: RED, 3: RED, 4: RED, 7: GREY}
    view = surfaces.look(surfaces.soften(*block_with_marks()), *surfaces.STANDPOINTS[standpoint], colours=colours)
    assert hidden not in view.labels
    rows, columns = np.nonzero(view.labels == seen)
    block_rows, block_columns = np.nonzero(view.labels == 7)
    if standpoint in ("front", "back"):
        assert (columns.mean() < block_columns.mean()) == on_the_left
    else:  # the knob sits toward the back
        assert (columns.mean() > block_columns.mean()) == on_the_left
    assert rows.mean() < block_rows.mean(), "nearer to the head is higher in the picture"
    assert is_colour(view.picture[int(rows.mean()), int(columns.mean())], RED)
    assert view.side_letters() == {"left": letters[0], "right": letters[1], "top": "H", "bottom": "F"}


def test_above_and_below_keep_the_front_up():
    solid = surfaces.soften(*block_with_marks())
    above, below = (surfaces.look(solid, *surfaces.STANDPOINTS[name]) for name in ("above", "below"))
    assert above.side_letters() == {"left": "L", "right": "R", "top": "A", "bottom": "P"}
    assert below.side_letters() == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    for view in (above, below):
        front, back = (np.nonzero(view.labels == label)[0].mean() for label in (1, 2))
        assert front < back


def test_a_point_is_projected_onto_its_own_voxel():
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[5:9, 5:9, 20:24] = 1
    mask[20:24, 12:16, 6:10] = 2
    solid = surfaces.soften(*placed(mask, (1.3, 0.8, 0.8), (-7.0, 4.0, 50.0)))
    for azimuth, elevation in ((0, 0), (130, 0), (60, 35), (180, 90)):
        view = surfaces.look(solid, azimuth, elevation)
        for label, (d, h, w) in {1: (6.5, 6.5, 21.5), 2: (21.5, 13.5, 7.5)}.items():
            expected = np.argwhere(view.labels == label).mean(axis=0)[::-1]
            found = view.project([-7.0 + 0.8 * w, 4.0 + 0.8 * h, 50.0 - 1.3 * d])
            assert np.abs(found - expected).max() * view.pixel_mm < 0.5


def test_a_cut_takes_away_its_side_and_shows_the_inside():
    solid = surfaces.soften(*ball())
    plane = surfaces.Plane((15.0, 15.0, -15.0), (1.0, 0.0, 0.0))  # the left half goes
    whole, cut = (surfaces.look(solid, 90, 0, remove=remove) for remove in (None, plane))
    assert np.nanmax(np.where(whole.labels, whole.depth_mm, np.nan)) == pytest.approx(
        24.5, abs=0.3
    )  # the outermost voxel ends there
    seen = cut.depth_mm[cut.labels > 0]
    assert seen.max() < 15.2 and np.median(seen) == pytest.approx(15.0, abs=0.15), "a flat face through the middle"
    front = surfaces.look(solid, 0, 0, remove=plane)
    columns = np.nonzero(front.labels)[1]
    assert np.ptp(columns) * front.pixel_mm == pytest.approx(10.0, abs=1.0), "only the right half is left"
    row, column = (int(v) for v in cut.project([15.0, 15.0, -15.0])[::-1])
    assert cut.picture[row, column].std() < np.std(to_rgb(surfaces.BONE_COLOUR)), "the cut face is paler"


def test_hollows_are_darker_than_open_faces():
    """The same flat floor, once open and once at the bottom of a pit, facing the same lamps."""
    mask = np.zeros((50, 30, 60), np.uint8)
    mask[10:40, 20:25, 5:25] = 1
    pit = np.zeros_like(mask)
    pit[10:40, 12:25, 35:55] = 1
    pit[20:30, :20, 40:50] = 0
    mask |= pit
    view = surfaces.look(surfaces.soften(*placed(mask)), 0, 0)
    open_floor, pit_floor = (view.project([x, 20.0, -25.0]).astype(int) for x in (15.0, 45.0))
    light = view.picture.sum(axis=2)
    assert light[pit_floor[1], pit_floor[0]] < 0.85 * light[open_floor[1], open_floor[0]]


def test_labels_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="nothing to show"):
        surfaces.soften(*ball(), labels=[5])


@pytest.fixture(scope="module")
def neck():
    plan = phantom.draw_plan(11, 0, size=128, levels=())
    return surfaces.neck_parts(plan), phantom.render(plan)


HOLES = ("vertebral canal", "transverse foramen")


@pytest.mark.parametrize("level", ["C1", "C2", "C3", "C4", "C5", "C6", "C7"])
def test_named_parts_lie_on_their_bone_and_holes_in_none(neck, level):
    """Each part within 2 mm of its bone (the voxels are 1.3 mm wide); the middle of a hole is free."""
    parts, study = neck
    own = np.argwhere(study.labels == LABEL_IDS[level])
    to_lps = lps_to_ras(study.affine)
    bone = own @ to_lps[:3, :3].T + to_lps[:3, 3]
    for name, points in parts[level].items():
        for point in points:
            distance = np.linalg.norm(bone - point, axis=1).min()
            assert distance > 1.0 if name in HOLES else distance < 2.0, name


def test_parts_are_on_both_sides_and_in_order(neck):
    parts, _ = neck
    for level in ("C1", "C4", "C7"):
        left, right = parts[level]["transverse process"]
        assert left[0] - right[0] > 40, "LPS x runs to the left"
    c4 = parts["C4"]
    assert c4["body"][0, 1] < c4["vertebral canal"][0, 1] < c4["spinous process"][0, 1], "from front to back"
    assert c4["body"][0, 2] < parts["C2"]["body"][0, 2] < parts["C2"]["dens"][0, 2], "from feet to head"


def test_parts_look_up_onto_their_own_vertebra(neck):
    """From above, alone: the pixel under a named part shows that vertebra; under the canal it shows nothing."""
    parts, study = neck
    solid = surfaces.soften(study.labels, study.affine, labels=[LABEL_IDS["C5"]])
    view = surfaces.look(solid, *surfaces.STANDPOINTS["above"])
    for name, points in parts["C5"].items():
        for column, row in view.project(points).round().astype(int):
            assert (view.labels[row, column] == 5) == (name not in HOLES), name


def test_hidden_parts_are_known_to_be_hidden(neck):
    """From the front the lamina is behind the rest; from behind the body is."""
    parts, study = neck
    solid = surfaces.soften(study.labels, study.affine, labels=[LABEL_IDS["C5"]])
    shown = {
        name: {part: surfaces.look(solid, *surfaces.STANDPOINTS[name]).shows(parts["C5"][part]).all() for part in
               ("body", "lamina")} for name in ("front", "back")
    }  # fmt: skip
    assert shown["front"] == {"body": True, "lamina": False}
    assert shown["back"] == {"body": False, "lamina": True}
