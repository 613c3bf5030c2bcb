"""What surrounds the vertebrae: HU at known places, sizes, sides, parts equal to wholes, rates."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cspine_utils.phantom import neck, soft
from cspine_utils.phantom.grid import Grid, Motion
from cspine_utils.phantom.patient import build_spine, draw_patient
from cspine_utils.phantom.sdf import BAND_MM
from cspine_utils.phantom.surroundings import TOOTH_PLACES, Surroundings, draw_surroundings, metal_positions
from cspine_utils.phantom.vertebrae import JOINT_MM, build_vertebrae, layout

PLAIN = Surroundings()


def person(**changes):
    """A mean man without bend and twist, and his spine."""
    patient = draw_patient(np.random.default_rng(3))
    mean = {
        "sex": "M",
        "scale": 1.0,
        "neck": (1.0, 1.0),
        "bend_deg": 0.0,
        "twist_deg": 0.0,
        "head_twist_deg": 0.0,
        "cobb_deg": 10.0,
        "slope_deg": 12.0,
        "factors": {name: np.ones(10) for name in patient.factors},
        "degeneration": (0.0,) * 8,
    }
    patient = replace(patient, **(mean | changes))
    return patient, build_spine(patient)


PATIENT, SPINE = person()


def whole_grid(pixel, step, motion=None, shape=None):
    shape = shape or (int(190 / step), int(165 / pixel), int(165 / pixel))
    top = SPINE.poses["C1"].centre + [-82.0, -75.0, 22.0]
    return Grid(shape, tuple(float(v) for v in top), pixel, step, step, motion=motion)


def render(grid, around=PLAIN, seed=0, patient=PATIENT, spine=SPINE):
    return soft.soft_tissue(grid, spine, patient, around, np.random.default_rng(seed))


def line(start, way, length_mm, around=PLAIN, step=0.25):
    """HU along the y axis from LPS `start` for `length_mm`, `way` -1 to the front or +1 to the back."""
    count = int(length_mm / step)
    low = np.array(start, dtype=float) - [0.25, length_mm if way < 0 else 0.0, -0.25]
    hu = render(Grid((3, count, 3), tuple(low), step, step, step), around)[1, :, 1].numpy()
    return hu[::-1] if way < 0 else hu


def hu_at(lps, around=PLAIN, **more):
    """HU at one place: the middle of a few tiny voxels around it."""
    origin = np.array(lps, dtype=float) + [-0.25, -0.25, 0.25]
    return float(render(Grid((3, 3, 3), tuple(origin), 0.25, 0.25, 0.25), around, **more)[1, 1, 1])


def beside(level, x, y, z=0.0):
    """LPS of a place x to the left of and y behind the middle of a body."""
    return SPINE.poses[level].centre + [x, y, z]


# ------------------------------------------------------------------------------------------------- Hounsfield units

PLACES = [
    ("nasopharynx", beside("C1", 0, -24), -1001, -950),
    ("oropharynx", beside("C3", 0, -18), -1001, -950),
    ("glottis", beside("C5", 0, -26), -1001, -950),
    ("trachea", beside("T1", 0, -31), -1001, -950),
    ("left lung", beside("T3", 37, -12, -6), -900, -800),
    ("sternocleidomastoid", beside("C5", 42, -22.5), 45, 60),
    ("semispinalis capitis", beside("C4", 18, 39.5), 45, 60),
    ("levator scapulae", beside("C5", 38, 19), 45, 60),
    ("middle scalene", beside("C6", 36, 5), 45, 60),
    ("trapezius", beside("C7", 20, 54), 45, 60),
    ("longus colli", beside("C5", 8, -11.5), 45, 60),
    ("tongue", beside("C1", 12, -60), 45, 60),
    ("posterior triangle", beside("C6", 52, 2), -120, -90),
    ("thyroid gland", beside("C7", 17, -31), 90, 120),
    ("oesophagus, left of the midline", beside("T1", 4, -18), 40, 60),
    ("parotid gland", beside("C1", 55, -13), -10, 25),
    ("cerebellum", SPINE.skull.to_patient([22.0, 40.0, 26.0]), 30, 40),
    ("medulla", SPINE.canal("C1") + [0, 2, 17], 30, 40),
    *((f"cord at {n}", SPINE.canal(n), 30, 40) for n in ("C1", "C2", "C4", "C7", "T1")),
    ("CSF beside the cord at C4", SPINE.canal("C4") + [7.7, 0, 0], 5, 15),
    ("CSF behind the cord at C6", SPINE.canal("C6") + [0, (7.9 + SPINE.sizes["C6"].canal_depth - 2.6) / 4, 0], 5, 15),
    ("epidural fat at C5", SPINE.canal("C5") + [SPINE.sizes["C5"].canal_width / 2 - 1.4, 0, 0], -90, -40),
    *(
        (f"disc {a}/{b}", (SPINE.poses[a].centre + SPINE.poses[b].centre) / 2, 70, 110)
        for a, b in (("C2", "C3"), ("C4", "C5"), ("C7", "T1"))
    ),
    ("disc C5/6, annulus", (SPINE.poses["C5"].centre + SPINE.poses["C6"].centre) / 2 + [0, -6, 0], 70, 110),
    ("tooth", SPINE.skull.to_patient([*TOOTH_PLACES[3], -19.0]), 1500, 2500),
]
VESSELS = [
    ("left carotid", beside("C6", 24, -22)),
    ("right carotid", beside("C6", -24, -22)),
    ("left jugular", beside("C7", 30.5, -24.5)),
    *((f"vertebral artery at {n}", SPINE.poses[n].to_patient([*layout(n, SPINE.sizes[n]).foramen, 0.0]))
      for n in ("C1", "C3", "C4", "C6")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "lps", "low", "high"), PLACES, ids=[p[0] for p in PLACES])
def test_hu_at_known_places(name, lps, low, high):
    for seed in range(3):
        assert low <= hu_at(lps, seed=seed) <= high, name


@pytest.mark.parametrize(("name", "lps"), VESSELS, ids=[v[0] for v in VESSELS])
def test_vessels_take_up_contrast_and_muscles_do_not(name, lps):
    assert 38 < hu_at(lps) < 52
    assert hu_at(lps, Surroundings(contrast_hu=320.0)) == pytest.approx(320.0, abs=8.0)
    muscle = beside("C5", 38, 19)
    assert hu_at(muscle, Surroundings(contrast_hu=320.0)) == hu_at(muscle)


def test_fat_lies_under_the_skin_and_is_thicker_behind():
    widths = {}
    for way, x in ((-1, 9.0), (1, 25.0)):
        hu = line(beside("C6", x, 0), way, 90.0, Surroundings(fat_mm=8.0))
        air = np.flatnonzero(hu < -700)[0]
        skin = hu[air - 8 : air - 2]
        assert 20 < skin.max() < 45, "skin"
        fat = hu[: air - 8]
        depth = np.flatnonzero(fat[::-1] > 20)[0]
        assert -120 < np.median(fat[-depth:]) < -90
        widths[way] = depth * 0.25
    assert widths[1] > widths[-1] > 2.0
    assert widths[1] > 6.0


# ------------------------------------------------------------------------------------------------------------- sizes


def prevertebral_mm(level, around=PLAIN):
    """Soft tissue between a body's front and the air in front of it, in the midline."""
    start = beside(level, 0, -SPINE.sizes[level].depth / 2)
    return np.flatnonzero(line(start, -1, 40.0, around) < -500)[0] * 0.25


