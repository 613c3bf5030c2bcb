"""One vertebra alone, twins, look-alikes, kernels, motion, other devices: what `rendering` promises."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from cspine_utils.anatomy import LABEL_IDS, LEVELS
from cspine_utils.errors import ParameterError
from cspine_utils.phantom import (
    FRACTURE_TYPES,
    KERNELS,
    KINDS,
    MIMICS,
    draw_plan,
    render,
    render_pair,
    render_vertebra,
    render_vertebra_pair,
    scene,
)
from cspine_utils.phantom.acceptance.image_quality import noise_power
from cspine_utils.phantom.cuts import Cut, apply_cuts, unbroken
from cspine_utils.phantom.fractures import DIFFICULTIES, draw_cuts
from cspine_utils.phantom.grid import Grid, Motion, draw_noise, enlarge, noise
from cspine_utils.phantom.mimics import KINDS_OF_MIMICS, changes
from cspine_utils.phantom.patient import SIZES, build_spine
from cspine_utils.phantom.scanner import Scan, blur, quantum_noise
from cspine_utils.phantom.sdf import Field, Pose, Primitive
from cspine_utils.phantom.vertebrae import layout

SIZE = 80


def common(full, crop):
    """Slices of the common voxels in the full study and in the crop, by their affines."""
    first = (np.linalg.inv(full.affine) @ crop.affine[:, 3])[:3]
    assert np.allclose(first, first.round(), atol=1e-6), "a crop lies on the voxels of its study"
    first = first.round().astype(int)
    low, high = np.maximum(first, 0), np.minimum(first + crop.hu.shape, full.hu.shape)
    assert (high > low).all()
    return tuple(
        tuple(slice(int(a), int(b)) for a, b in zip(low - shift, high - shift, strict=True)) for shift in (0, first)
    )


# ------------------------------------------------------------------------------------------------ one vertebra alone


@pytest.mark.parametrize(
    ("level", "broken", "kernel"),
    [("C4", (), "bone"), ("C1", ("C1", "C2"), "sharp"), ("C7", ("C6", "C7"), "soft"), ("C3", ("C2", "C5"), "bone")],
)
def test_one_vertebra_alone_equals_its_box_of_the_study(level, broken, kernel):
    plan = draw_plan(60 + LEVELS.index(level), 0, size=SIZE, levels=broken)
    plan = replace(plan, scan=replace(plan.scan, kernel=kernel))
    full, crop = render(plan, noise=False), render_vertebra(plan, level, noise=False)
    there, here = common(full, crop)
    assert np.abs(full.hu[there].astype(int) - crop.hu[here]).max() <= 1  # rounding to whole HU
    assert np.array_equal(full.labels[there], crop.labels[here])
    assert np.array_equal(full.altered[there], crop.altered[here])
    own = crop.labels == LABEL_IDS[level]
    assert own.sum() > 0.97 * (full.labels == LABEL_IDS[level]).sum(), "the default box holds the whole vertebra"
    seen = {f.level for f in crop.fractures}
    assert seen <= set(broken) and (level not in broken or level in seen)


def test_the_crop_check_would_notice_another_place():
    plan = draw_plan(61, 0, size=SIZE, levels=())
    full, crop = render(plan, noise=False), render_vertebra(plan, "C4", noise=False)
    there, here = common(full, crop)
    shifted = (slice(there[0].start + 1, there[0].stop + 1), *there[1:])
    assert np.abs(full.hu[shifted].astype(int) - crop.hu[here]).max() > 200


def test_a_crop_that_leaves_the_scan_is_filled_with_air():
    plan = draw_plan(62, 0, size=SIZE, levels=())
    crop = render_vertebra(plan, "C1", box_mm=(90.0, 60.0, 60.0))
    top = (np.linalg.inv(render(plan).affine) @ crop.affine[:, 3])[0]
    outside = int(round(-top))
    assert outside > 5, "this fixture must leave the scan"
    assert (crop.hu[:outside] == -1000).all() and not crop.labels[:outside].any()
    assert crop.hu[outside:].max() > 500


def test_crops_cost_a_small_part(monkeypatch):
    """Counted in voxels that are computed, not in seconds: those depend on the machine."""
    sizes = []
    original = scene.soft.soft_tissue
    monkeypatch.setattr(scene.soft, "soft_tissue", lambda grid, *a: sizes.append(grid.shape) or original(grid, *a))
    plan = draw_plan(63, 0, size=SIZE, levels=("C5",))
    render(plan)
    render_vertebra_pair(plan, "C5")
    full, crop = (int(np.prod(shape)) for shape in sizes)
    assert crop < 0.25 * full, "and both twins come from one computation"


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": "T1"},
        {"level": "C4", "box_mm": (10, 10)},
        {"level": "C4", "box_mm": (0, 9, 9)},
        {"level": "C4", "box_mm": 50},
    ],
)
def test_impossible_crops_are_refused(wrong):
    with pytest.raises(ParameterError, match="level|box_mm"):
        render_vertebra(draw_plan(0, 0, size=SIZE, levels=()), **wrong)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fractures": {"c5": "lamina"}}, "'c5'"),
        ({"fractures": {"T1": "lamina"}}, "'T1'"),
        ({"fractures": {"C5": "dens_ii"}}, "fractures of C5.*'dens_ii'.*lamina"),
        ({"fractures": ("C5",)}, "a dict"),
        ({"mimics": {"C5": ("ponticulus",)}}, "mimics of C5.*limbus"),
        ({"mimics": {"C5": "limbus"}}, "a tuple"),
        ({"difficulty": "brutal"}, "difficulty"),
        ({"size": 999}, "which the grid has"),
    ],
)
def test_a_plan_changed_into_nonsense_is_refused(changed, said):
    with pytest.raises(ParameterError, match=said):
        replace(draw_plan(65, 0, size=SIZE, levels=()), **changed)


@pytest.mark.parametrize("device", ["cuda:99", "meta", "cpu:3", "abacus", None])
def test_a_device_that_cannot_render_is_refused(device):
    plan = draw_plan(66, 0, size=48, levels=())
    for draw in (render, render_pair, lambda plan, device: render_vertebra(plan, "C4", device=device)):
        with pytest.raises(ParameterError, match="device"):
            draw(plan, device=device)


def test_a_pair_equals_two_renders():
    plan = draw_plan(64, 0, size=SIZE, levels=("C3",))
    pair = render_pair(plan)
    alone = render(plan), render(plan, fractured=False)
    for one, other in zip(pair, alone, strict=True):
        assert np.array_equal(one.hu, other.hu) and np.array_equal(one.labels, other.labels)
        assert one.boxes == other.boxes and one.fractures == other.fractures
    assert not np.array_equal(pair[0].hu, pair[1].hu)


# --------------------------------------------------------------------------------------------------------- fractures


def test_at_least_twelve_kinds_over_the_levels_where_they_happen():
    assert len(KINDS) >= 12
    for level in LEVELS:
        assert sum(FRACTURE_TYPES[level].values()) == pytest.approx(1)
    assert set(FRACTURE_TYPES["C1"]).isdisjoint(FRACTURE_TYPES["C5"]), "a ring breaks differently"
    assert "dens_ii" in FRACTURE_TYPES["C2"] and "spinous_process" not in FRACTURE_TYPES["C3"]
    processes = ("lamina", "facet", "pillar", "transverse_process", "spinous_process", "pedicle")
    share = [sum(FRACTURE_TYPES[level].get(kind, 0) for kind in processes) for level in ("C3", "C7")]
    assert share[1] > share[0] > 0.5, "breaks of the processes outnumber those of the body, more so at C7"
    assert all(len(kind.text) > 20 and kind.plane in ("axial", "sagittal", "coronal") for kind in KINDS.values())


def test_incomplete_breaks_move_nothing_and_comminuted_ones_have_one_more_line():
    patterns = {}
    for draw in range(40):
        cuts, gap, move, pattern = draw_cuts(
            np.random.default_rng(draw), "lamina", "C5", SIZES["C5"], DIFFICULTIES["standard"]
        )
        patterns.setdefault(pattern, []).append((len(cuts), move, cuts[0]))
        assert 0.5 <= gap <= 1.6
    assert set(patterns) == {"complete", "incomplete", "comminuted"}
    assert all(n == 1 and move == 0 and cut.shift == (0.0, 0.0, 0.0) for n, move, cut in patterns["incomplete"])
    assert all(n == 2 for n, *_ in patterns["comminuted"]) and all(n == 1 for n, *_ in patterns["complete"])


@pytest.mark.parametrize("level", ["C4", "C7"])
def test_a_break_of_the_transverse_process_spares_the_pillar(level):
    """The process lies in front of the pillar (at C7 beside it): a line through the pillar is another fracture."""
    for seed in range(4):
        plan = replace(draw_plan(90 + seed, 0, size=128, levels=(level,)), fractures={level: "transverse_process"})
        plan = replace(plan, grid=replace(plan.grid, motion=None))
        crop = render_vertebra(plan, level, noise=False)
        place, at = plan.landmarks()[level], layout(level, plan.spine.sizes[level])
        index = np.argwhere(crop.altered)
        ras = index @ crop.affine[:3, :3].T + crop.affine[:3, 3]
        x, y, _ = ((ras * [-1, -1, 1] - place["centre"]) @ place["axes"]).T
        inside = (np.abs(np.abs(x) - at.pillar[0]) < 5.5) & (np.abs(y - at.pillar[1]) < 4.5)
        assert len(index) >= 8 and inside.mean() < 0.10


def ball(radius=12.0, spacing=0.8, size=48):
    grid = Grid((size,) * 3, (-spacing * size / 2, -spacing * size / 2, spacing * size / 2), spacing, spacing, spacing)
    field = Field(grid, Pose(np.zeros(3), np.eye(3)), (-16.0,) * 3, (16.0,) * 3)
    sphere = Primitive(lambda x, y, z: torch.sqrt(x * x + y * y + z * z) - radius, (-radius,) * 3, (radius,) * 3)
    field.add(sphere, 0.0)
    return field


def broken_ball(**changes):
    field = ball()
    cut = Cut((0.0, 0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (20.0,) * 3, 2.0, rough_mm=0.0)
    free = torch.full_like(field.d, -9.0)
    return field, apply_cuts(field, unbroken(field), [replace(cut, **changes)], np.random.default_rng(0), free)


def test_a_cut_leaves_its_gap_and_the_label_no_trace_of_it():
    field, bone = broken_ball()
    middle = (field.x.abs() < 1) & (field.y.abs() < 1)
    empty = field.z[middle & (bone.occupied > 0) & (field.d < 0)]
    assert empty.min() == pytest.approx(0.0, abs=0.8) and empty.max() == pytest.approx(2.0, abs=0.8)
    assert torch.equal(bone.whole < 0, field.d < 0), "nothing moved, so the label is the unbroken ball"
    assert (bone.surface[middle & (bone.occupied.abs() < 0.5) & (field.d < -3)] < -3).all(), "fresh faces: no cortex"
    _, old = broken_ball(corticated=True)
    assert torch.equal(old.surface, old.occupied), "old faces have cortex"


def test_the_piece_on_the_normals_side_moves_and_only_inside_the_window():
    field, bone = broken_ball(shift=(3.0, 0.0, 0.0), window=(0.0, 0.0, 8.0), radii=(20.0, 20.0, 8.0))
    whole = bone.whole < 0
    upper = (field.z > 6) & (field.z < 9)
    assert field.x[whole & upper].mean() == pytest.approx(3.0, abs=0.3), "to the left, by 3 mm"
    lower = field.z < -3
    assert torch.equal(bone.occupied[lower], field.d[lower])


def test_moved_pieces_stay_out_of_the_neighbours_joint():
    field = ball()
    cut = Cut((0.0, 0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (20.0,) * 3, 1.0, (4.0, 0.0, 0.0), rough_mm=0.0)
    wall = field.x - 13.0  # a neighbour from x = 13 on: positive inside
    bone = apply_cuts(field, unbroken(field), [cut], np.random.default_rng(0), wall)
    assert field.x[bone.occupied < 0].max() <= 13.0 + 0.8
    free = apply_cuts(field, unbroken(field), [cut], np.random.default_rng(0), torch.full_like(wall, -9.0))
    assert field.x[free.occupied < 0].max() > 14.0, "without it the piece would be there"


# ------------------------------------------------------------------------------------------------------- look-alikes


def test_look_alikes_do_not_know_the_fractures():
    for index in range(30):
        plans = [draw_plan(9, index, size=SIZE, levels=levels) for levels in ((), ("C5",), LEVELS)]
        assert plans[0].mimics == plans[1].mimics == plans[2].mimics
        assert plans[0].surroundings == plans[2].surroundings and plans[0].scan == plans[2].scan
        assert plans[0].grid == plans[2].grid


def test_rates_of_look_alikes():
    count = {name: 0 for name in MIMICS}
    places = {name: 0 for name in MIMICS}
    for index in range(1500):
        plan = draw_plan(8, index, size=48, levels=())
        for name, kind in KINDS_OF_MIMICS.items():
            if kind.ages[0] <= plan.patient.age_years <= kind.ages[1]:
                places[name] += len(kind.levels)
                count[name] += sum(name in names for names in plan.mimics.values())
    for name, kind in KINDS_OF_MIMICS.items():
        sd = np.sqrt(kind.rate * (1 - kind.rate) / places[name])
        assert abs(count[name] / places[name] - kind.rate) < 4 * sd, name
    easy, hard = (
        sum(len(n) for i in range(300) for n in draw_plan(8, i, size=48, levels=(), difficulty=d).mimics.values())
        for d in ("easy", "hard")
    )
    assert 3 < hard / easy < 6


@pytest.mark.parametrize("name", sorted(MIMICS))
def test_each_look_alike_is_to_be_seen_and_stays_at_its_vertebra(name):
    kind = KINDS_OF_MIMICS[name]
    level = kind.levels[-1] if name != "vessel_channel" else "C5"
    plan = draw_plan(71, 0, size=112, levels=())
    plain, shown = (
        render_vertebra(replace(plan, mimics=mimics), level, noise=False) for mimics in ({}, {level: (name,)})
    )
    change = np.abs(shown.hu.astype(int) - plain.hu)
    assert (change > 60).sum() >= 4, "invisible"
    spacing = (plan.grid.step_mm, plan.grid.pixel_mm, plan.grid.pixel_mm)
    bone = (plain.labels == LABEL_IDS[level]) | (shown.labels == LABEL_IDS[level])
    far = ndimage.distance_transform_edt(~bone, sampling=spacing) > 8
    assert change[far].max() <= 1
    assert not shown.altered.any() and shown.fractures == (), "a look-alike is no fracture"


def test_one_look_alike_does_not_shift_another():
    alone, both = (
        changes(np.random.default_rng(3), "C5", SIZES["C5"], names)
        for names in (("osteophyte",), ("vessel_channel", "osteophyte"))
    )
    assert [p.low for p, _ in alone.added] == [p.low for p, _ in both.added]
    assert len(both.channels) == len(alone.channels) + 1


# ----------------------------------------------------------------------------------------------------------- scanner


def test_blur_keeps_the_mean_and_has_the_kernels_width():
    grid = Grid((9, 65, 65), (0.0, 0.0, 0.0), 0.4, 1.0, 1.5)
    point = torch.zeros(grid.shape)
    point[4, 32, 32] = 1.0
    x = 0.4 * (torch.arange(65) - 32)
    sds = {}
    for name, kernel in KERNELS.items():
        spread = blur(point, grid, name)
        assert float(spread.sum()) == pytest.approx(1.0, abs=1e-4)
        line = spread.sum(dim=(0, 1))
        sds[name] = float((line * x * x).sum()) ** 0.5
        wanted = ((1 + kernel.edge) - 4 * kernel.edge) ** 0.5 * kernel.sigma_mm if kernel.edge < 1 / 3 else None
        if wanted:
            assert sds[name] == pytest.approx(wanted, rel=0.12), name
        assert (float(line.min()) < -1e-3) == (kernel.edge > 0), "only edge enhancement overshoots"
        across = spread.sum(dim=(1, 2))
        assert across.numpy()[2:7] == pytest.approx(np.array([0, 0.25, 1, 0.25, 0]) / 1.5, abs=1e-4), "a box of 1.5 mm"
    assert sds["soft"] > 1.5 * sds["bone"]


def test_noise_has_the_spectrum_of_its_kernel():
    grid = Grid((40, 128, 128), (0.0, 0.0, 500.0), 0.5, 1.0, 1.0)  # far above the shoulders
    spine = build_spine(draw_plan(1, 0, size=48, levels=()).patient)
    peak = {}
    for name, kernel in KERNELS.items():
        made = quantum_noise(grid, spine, Scan(name, 20.0, 2.0, 0.0), np.random.default_rng(0)).numpy()
        assert made.std() == pytest.approx(20.0, rel=0.02)
        f, power = noise_power(made, 0.5)
        wanted = kernel.noise_power(torch.from_numpy(f)).numpy()
        shape = np.corrcoef(power, wanted)[0, 1]
        assert shape > 0.97, name
        peak[name] = f[power.argmax()]
    assert peak["soft"] < 0.25 < 0.4 < peak["bone"] < peak["sharp"]
    white = np.random.default_rng(0).standard_normal((40, 128, 128))
    f, power = noise_power(white, 0.5)
    flat = np.corrcoef(power, KERNELS["bone"].noise_power(torch.from_numpy(f)).numpy())[0, 1]
    assert flat < 0.9, "white noise must not pass"


def test_noise_of_thick_slices_is_shared_with_the_neighbours():
    spine = build_spine(draw_plan(1, 0, size=48, levels=()).patient)
    together = {}
    for thickness in (1.0, 2.0):
        grid = Grid((60, 64, 64), (0.0, 0.0, 500.0), 0.5, 1.0, thickness)
        n = quantum_noise(grid, spine, Scan("bone", 20.0, 2.0, 0.0), np.random.default_rng(0)).numpy()
        together[thickness] = float((n[1:] * n[:-1]).mean() / (n * n).mean())
        assert n.std() == pytest.approx(20.0, rel=0.03)
    assert abs(together[1.0]) < 0.03 and together[2.0] > 0.5


def test_metal_makes_streaks_in_its_slices_alone():
    plan = next(p for p in (draw_plan(5, i, size=SIZE, levels=()) for i in range(40)) if p.surroundings.dental)
    without = replace(plan, scan=replace(plan.scan, streak_hu=0.0))
    change = np.abs(render(plan, noise=False).hu.astype(int) - render(without, noise=False).hu).max(axis=(1, 2))
    assert change.max() > 100 and (change[len(change) // 2 :] == 0).all(), "teeth are above the middle of the neck"


def test_motion_displaces_everything_below_and_the_landmarks_with_it():
    plan = draw_plan(14, 0, size=SIZE, levels=("C6",))
    still = replace(plan, grid=replace(plan.grid, motion=None))
    height = plan.spine.poses["C4"].centre[2]
    pixel = plan.grid.pixel_mm
    moved = replace(plan, grid=replace(plan.grid, motion=Motion(float(height), (2 * pixel, -pixel))))
    a, b = render(still, noise=False), render(moved, noise=False)
    for label, name in ((2, "C2"), (6, "C6"), (7, "C7")):
        centres = [np.array(ndimage.center_of_mass(study.labels == label)) for study in (a, b)]
        wanted = (0, 0, 0) if name == "C2" else (0, -1, 2)
        np.testing.assert_allclose(centres[1] - centres[0], wanted, atol=0.12)
        shift = moved.landmarks()[name]["centre"] - still.landmarks()[name]["centre"]
        np.testing.assert_allclose(shift, np.array([wanted[2], wanted[1], 0]) * pixel, atol=1e-6)
    altered = [np.argwhere(study.altered).mean(axis=0) for study in (a, b)]
    np.testing.assert_allclose(altered[1] - altered[0], (0, -1, 2), atol=0.3)


# --------------------------------------------------------------------------------------------- grids and their parts


def test_noise_and_enlarging_of_a_part_equal_the_whole():
    grid = Grid((23, 31, 37), (1.0, 2.0, 3.0), 0.7, 0.9, 1.0)
    part = (slice(5, 14), slice(3, 22), slice(10, 37))
    whole, alone = (noise(g, 4.0, np.random.default_rng(1)) for g in (grid, grid.part(part)))
    assert torch.equal(whole[part], alone) and whole.std() > 0.3
    linear = []
    for g in (grid, grid.part(part)):
        x, y, z = g.half().coordinates()
        linear.append(enlarge(x + 2 * y - 3 * z, g))
    x, y, z = grid.coordinates()
    torch.testing.assert_close(linear[0], x + 2 * y - 3 * z, atol=1e-4, rtol=0)
    torch.testing.assert_close(linear[0][part], linear[1], atol=1e-4, rtol=0)
    np.testing.assert_allclose(
        (grid.part(part).affine @ [1, 2, 3, 1])[:3], (grid.affine @ [6, 5, 13, 1])[:3], atol=1e-9
    )


def test_index_and_affine_are_inverse():
    grid = Grid((9, 10, 11), (-4.0, 7.0, 30.0), 0.7, 1.1, 1.0).part((slice(2, 9), slice(1, 10), slice(3, 11)))
    lps = np.array([-1.2, 9.3, 24.0])
    back = grid.affine @ np.append(grid.index(lps), 1.0)
    np.testing.assert_allclose(back[:3], lps * [-1, -1, 1], atol=1e-9)


def test_everything_is_made_on_the_device_of_the_grid():
    """The "meta" device computes shapes alone and refuses to meet a CPU's tensors: a stand-in where there is no GPU."""
    plan = draw_plan(15, 0, size=48, levels=())
    grid = replace(plan.grid, device="meta")
    fields = scene.build_vertebrae(grid, plan.spine, plan.patient)
    assert {f.d.device.type for f in fields.values()} == {"meta"}
    made = quantum_noise(grid, plan.spine, plan.scan, np.random.default_rng(0))
    assert blur(made, grid, "bone").is_meta and draw_noise(grid, 5.0, np.random.default_rng(0)).on(grid).is_meta
    with pytest.raises(RuntimeError, match="device"):
        made + torch.zeros(grid.shape)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_study():
    plan = draw_plan(16, 0, size=SIZE, levels=("C2", "C6"))
    cpu, gpu = render(plan), render(plan, device="cuda")
    assert (np.abs(cpu.hu.astype(int) - gpu.hu) > 2).mean() < 1e-3
    assert (cpu.labels != gpu.labels).mean() < 1e-4
