"""The acceptance of the phantom: its quick form passes, and every check fails on a phantom that is broken for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from cspine_utils.anatomy import LABEL_IDS, LEVELS
from cspine_utils.phantom import draw_plan
from cspine_utils.phantom.acceptance import __main__ as acceptance
from cspine_utils.phantom.acceptance import bytes_check, detector, separation, shortcuts
from cspine_utils.phantom.acceptance.__main__ import Amounts, Phantom, mixed_plan
from cspine_utils.phantom.acceptance.image_quality import TRABECULAR, noise_power, noise_rows, tissue_hu, tissue_rows
from cspine_utils.phantom.acceptance.label_statistics import drawn_labels, label_statistics_rows
from cspine_utils.phantom.acceptance.morphometry import (
    measure_body,
    measure_canal,
    measure_spinous,
    measure_study,
    measure_transverse_foramina,
    morphometry_rows,
)
from cspine_utils.phantom.acceptance.report import Row, as_text, table
from cspine_utils.phantom.acceptance.ruler import Mask
from cspine_utils.phantom.acceptance.truth_checks import (
    label_rows,
    label_shortcut_rows,
    oracle_rows,
    slit_rows,
    twin_rows,
)
from cspine_utils.phantom.export import draw_storage
from cspine_utils.phantom.rendering import render

SEED = 2026
SMALL = Amounts(
    people=8,
    people_size=112,
    noisy=2,
    cases=4,
    cases_size=80,
    images=4,
    images_size=48,
    plans=400,
    labels=5000,
    bytes=2,
)
LEFT_BACK_HEAD = np.diag([-1.0, -1.0, 1.0])  # LPS -> RAS


@pytest.fixture(scope="module")
def phantom():
    return Phantom(SMALL, SEED, quick=True, progress=False)


@pytest.fixture(scope="module")
def person():
    """One intact neck without noise, and its landmarks."""
    plan = draw_plan(SEED, 0, size=112, levels=())
    return render(plan, noise=False), plan.landmarks()


@pytest.fixture(scope="module")
def plans(phantom):
    return phantom.plans


def failed(rows: list[Row]) -> list[str]:
    return [row.what for row in rows if not row.passed]


def fails(rows: list[Row], part: str) -> bool:
    """Does a row with this in its name fail?"""
    assert any(part in row.what for row in rows), f"no row about {part}: {[r.what for r in rows]}"
    return any(part in what for what in failed(rows))


# -------------------------------------------------------------------------------------------------------- quick form


@pytest.mark.parametrize("name", [name for name in acceptance.CHECKS if name != "detector"])
def test_quick_form_passes(phantom, name):
    rows = acceptance.accept(phantom, [name])
    assert rows and not failed(rows), "\n" + as_text([row for row in rows if not row.passed])


# ------------------------------------------------------------------------------------------------------- morphometry


def vertebra_of_known_size(spacing, turn_deg, offset):
    """A blocky C4 on a voxel grid that is tilted against it: body 23 x 15 x 11, canal 22 x 13, spinous process 16 long
    from the canal's rear wall at y 20.5, holes of 5.6 mm at x = 16 (mm); the grid is moved by `offset` voxels."""
    shape = tuple(int(length / mm) for length, mm in zip((44, 66, 60), spacing, strict=True))
    affine = np.array([[0, 0, -spacing[2], 30], [0, -spacing[1], 0, 20], [-spacing[0], 0, 0, 22], [0, 0, 0, 1]], float)
    affine[:3, 3] += affine[:3, :3] @ offset
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    lps = (index @ affine[:3, :3].T + affine[:3, 3]) @ LEFT_BACK_HEAD
    t = np.deg2rad(turn_deg)
    axes = np.array([[1, 0, 0], [0, np.cos(t), -np.sin(t)], [0, np.sin(t), np.cos(t)]])
    x, y, z = np.moveaxis(lps @ axes, -1, 0)
    side = np.abs(x)
    bone = (side < 11.5) & (np.abs(y) < 7.5) & (np.abs(z) < 5.5)
    ring = (side < 15) & (y > 7.0) & (y < 24) & ~((side < 11) & (y > 7.5) & (y < 20.5))
    wings = (side > 11) & (side < 21) & (y > -5) & (y < 5) & ~(np.hypot(side - 16, y) < 2.8)
    flat = np.abs(z) < 3.5
    bone |= flat & ring | (np.abs(z) < 2.2) & wings | (side < 2.5) & (y > 20.5) & (y < 36.5) & (np.abs(z) < 3.0)
    return Mask(bone.astype(np.uint8) * 4, affine, 4, np.zeros(3), axes)


