"""Whole synthetic necks: their part of the scan, their stacks, what is told of them."""

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch

from cspine_utils import necks, phantom, stacks
from cspine_utils.anatomy import CERVICAL_IDS, LABEL_IDS, LEVELS, TARGETS
from cspine_utils.errors import ParameterError, StackError
from cspine_utils.necks import FewBoxes, NeckForm, render_necks
from cspine_utils.rsna import RsnaDataset
from cspine_utils.volume import Volume

#: Coarse in plane only as far as a study of this size is.
FORM = NeckForm(frames=20, size=40, study_size=64)
SETTINGS = {"seed": 3, "difficulty": "easy", "prevalence": "rsna", "form": FORM, "progress": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three necks and the twins of those that are broken: (folder, labels, labels of the twins)."""
    folder = tmp_path_factory.mktemp("necks")
    return (
        folder,
        render_necks(folder, 3, first=4, **SETTINGS),
        render_necks(folder, 3, first=4, twins=True, **SETTINGS),
    )


def plan_of(number):
    return phantom.draw_plan(3, number, size=64, difficulty="easy", prevalence="rsna")


# ---------------------------------------------------------------------------------------- the part of a scan that is it


@pytest.mark.parametrize(
    ("seed", "levels"), [(70, ("C1", "C7")), (71, ("C2", "C6")), (72, ()), (73, ("C1", "C3", "C5")), (74, ("C7",))]
)
def test_a_neck_holds_all_of_it_and_equals_that_part_of_the_scan(seed, levels):
    plan = phantom.draw_plan(seed, seed % 4, size=64, levels=levels)
    full, neck = phantom.render(plan, noise=False), phantom.render_neck(plan, noise=False)
    first = (np.linalg.inv(full.affine) @ neck.affine[:, 3])[:3]
    assert np.allclose(first, first.round(), atol=1e-6)
    place = tuple(slice(a, a + n) for a, n in zip(first.round().astype(int), neck.hu.shape, strict=True))
    assert np.abs(full.hu[place].astype(int) - neck.hu).max() <= 1
    for name in ("labels", "altered"):
        assert np.array_equal(getattr(full, name)[place], getattr(neck, name))
    cervical = np.isin(full.labels, list(CERVICAL_IDS))
    assert cervical.sum() == np.isin(neck.labels, list(CERVICAL_IDS)).sum(), "C1-C7, all of them"
    assert full.altered.sum() == neck.altered.sum() and bool(levels) == neck.altered.any()
    assert neck.fractures == full.fractures
    moved = [replace(b, slice_index=b.slice_index + place[0].start, y=b.y + place[1].start, x=b.x + place[2].start)
             for b in neck.boxes]  # fmt: skip
    assert [asdict(b) for b in moved] == [pytest.approx(asdict(b)) for b in full.boxes]
    assert neck.hu.size < 0.6 * full.hu.size


def test_a_neck_and_its_twin_share_their_noise():
    plan = phantom.draw_plan(75, 0, size=64, levels=("C4",))
    broken, intact = phantom.render_neck_pair(plan)
    assert np.array_equal(broken.hu, phantom.render_neck(plan).hu)
    assert np.array_equal(intact.hu, phantom.render_neck(plan, fractured=False).hu)
    quiet = phantom.render_neck(plan, noise=False)
    noise = broken.hu.astype(int) - quiet.hu
    assert noise.std() > 5
    where = np.nonzero(broken.hu != intact.hu)
    altered = np.nonzero(broken.altered)
    assert all(a.min() >= b.min() - 4 and a.max() <= b.max() + 4 for a, b in zip(where, altered, strict=True))
    assert not intact.altered.any() and intact.boxes == () and broken.boxes


# ------------------------------------------------------------------------------------------------------------ the store


def test_labels_are_those_of_the_plans(store):
    _, labels, twins = store
    plans = [plan_of(number) for number in (4, 5, 6)]
    assert list(labels.index) == [plan.uid for plan in plans] and list(labels.columns) == list(TARGETS)
    for plan, row in zip(plans, labels.to_numpy(), strict=True):
        assert row.tolist() == [*(int(level in plan.levels) for level in LEVELS), int(bool(plan.levels))]
    broken = [plan.uid for plan in plans if plan.levels]
    assert list(twins.index) == [f"{uid}.twin" for uid in broken] and not twins.to_numpy().any()
    assert 0 < len(broken) < 3, "this fixture needs both"


def test_a_twin_is_the_neck_without_its_fracture(store):
    folder, labels, twins = store
    for name in twins.index:
        intact, broken = stacks.open_study(folder, name), stacks.open_study(folder, name.removesuffix(".twin"))
        levels = [level for level in LEVELS if labels.loc[broken.study, level]]
        assert broken.facts["boxes"] and broken.evidence(levels).any()
        assert intact.facts["boxes"] == [] and intact.facts["boxes_known"] and not intact.evidence([]).any()
        different = np.abs(broken.hu.astype(int) - intact.hu) > 100
        assert 0 < different.mean() < 0.03
        at = np.isin(broken.labels, [LABEL_IDS[level] for level in levels])
        # Where HU differ a lot, it is at a broken level or right beside it.
        near = np.zeros_like(at)
        for f, r, c in np.argwhere(at)[::3]:
            near[max(0, f - 3) : f + 4, max(0, r - 3) : r + 4, max(0, c - 3) : c + 4] = True
        assert different[near].sum() > 0.95 * different.sum()


def test_what_is_there_is_not_made_again(store, monkeypatch):
    folder, labels, twins = store
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(phantom, "render_neck", None)  # whoever calls it fails
    assert render_necks(folder, 3, first=4, **SETTINGS).equals(labels)
    assert render_necks(folder, 3, first=4, twins=True, **SETTINGS).equals(twins)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(StackError, match="unexpected TypeError"):
        render_necks(folder, 1, first=4, **SETTINGS | {"form": replace(FORM, size=32)})
    with pytest.raises(StackError, match="unexpected TypeError"):
        render_necks(folder, 1, first=4, **SETTINGS | {"difficulty": "hard"})


def test_a_neck_that_another_run_made_meanwhile_is_kept(store, monkeypatch):
    folder, _, _ = store
    task = necks._Task(str(folder), plan_of(4), FORM, "rsna", False)
    monkeypatch.setattr(phantom, "render_neck", None)
    assert task.is_there()
    necks._render_one(task)


def covered(stored) -> np.ndarray:
    """Pixels `(h, w)` of a stack all of whose neighbours lie in the volume that it was made from."""
    geometry, size = stored.facts["geometry"], stored.hu.shape[1]
    inside = []
    for axis, length in zip(("rows", "columns"), geometry["source_shape"][1:], strict=True):
        start, step = geometry[axis]["start"], geometry[axis]["step"]
        centres = start + step * (np.arange(size) + 0.5)
        reach = max(1.0, step) + 0.5
        inside.append((centres - reach >= 0) & (centres + reach <= length))
    return np.outer(*inside)


def test_the_stack_equals_the_one_of_a_cohort_on_disk(tmp_path, monkeypatch):
    """Phantom -> DICOM, NIfTI and CSV -> prepare, and phantom -> store: two ways to one stack, but for the noise."""
    for name in ("render", "render_neck", "render_pair"):
        monkeypatch.setattr(phantom.rendering, name, partial(getattr(phantom.rendering, name), noise=False))
        if hasattr(phantom.cohort, name):
            monkeypatch.setattr(phantom.cohort, name, getattr(phantom.rendering, name))
    monkeypatch.setattr(phantom, "render_neck", phantom.rendering.render_neck)
    phantom.write_cohort(tmp_path / "cohort", studies=1, seed=6, size=64, difficulty="easy", prevalence="balanced")
    dataset = RsnaDataset(tmp_path / "cohort")
    report = stacks.prepare(dataset, tmp_path / "there", size=40, count=40, field_mm=108.0, workers=0, progress=False)
    assert list(report["status"]) == ["made"]
    settings = SETTINGS | {"seed": 6, "prevalence": "balanced"}
    labels = render_necks(tmp_path / "here", 1, **settings)
    uid = labels.index[0]
    assert labels.loc[uid].tolist() == dataset.labels.loc[uid, list(TARGETS)].tolist() and labels.loc[uid].any()
    there, here = (stacks.open_study(tmp_path / name, uid) for name in ("there", "here"))
    assert covered(here).all(), "of this neck, the whole square was scanned"
    assert np.abs(there.hu.astype(int) - here.hu).max() <= 1
    assert np.array_equal(there.labels, here.labels)
    assert there.facts["boxes_known"] and here.facts["boxes_known"]
    boxes = [np.array(sorted(study.facts["boxes"])) for study in (there, here)]
    assert boxes[0].shape == boxes[1].shape and len(boxes[0]) > 0
    assert np.abs(boxes[0] - boxes[1]).max() < 0.6, "train_bounding_boxes.csv has whole pixels"


@pytest.mark.parametrize("number", range(6))
def test_the_square_shows_no_rim_but_where_the_scan_ends(number):
    plan = phantom.draw_plan(80, number, size=64, difficulty="easy", prevalence="balanced")
    neck = phantom.render_neck(plan, noise=False)
    first = (np.linalg.inv(plan.grid.affine) @ neck.affine[:, 3])[:3].round().astype(int)
    layout = stacks.lay_out(Volume(neck.hu, neck.affine), neck.labels, 40, FORM.size, FORM.field_mm)
    for axis, place in ((1, layout.rows), (2, layout.columns)):
        begins = place.start >= 0 or first[axis] == 0
        ends = place.start + place.step * place.pixels <= neck.hu.shape[axis]
        assert begins and (ends or first[axis] + neck.hu.shape[axis] == plan.grid.shape[axis])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"count": -1}, "count"), ({"difficulty": "brutal"}, "difficulty"), ({"prevalence": "often"}, "prevalence"),
     ({"seed": 1.5}, "seed")],
    ids=str,
)  # fmt: skip
def test_necks_that_cannot_be_are_refused_before_a_folder_is_made(tmp_path, wrong, said):
    with pytest.raises(ParameterError, match=said):
        render_necks(tmp_path / "new", **{"count": 1, **SETTINGS, **wrong})
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------------ few boxes


def test_few_boxes_forget_the_fractured_levels_of_studies_that_are_not_told(store):
    folder, labels, _ = store
    full = stacks.StackDataset(folder, labels, evidence=True)
    broken = [study for study in labels.index if labels.loc[study, "patient_overall"]]
    assert broken and labels.loc[broken, list(LEVELS)].eq(0).any(axis=None), "an intact level in a broken neck"
    for told in ([], broken[:1], broken):
        few = FewBoxes(full, told)
        assert len(few) == len(full) and few.targets is full.targets
        for index, study in enumerate(full.studies):
            (x, y), (whole, target) = few[index], full[index]
            names = stacks.labels_of(whole[:, 5]).numpy()
            levels = [] if study in told else [LABEL_IDS[level] for level in LEVELS if labels.loc[study, level]]
            forgotten = np.isin(names, levels) | np.isin(whole[:, 6].numpy(), levels)
            assert np.array_equal(x[:, 6].isnan().numpy(), forgotten) and forgotten.any() == bool(levels)
            assert np.array_equal(x[:, 6].numpy()[~forgotten], whole[:, 6].numpy()[~forgotten])
            assert np.array_equal(x[:, :6], whole[:, :6]) and np.array_equal(y, target)
    prints = [data.fingerprint for data in (full, FewBoxes(full, []), FewBoxes(full, broken))]
    assert len(set(prints)) == 3 and FewBoxes(full, broken[::-1]).fingerprint == prints[2]


def test_marks_beside_the_mask_are_forgotten_too(store):
    folder, labels, _ = store
    full = stacks.StackDataset(folder, labels, evidence=True)
    index = next(i for i, study in enumerate(full.studies) if labels.loc[study, "patient_overall"])
    x, y = full[index]
    level, other = (next(i for i, told in enumerate(y[:-1]) if told == wanted) for wanted in (1, 0))
    x[0, 6, 0, :2] = torch.tensor([LABEL_IDS[LEVELS[level]], LABEL_IDS[LEVELS[other]]])
    assert (stacks.labels_of(x[0, 5, 0, :2]) == 0).all()
    full.__class__ = type("Marked", (stacks.StackDataset,), {"__getitem__": lambda self, i: (x.clone(), y)})
    seen = FewBoxes(full, [])[index][0][0, 6, 0, :2]
    assert seen[0].isnan() and seen[1] == LABEL_IDS[LEVELS[other]]


def test_boxes_of_others_and_of_nobody_are_refused(store):
    folder, labels, _ = store
    with pytest.raises(ParameterError, match="does not have: 1.2.3"):
        FewBoxes(stacks.StackDataset(folder, labels, evidence=True), ["1.2.3"])
    with pytest.raises(ParameterError, match="evidence=True"):
        FewBoxes(stacks.StackDataset(folder, labels), [])