@pytest.mark.parametrize(
    ("level", "low", "high"), [("C2", 3, 5), ("C3", 3, 5), ("C4", 3, 5.6), ("C6", 11, 18), ("C7", 12, 18)]
)
def test_prevertebral_tissue(level, low, high):
    assert low <= prevertebral_mm(level) <= high


def test_swelling_thickens_the_prevertebral_tissue_where_it_is():
    swollen = Surroundings(swelling_mm=8.0, swelling_level=3.0)
    assert prevertebral_mm("C3", swollen) - prevertebral_mm("C3") == pytest.approx(8.0, abs=0.6)
    assert prevertebral_mm("T1", swollen) == pytest.approx(prevertebral_mm("T1"), abs=0.3)
    assert 40 < hu_at(beside("C3", 0, -13), swollen) < 60, "swelling is tissue, not air or fat"


@pytest.mark.parametrize(("level", "deep", "wide"), [("C2", 8.8, 12.4), ("C4", 8.7, 14.0), ("C7", 7.4, 11.4)])
def test_size_of_the_cord(level, deep, wide):
    middle = SPINE.canal(level)
    grid = Grid((1, 121, 121), tuple(middle + [-15.0, -15.0, 0.0]), 0.25, 0.25, 0.25)
    inside = (render(grid)[0] - 36.0).abs().numpy() < 12.0
    assert inside[:, 60].sum() * 0.25 == pytest.approx(deep, abs=0.6)
    assert inside[60].sum() * 0.25 == pytest.approx(wide, abs=0.6)