@pytest.mark.parametrize("turn_deg", [0.0, 12.0])
@pytest.mark.parametrize("spacing", [(0.9, 0.7, 0.7), (1.25, 1.1, 1.1)])
def test_the_ruler_measures_a_bone_of_known_size(spacing, turn_deg):
    """One flat face on a grid can be half a voxel off; over grids that lie differently the ruler must be right."""
    rng, found = np.random.default_rng(0), []
    for _ in range(8):
        mask = vertebra_of_known_size(spacing, turn_deg, rng.random(3))
        body, canal = measure_body(mask), measure_canal(mask)
        spinous = measure_spinous(mask, canal["rear wall"])
        holes = measure_transverse_foramina(mask, body["width"])
        assert len(holes) == 2
        found.append([*body.values(), canal["canal depth"], canal["canal width"], spinous, np.mean(holes)])
    wanted = [23.0, 15.0, 11.0, 11.0, 13.0, 22.0, np.hypot(16.0, 3.0), 5.6]
    np.testing.assert_allclose(np.mean(found, axis=0), wanted, atol=0.45 * spacing[0])
    assert np.abs(np.array(found) - wanted).max() < 1.6 * spacing[0]


@pytest.mark.parametrize("factor", [0.75, 1.3])
def test_a_scaled_spine_is_noticed(person, factor):
    study, marks = person
    affine = study.affine.copy()
    affine[:3] *= factor
    marks = {name: {"centre": factor * np.asarray(m["centre"]), "axes": m["axes"]} for name, m in marks.items()}
    right = measure_study(study.labels, study.affine, person[1])
    scaled = measure_study(study.labels, affine, marks)
    for name in ("width C5", "depth C5", "canal depth C5", "C1 width", "C2 height", "disc C4/5"):
        assert scaled[name] == pytest.approx(factor * right[name], rel=0.04, abs=0.6)
    rows = morphometry_rows(pd.DataFrame([scaled | {"sex": "M", "age_years": 40.0 + i} for i in range(4)]))
    assert len(failed(rows)) > 10


def test_equal_sexes_and_equal_people_are_noticed(person):
    lengths = measure_study(person[0].labels, person[0].affine, person[1])
    people = [lengths | {"sex": "MF"[i % 2], "age_years": 40.0} for i in range(24)]
    rows = morphometry_rows(pd.DataFrame(people))
    assert fails(rows, "men / women")
    assert all(
        fails([row], "SD, mm")
        for row in rows
        if "SD, mm" in row.what and "C3-C6" not in row.what and "disc" not in row.what
    )


def test_a_missing_bone_is_noticed(person):
    study, marks = person
    lengths = measure_study(np.where(study.labels == 5, 0, study.labels), study.affine, marks)
    assert np.isnan(lengths["width C5"]) and np.isnan(lengths["disc C4/5"]) and np.isfinite(lengths["width C4"])
    rows = morphometry_rows(pd.DataFrame([lengths | {"sex": "F", "age_years": 30.0}] * 3))
    assert fails(rows, "width C5") and fails(rows, "could not be measured")


# ------------------------------------------------------------------------------------------------------------ labels