# ------------------------------------------------------------------------------------------------- parts and wholes

BOXES = [
    (slice(3, 60), slice(5, 70), slice(0, 51)),
    (slice(40, 71), slice(31, 92), slice(40, 97)),
    (slice(66, 67), slice(0, 1), slice(7, 100)),
    (slice(90, 118), slice(44, 101), slice(13, 102)),
]
EVERYTHING = Surroundings(
    320.0, True, 6.0, 8.0, 7.0, 4.2, ((1, "lower", 4), (-1, "upper", 3)), (3.0, 4.0), True, 0.6, True
)


@pytest.mark.parametrize("motion", [None, Motion(-20.0, (3.1, -2.3))], ids=["still", "moved"])
@pytest.mark.parametrize(("pixel", "step"), [(1.5, 1.5), (0.8, 1.3)], ids=["full resolution", "half resolution"])
def test_a_part_of_soft_tissue_equals_the_whole(pixel, step, motion):
    patient, spine = person(twist_deg=5.0, bend_deg=-3.0, head_twist_deg=6.0)
    grid = whole_grid(pixel, step, motion)
    full = render(grid, EVERYTHING, 5, patient, spine)
    for box in BOXES:
        part = render(grid.part(box), EVERYTHING, 5, patient, spine)
        assert (part - full[box]).abs().max() < 1e-3
    inner = grid.part(BOXES[1])
    again = render(inner.part((slice(2, 9), slice(3, 40), slice(5, 20))), EVERYTHING, 5, patient, spine)
    assert (again - full[BOXES[1]][2:9, 3:40, 5:20]).abs().max() < 1e-3


def nearest(grid, bones, vertebrae=True):
    """Distance to the nearest unlabelled bone, `(d, h, w)` mm, as far as it is exact."""
    known = build_vertebrae(grid, SPINE, PATIENT) if vertebrae else {}
    found = torch.full(grid.shape, BAND_MM)
    for field in neck.build_other_bones(grid, SPINE, PATIENT, {n: f for n, f in known.items() if n in bones}):
        found[field.slices] = torch.minimum(found[field.slices], field.d)
    return found


def test_a_part_of_the_bones_equals_the_whole():
    grid = whole_grid(1.5, 1.5, Motion(-30.0, (2.0, 1.0)))
    every = ("C1", "C2", "C7", "T1", "T2", "T3")
    full = nearest(grid, every)
    assert (full < 0).float().mean() > 0.01
    for box in BOXES:
        assert (nearest(grid.part(box), every) - full[box]).abs().max() < 1e-3


def test_every_tensor_is_made_on_the_device_of_the_grid():
    grid = replace(whole_grid(1.5, 1.5, Motion(-30.0, (2.0, 1.0))), device="meta")  # refuses to meet tensors of a CPU
    assert render(grid, EVERYTHING).device.type == "meta"
    bones = neck.build_other_bones(grid, SPINE, PATIENT, build_vertebrae(grid, SPINE, PATIENT))
    assert len(bones) > 10 and {field.d.device.type for field in bones} == {"meta"}


def test_bones_that_cannot_touch_a_part_are_skipped():
    middle = whole_grid(0.8, 1.0).index(SPINE.poses["C5"].centre).astype(int)
    crop = whole_grid(0.8, 1.0).part([slice(m - 8, m + 8) for m in middle])
    assert neck.build_other_bones(crop, SPINE, PATIENT, {}) == []


def test_the_condyles_sit_on_the_atlas():
    grid = whole_grid(0.8, 0.8, shape=(50, 140, 206))
    atlas = build_vertebrae(grid, SPINE, PATIENT)["C1"]
    gap = nearest(grid, ("C1",))[atlas.slices]
    touching = atlas.d < 0
    assert (gap[touching] + (-atlas.d[touching]).clamp(max=0.0)).min() > JOINT_MM - 1.0, "no bone inside the atlas"
    facets = touching & (atlas.x.abs() > 12) & (atlas.x.abs() < 24) & (atlas.z > 5) & (atlas.y.abs() < 9)
    close = facets & (gap < JOINT_MM + 1.5)
    for side in (-1, 1):
        assert (close & (side * atlas.x > 0)).sum() * 0.8**3 > 20, "a condyle rests on each side"