def broken_labels(labels: np.ndarray, fault: str) -> np.ndarray:
    labels = labels.copy()
    box = ndimage.find_objects(labels)[3]
    middle = tuple(int(v) for v in ndimage.center_of_mass(labels == 2))
    if fault == "missing levels":
        labels[labels == 6] = 0
    elif fault == "levels out of order":
        labels = np.array([0, 1, 2, 4, 3, 5, 6, 7, 8, 9, 10], dtype=np.uint8)[labels]
    elif fault == "touching voxels":
        labels[box][labels[box] == 4] = 4
        labels[ndimage.binary_dilation(labels == 4, iterations=3) & (labels == 0)] = 4
    elif fault == "hole voxels":
        labels[middle] = 0
    else:
        labels[:, :, labels.shape[2] // 2 - 1 : labels.shape[2] // 2 + 1] = 0  # every bone in two halves
    return labels


@pytest.mark.parametrize(
    "fault", ["missing levels", "levels out of order", "touching voxels", "hole voxels", "largest piece"]
)
def test_a_faulty_label_map_is_noticed(person, fault):
    assert failed(label_rows([person[0].labels])) == []
    assert fails(label_rows([broken_labels(person[0].labels, fault)]), fault)


def with_gap(case):
    """The gap carved out of the label: what must never be shipped."""
    carve = lambda study: replace(study, labels=np.where(case.broken.altered, 0, study.labels))  # noqa: E731
    return replace(case, broken=carve(case.broken), noisy=carve(case.noisy))


def test_a_label_that_shows_the_gap_is_noticed(phantom):
    rows = slit_rows(map(with_gap, phantom.cases))
    assert fails(rows, "filled by closing at the break")
    carved = slit_rows(map(with_gap, phantom.cases), exact=False)
    assert fails(carved, "filled by closing at the break"), "even where only the interval is judged"


def test_a_label_map_that_tells_broken_from_intact_is_noticed(phantom):
    def swollen(case):
        labels = case.noisy.labels.copy()
        for level in case.levels:
            labels[ndimage.binary_dilation(labels == LABEL_IDS[level]) & (labels == 0)] = LABEL_IDS[level]
        return replace(case, noisy=replace(case.noisy, labels=labels))

    assert fails(label_shortcut_rows(map(swollen, phantom.cases), np.random.default_rng(0)), "volume")


# ------------------------------------------------------------------------------------------------------------- twins


def test_a_twin_that_moves_elsewhere_is_noticed(phantom):
    case = phantom.cases[1]
    assert len(case.levels) == 1
    moved = case.intact.hu.copy()
    far = case.intact.labels == LABEL_IDS["C7" if case.levels[0] < "C4" else "C2"]
    moved[far] = np.roll(case.intact.hu, 2, axis=2)[far]
    rows = twin_rows([replace(case, intact=replace(case.intact, hu=moved))])
    assert fails(rows, "within 5 mm") and fails(rows, "outside the broken bones")


def test_a_single_voxel_elsewhere_is_noticed(phantom):
    case = phantom.cases[0]
    hu = case.intact.hu.copy()
    hu[0, 0, 0] += 1
    assert fails(twin_rows([replace(case, intact=replace(case.intact, hu=hu))]), "outside the broken bones")


def elsewhere(case):
    return replace(case, broken=replace(case.broken, altered=np.roll(case.broken.altered, 9, axis=1)))


def test_a_record_of_another_place_is_noticed(phantom):
    assert fails(twin_rows(map(elsewhere, phantom.cases)), "within 5 mm")
    assert fails(oracle_rows(map(elsewhere, phantom.cases)), "AUROC")


def unseen(case):
    truths = tuple(replace(t, altered_voxels=0) for t in case.broken.fractures)
    noise = case.noisy.hu.astype(int) - case.broken.hu
    noisy = replace(case.noisy, hu=(case.intact.hu + noise).astype(np.int16))
    return replace(case, broken=replace(case.broken, hu=case.intact.hu, fractures=truths), noisy=noisy)


def test_a_fracture_that_cannot_be_seen_is_noticed(phantom):
    cases = [unseen(case) for case in phantom.cases]
    assert fails(twin_rows(cases), "changed no voxel")
    assert fails(oracle_rows(cases), "AUROC")
    silent = [replace(c, broken=replace(c.broken, fractures=())) for c in phantom.cases]
    assert fails(twin_rows(silent), "changed no voxel"), "a broken level without a record"


# --------------------------------------------------------------------------------------------------------- shortcuts


def test_auroc_is_that_of_an_independent_library():
    rng = np.random.default_rng(0)
    for n in (10, 200):
        truth, score = rng.random(n) < 0.4, rng.normal(size=n).round(1)
        truth[:2] = True, False
        assert separation.auroc(score, truth) == pytest.approx(roc_auc_score(truth, score))
    assert np.isnan(separation.auroc([1, 2], [1, 1]))


def test_the_interval_holds_what_it_promises():
    rng = np.random.default_rng(1)
    wanted = 0.7602  # of two unit normals that lie one standard deviation apart
    hits = 0
    for _ in range(300):
        truth = np.arange(80) < 35
        low, high = separation.auroc_interval(rng.normal(size=80) + truth, truth)
        hits += low <= wanted <= high
    assert 0.90 < hits / 300 < 0.99


@pytest.mark.parametrize(
    ("shift", "exact", "passes"), [(0.0, True, True), (0.8, True, False), (0.0, False, True), (1.2, False, False)]
)
def test_auroc_rows_judge(shift, exact, passes):
    rng = np.random.default_rng(2)
    truth = np.arange(300) % 2 == 0
    row = separation.auroc_row("x", "y", rng.normal(size=300) + shift * truth, truth, exact=exact)
    assert row.passed == passes


def test_models_find_what_is_planted():
    rng = np.random.default_rng(3)
    x, truth = rng.normal(size=(600, 5)), rng.random(600) < 0.5
    x[:, 1] += 0.9 * truth
    bent = x.copy()
    bent[:, 1] = rng.normal(size=600) * np.where(truth, 2.0, 0.5)  # far out on either side: no straight line sees it
    found = {
        (name, what): separation.auroc(separation.cross_validated(model, data, truth, np.random.default_rng(0)), truth)
        for name, model in separation.MODELS.items()
        for what, data in (("straight", x), ("bent", bent), ("nothing", rng.normal(size=(600, 5))))
    }
    assert min(found["linear model", "straight"], found["boosted trees", "straight"]) > 0.68
    assert found["boosted trees", "bent"] > 0.75 > 0.6 > found["linear model", "bent"]
    assert all(abs(value - 0.5) < 0.08 for (_, what), value in found.items() if what == "nothing")


def test_features_of_a_plan_hold_everything_but_the_answer(plans):
    names = " ".join(shortcuts.plan_features(plans[:60], draw_storage(60, np.random.default_rng(0), 0.75)))
    wanted = "age_years|sex = M|scan.noise_hu|scan.kernel = |surroundings.collar|mimics.C5|storage.order|storage.signed"
    for part in (wanted + "|storage.transfer_syntax|field of view|thickness|uid, last digit|grid.motion").split("|"):
        assert part in names, part
    assert "fractures" not in names and "levels" not in names.split(".")


def metadata(plans):
    storages = draw_storage(len(plans), np.random.default_rng(0), 0.75)
    return shortcuts.metadata_rows(plans, storages, np.random.default_rng(0))


def test_noise_that_depends_on_the_label_is_noticed(plans):
    louder = [replace(p, scan=replace(p.scan, noise_hu=p.scan.noise_hu * (1.15 if p.levels else 1.0))) for p in plans]
    assert fails(metadata(louder), "scan.noise_hu")


def test_a_rare_flag_that_depends_on_the_label_is_noticed(plans):
    broken = np.array([bool(p.levels) for p in plans])
    rare = broken & (np.arange(len(plans)) % 10 == 0)
    assert 0.45 < separation.auroc(rare, broken) < 0.58, "too rare for an AUROC"
    assert not shortcuts.flag_row("x", {"rare": rare}, broken).passed
    assert shortcuts.flag_row("x", {"chance": np.arange(len(plans)) % 10 == 0}, broken).passed


def test_sorted_uids_are_noticed(plans):
    ordered = sorted(plans, key=lambda p: bool(p.levels))
    named = [replace(p, uid=f"1.2.{10000 + 7 * bool(p.levels) + i % 7}") for i, p in enumerate(ordered)]
    assert failed(metadata(named))


def test_look_alikes_in_intact_bone_alone_are_noticed(plans):
    hidden = [replace(p, mimics={k: v for k, v in p.mimics.items() if k not in p.levels}) for p in plans]
    assert fails(shortcuts.mimic_rows(hidden), "all levels")


def test_pictures_with_louder_noise_are_noticed(person):
    """Twenty-four pieces of one neck with noise of their own; in one half of them half as much again."""
    study, rng = person[0], np.random.default_rng(5)
    part = (slice(30, 46), slice(None), slice(None))

    def piece(sd):
        noise = rng.normal(0.0, sd, study.hu[part].shape)
        return shortcuts.image_features(
            replace(study, hu=(study.hu[part] + noise).astype(np.int16), labels=study.labels[part])
        )

    same = [(piece(25.0 + i % 5), i % 2 == 0) for i in range(24)]
    louder = [(piece((25.0 + i % 5) * (1.5 if i % 2 == 0 else 1.0)), i % 2 == 0) for i in range(24)]
    assert failed(shortcuts.image_rows(same, np.random.default_rng(0))) == []
    assert fails(shortcuts.image_rows(louder, np.random.default_rng(0)), "noise in muscle: AUROC")


# --------------------------------------------------------------------------------------------------------- HU, noise


def people_of(hu: dict[str, float], ages, loss: float) -> pd.DataFrame:
    rng = np.random.default_rng(6)
    return pd.DataFrame([hu | {"age_years": a, TRABECULAR: 420.0 - loss * (a - 20) + rng.normal(0, 20)} for a in ages])


def test_wrong_hounsfield_units_are_noticed(person):
    study, marks = person
    right = tissue_hu(study, marks)
    shifted = tissue_hu(replace(study, hu=study.hu + np.int16(120)), marks)
    for name, value in right.items():
        if name != "airway":  # the airway is what is darker than -500
            assert shifted[name] == pytest.approx(value + 120, abs=40), name
    ages = np.linspace(20, 90, 30)
    assert failed(tissue_rows(people_of({name: right[name] for name in right}, ages, 3.0))) == []
    assert len(failed(tissue_rows(people_of(shifted, ages, 3.0)))) >= 5
    assert fails(tissue_rows(people_of(right, ages, 0.0)), "against age")


def test_noise_power_of_white_and_of_smooth_noise():
    rng = np.random.default_rng(7)
    white = rng.normal(0.0, 20.0, (200, 32, 40))
    f, power = noise_power(white, 0.8)
    assert f[-1] < 0.5 / 0.8 and (np.diff(f) > 0).all()
    # Flat: the variance spread over 1 / pixel^2. (The first value suffers from taking the mean away.)
    np.testing.assert_allclose(power[1:], 20.0**2 * 0.8**2, rtol=0.12)
    smooth = ndimage.gaussian_filter(white, (0, 1.5, 1.5))
    sharp = white - ndimage.gaussian_filter(white, (0, 1.0, 1.0))
    spectra = {
        name: noise_power(values, 0.8) for name, values in (("white", white), ("smooth", smooth), ("sharp", sharp))
    }
    sds = [("bone", 30.0, 60.0)]

    def judged(kernel, name):
        return failed(noise_rows(sds, [(kernel, *spectra[name])]))

    assert judged("bone", "sharp") == [] and judged("soft", "smooth") == []
    assert judged("bone", "white") and judged("bone", "smooth") and judged("soft", "sharp") and judged("soft", "white")
    assert fails(noise_rows([("bone", 30.0, 30.0)], []), "T1-T2")


# ------------------------------------------------------------------------------------------------------- label rates


def test_levels_that_break_independently_are_noticed():
    right = drawn_labels(5000, SEED)
    rng = np.random.default_rng(8)
    apart = np.stack([rng.permutation(column) for column in right.T], axis=1)
    rows = label_statistics_rows(apart)
    assert fails(rows, "broken together") and fails(rows, "P(C7 | C6)") and fails(rows, "pairs of levels")
    rarer = right.copy()
    rarer[::4, 6] = False
    assert fails(label_statistics_rows(rarer), "C7 broken")


# ------------------------------------------------------------------------------------------------------------- bytes


def test_other_bytes_are_noticed(monkeypatch):
    assert bytes_check.differing({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == 2
    calls = []

    def unstable(root, studies, seed, **settings):
        calls.append(root)
        root.mkdir()
        (root / "file").write_text(str(len(calls)))

    monkeypatch.setattr(bytes_check, "write_cohort", unstable)
    monkeypatch.setattr(bytes_check, "_killed", lambda root, *_: True)
    assert failed(bytes_check.bytes_rows(1, 0))


# ---------------------------------------------------------------------------------------------------------- detector


def toy_pairs(count: int, contrast: float, seed: int) -> detector.Pairs:
    """Crops of 16 voxels: smooth noise, and in the broken one of each pair a dark slit at a random place."""
    rng = np.random.default_rng(seed)
    x = np.repeat(ndimage.gaussian_filter(rng.normal(size=(count, 1, 2, 16, 16, 16)), (0, 0, 0, 1, 1, 1)), 2, axis=1)
    altered = np.zeros((count, 16, 16, 16), dtype=bool)
    for i in range(count):
        d, h, w = rng.integers(3, 8, 3)
        altered[i, d : d + 5, h : h + 5, w] = True
        x[i, 0, 0][altered[i]] -= contrast
    levels = np.array([LEVELS[i % 7] for i in range(count)])
    return detector.Pairs(
        torch.from_numpy(x).half(), torch.from_numpy(altered), levels, np.full(count, "easy"), np.arange(count)
    )


@pytest.mark.parametrize(("contrast", "passes"), [(2.0, True), (0.0, False)])
def test_the_detector_finds_a_slit_and_nothing_in_nothing(monkeypatch, contrast, passes):
    def drawn(difficulty, count, seed, *, first=0, progress=True):
        return toy_pairs(count, contrast, seed + first)

    monkeypatch.setattr(detector, "draw_pairs", drawn)
    rows = detector.detector_rows(
        mask_steps=0, seed=1, train_pairs=48, test_pairs=28, steps=8, progress=False, difficulties=("easy",)
    )
    assert fails(rows, "easy: AUROC") != passes


def test_crops_of_pairs_hold_the_fracture():
    pairs = detector.draw_pairs("easy", 2, SEED, progress=False)
    assert pairs.x.shape == (2, 2, 2, *detector.SHAPE) and list(pairs.levels) == ["C1", "C2"]
    assert pairs.altered.flatten(1).any(dim=1).all()
    assert torch.equal(pairs.x[:, 0, 0] != pairs.x[:, 1, 0], (pairs.x[:, 0, 0] - pairs.x[:, 1, 0]) != 0)
    targets = detector.token_targets(pairs.altered)
    assert targets.shape == (2, 8, 12, 12) and targets.flatten(1).sum(dim=1).min() >= 1


# ------------------------------------------------------------------------------------------------------ command line


def test_rows_and_tables():
    rows = [
        Row("a", "b", 1.0, 0.0, 2.0, 3),
        Row("a", "c", float("nan"), None, None, 0),
        Row("a", "d", 9.0, 0.0, 1.0, 1, judged=False),
    ]
    assert list(table(rows)["pass"]) == ["yes", "NO", "-"]
    assert "NO" in as_text(rows)
    assert (Row("", "", 1.0, 1.0, None, 1).wanted, Row("", "", 1.0, 0.0, 0.0, 1).wanted) == (">= 1", "0")


def test_exit_codes(tmp_path, monkeypatch, capsys):
    out = tmp_path / "table.csv"
    assert acceptance.main(["--quick", "--only", "rates", "--out", str(out)]) == 0
    assert "0 failed" in capsys.readouterr().out and len(pd.read_csv(out)) > 15
    monkeypatch.setitem(acceptance.CHECKS, "rates", lambda p: [Row("rates", "planted", 2.0, 0.0, 1.0, 1)])
    assert acceptance.main(["--quick", "--only", "rates"]) == 1
    for wrong in (["--only", "colour"], ["--studies", "1"]):
        assert acceptance.main(["--quick", *wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error:") and error.count("\n") == 1


def test_mixed_plans_have_one_and_many_levels():
    plans = [mixed_plan(SEED, i, 64) for i in range(14)]
    assert {len(p.levels) for p in plans[1::2]} == {1} and {p.levels[0] for p in plans[1::2]} == set(LEVELS)
    assert max(len(p.levels) for p in plans[::2]) > 2