# ---------------------------------------------------------------------------------------------- sides, table, rates


def test_asymmetric_things_are_on_their_own_side():
    around = Surroundings(metal=((1, "lower", 3),), plaque=(0.0, 5.0))
    (metal,) = metal_positions(SPINE, PATIENT, around)
    assert metal[0] > 15, "1 is the patient's left, where x of LPS grows"
    assert metal[1] < SPINE.poses["C2"].centre[1] - 30, "teeth are in front"
    mirrored = metal * [-1, 1, 1] + [2 * SPINE.skull.centre[0], 0, 0]
    assert hu_at(metal, around) == pytest.approx(3071)
    assert hu_at(mirrored, around) < 2600
    grid = whole_grid(0.8, 1.0)
    bright = (render(grid, around) - render(grid, replace(around, plaque=(0.0, 0.0)))) > 200
    w = np.argwhere(bright.numpy())[:, 2]
    assert len(w) and w.min() > grid.index(SPINE.poses["C4"].centre)[2] + 20, "left is at high columns"
    assert metal_positions(SPINE, PATIENT, PLAIN).shape == (0, 3)


def test_the_table_stays_where_it_is_when_the_patient_moves():
    still, moved = (render(whole_grid(1.0, 2.0, m)) for m in (None, Motion(1000.0, (0.0, -6.0))))
    sheet = (still > -900) & (still < -200)
    behind = np.zeros(sheet.shape, dtype=bool)
    for d in range(2, 40):
        column = still[d, :, 82].numpy()
        behind[d, np.flatnonzero(column > -150)[-1] + 3 :, 82] = True
    places = sheet.numpy() & behind
    assert places.any(axis=(1, 2))[2:40].mean() > 0.9, "a table or head holder lies behind every slice"
    assert ((moved > -900) & (moved < -200)).numpy()[places].mean() > 0.95


def test_a_collar_is_outside_the_skin():
    grid = whole_grid(1.0, 2.0)
    bare, worn = render(grid), render(grid, Surroundings(collar=True, collar_gap_mm=6.0))
    changed = (worn - bare).abs() > 20
    assert changed.any() and bare[changed].max() < 45 and (bare[changed] < -500).float().mean() > 0.95
    shell = changed & (worn > -50)
    assert shell.sum() * 2.0 > 5_000, "mm3 of plastic"
    assert not shell[: int(grid.index(SPINE.poses["C1"].centre)[0])].any(), "a collar ends under the ears"


def test_rates_and_ranges_of_surroundings():
    rng = np.random.default_rng(0)
    people = [draw_patient(rng) for _ in range(3000)]
    drawn = [draw_surroundings(rng, p) for p in people]
    for rate, hits in (
        (0.25, [s.contrast_hu is not None for s in drawn]),
        (0.40, [s.collar for s in drawn]),
        (0.10, [s.swelling_mm > 0 for s in drawn]),
        (0.25, [s.dental > 0 for s in drawn]),
    ):
        assert np.mean(hits) == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 3000))
    assert all(200 <= s.contrast_hu <= 400 for s in drawn if s.contrast_hu)
    assert all(4 <= s.swelling_mm <= 10 for s in drawn if s.swelling_mm)
    assert {s.dental for s in drawn} == {0, 1, 2, 3, 4}
    assert all(len(set(s.metal)) == s.dental for s in drawn)
    old = np.array([p.age_years > 70 for p in people])
    plaque, calcium = np.array([max(s.plaque) > 0 for s in drawn]), np.array([s.cartilage_calcium for s in drawn])
    assert plaque[old].mean() > 0.3 and plaque[np.array([p.age_years < 45 for p in people])].mean() == 0
    assert calcium[old].mean() > calcium[~old].mean() + 0.2
    assert 0 < np.mean([s.tendon_calcium for s in drawn]) < 0.05


def test_surroundings_and_tissue_depend_on_their_seed_alone():
    assert draw_surroundings(np.random.default_rng(4), PATIENT) == draw_surroundings(np.random.default_rng(4), PATIENT)
    assert draw_surroundings(np.random.default_rng(4), PATIENT) != draw_surroundings(np.random.default_rng(5), PATIENT)
    grid = whole_grid(3.0, 4.0)
    assert torch.equal(render(grid, seed=1), render(grid, seed=1))
    assert not torch.equal(render(grid, seed=1), render(grid, seed=2))
