"""The synthetic cohort: anatomy, exact twins, truth, label patterns, storage forms, bytes."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import highdicom
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage, stats

from cspine_utils.anatomy import LABEL_IDS, LEVELS
from cspine_utils.errors import ParameterError
from cspine_utils.phantom import (
    FRACTURE_TYPES,
    draw_plan,
    fractures,
    level_patterns,
    read_truth,
    render,
    render_pair,
    scene,
    write_cohort,
)
from cspine_utils.phantom import __main__ as command_line
from cspine_utils.phantom import cohort as cohort_module
from cspine_utils.phantom.acceptance.bytes_check import digests
from cspine_utils.phantom.acceptance.label_statistics import drawn_labels, label_statistics_rows
from cspine_utils.phantom.acceptance.truth_checks import contacts
from cspine_utils.phantom.export import draw_storage
from cspine_utils.phantom.patterns import PATTERNS
from cspine_utils.phantom.scene import ALTERED_HU, MIN_ALTERED_VOXELS

SIZE, STUDIES_WRITTEN, SEED = 64, 7, 5
TOUCHING = np.ones((3, 3, 3))
ALL_TYPES = sorted((kind, level) for level in LEVELS for kind in FRACTURE_TYPES[level])
ONE_LEVEL_PER_TYPE = sorted({kind: level for kind, level in ALL_TYPES}.items())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A small cohort, and the SHA-256 of each of its files."""
    root = tmp_path_factory.mktemp("phantom") / "cohort"
    write_cohort(root, STUDIES_WRITTEN, SEED, size=SIZE, prevalence="balanced", progress=False)
    return root, digests(root)


def truth_of(root, uid):
    return read_truth(root / "truth" / f"{uid}.npz")


def storage_table(root):
    return pd.read_csv(root / "truth" / "storage.csv")


def forced(level, kind, seed=11, **settings):
    return replace(draw_plan(seed, 0, levels=(level,), size=SIZE, **settings), fractures={level: kind})


# ---------------------------------------------------------------------------------------------------------- anatomy


@pytest.mark.parametrize(("seed", "levels"), [(0, ()), (1, ()), (2, ("C1", "C2", "C7")), (3, ("C3", "C4", "C5", "C6"))])
def test_vertebrae_are_whole_separate_and_in_order(seed, levels):
    plan = draw_plan(seed, 0, size=SIZE, levels=levels)
    labels = render(plan).labels
    voxel_ml = plan.grid.voxel_mm**3 / 1000
    heights = []
    for label in range(1, 9):
        own = labels == label
        parts, _ = ndimage.label(own, structure=TOUCHING)
        assert np.bincount(parts[own]).max() > 0.99 * own.sum()
        if label <= 7:
            assert 5 < own.sum() * voxel_ml < 22, f"label {label} has an impossible volume"
        heights.append(ndimage.center_of_mass(own)[0])
    assert heights == sorted(heights), "labels must follow each other from head to feet"
    assert contacts(labels) == 0
    length = (heights[6] - heights[0]) * plan.grid.step_mm
    assert 80 < length < 130, "C1 to C7 of an adult"


def test_contact_check_sees_a_contact():
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels[1, 1, 1], labels[2, 2, 2] = 1, 2
    assert contacts(labels) == 2


def test_hu_of_bone_air_and_canal():
    plan = draw_plan(4, 0, size=SIZE, levels=())
    study = render(plan)
    bone = study.hu[study.labels == LABEL_IDS["C4"]]
    assert 300 < np.median(bone) < 900 and np.percentile(bone, 98) > 700
    corner = study.hu[: len(study.hu) // 2, :6, :6]
    assert abs(float(corner.mean()) + 1000) < 15
    assert study.hu.min() >= -1024 and study.hu.max() <= 3071
    # The spinal canal is open at every level: from the middle of the body backwards the ray leaves the bone for 8 mm.
    for level in ("C3", "C4", "C5", "C6", "C7"):
        own = study.labels == LABEL_IDS[level]
        w = int(round(ndimage.center_of_mass(own)[2]))
        filled = ndimage.binary_fill_holes(own.any(axis=0)) & ~own.any(axis=0)
        canal = filled[:, w - 3 : w + 4].sum(axis=0).max() * plan.grid.pixel_mm
        assert canal > 7, f"{level}: the canal is {canal:.1f} mm deep"


def test_noise_rises_at_the_shoulders():
    plan = draw_plan(8, 0, size=SIZE, levels=())
    noisy, clean = render(plan).hu.astype(float), render(plan, noise=False).hu
    tissue = (clean > -500) & (clean < 2500)  # away from the clipped ends of the range
    top, bottom = ((noisy - clean)[part][tissue[part]].std() for part in (slice(5, 20), slice(-15, None)))
    assert top == pytest.approx(plan.scan.noise_hu, rel=0.05)
    assert 1.3 * top < bottom < 3 * top


# ------------------------------------------------------------------------------------------------------------ twins


@pytest.mark.parametrize(("kind", "level"), ALL_TYPES)
def test_each_fracture_is_visible_and_changes_nothing_else(kind, level):
    plan = forced(level, kind, seed=20 + LEVELS.index(level))
    broken, intact = render_pair(plan)
    truth = broken.fractures[0]
    assert (truth.level, truth.type) == (level, kind)
    assert broken.altered.sum() == truth.altered_voxels >= MIN_ALTERED_VOXELS
    assert not intact.altered.any() and intact.boxes == () and intact.fractures == ()

    change = np.abs(broken.hu.astype(int) - intact.hu)
    assert change[broken.altered].min() >= ALTERED_HU - 1
    assert change[~broken.altered].max() <= ALTERED_HU + 1
    spacing = (plan.grid.step_mm, plan.grid.pixel_mm, plan.grid.pixel_mm)
    distance = ndimage.distance_transform_edt(~broken.altered, sampling=spacing)
    assert distance[change > 0].max() < 15
    far_from_bone = ndimage.distance_transform_edt(intact.labels != LABEL_IDS[level], sampling=spacing) > 10
    assert not change[far_from_bone].any()


@pytest.mark.parametrize(("kind", "level"), ONE_LEVEL_PER_TYPE)
def test_the_label_does_not_show_the_gap(kind, level):
    plan = forced(level, kind, seed=40 + LEVELS.index(level), difficulty="easy")  # the widest gaps
    broken, intact = (study.labels == LABEL_IDS[level] for study in render_pair(plan))
    parts = [ndimage.label(mask, structure=TOUCHING)[1] for mask in (broken, intact)]
    assert parts == [1, 1]
    assert abs(int(broken.sum()) - int(intact.sum())) < (0.15 if kind == "compression" else 0.06) * intact.sum()
    # No slit either: closing by one voxel adds about as much to the broken label as to the intact one.
    added = [(ndimage.binary_closing(mask, structure=TOUCHING) & ~mask).sum() for mask in (broken, intact)]
    assert added[0] < (2.0 if kind == "burst" else 1.25) * added[1] + 12


def test_an_invisible_fracture_is_drawn_again(monkeypatch):
    plan, widened = forced("C4", "lamina"), []

    def mostly_nothing(rng, kind, level, size, difficulty, widen):
        cuts, *rest = fractures.draw_cuts(rng, kind, level, size, difficulty, widen)
        widened.append(widen)
        return (cuts if len(widened) > 5 else []), *rest

    monkeypatch.setattr(scene, "draw_cuts", mostly_nothing)
    assert render(plan).fractures[0].altered_voxels >= MIN_ALTERED_VOXELS
    assert len(widened) >= 6 and widened[0] == 1.0 < widened[5], "later draws must grow, or the search may not end"


def test_other_levels_stay_bit_identical():
    plan = draw_plan(31, 0, size=SIZE, levels=("C2", "C6"))
    one = replace(plan, fractures={"C6": plan.fractures["C6"]})
    both, single = render(plan), render(one)
    first = [f for f in both.fractures if f.level == "C6"]
    assert first == list(single.fractures)
    assert np.array_equal(both.hu[-20:], single.hu[-20:])
    assert not np.array_equal(both.hu, single.hu)


def test_difficulty_changes_gap_and_noise():
    easy, hard = (forced("C5", "lamina", difficulty=name) for name in ("easy", "hard"))
    assert render(easy).fractures[0].gap_mm > render(hard).fractures[0].gap_mm
    assert easy.scan.noise_hu < 0.6 * hard.scan.noise_hu


def test_boxes_enclose_the_altered_voxels_of_their_slice():
    study = render(draw_plan(17, 0, size=SIZE, levels=("C5",)))
    boxed = {box.slice_index: box for box in study.boxes}
    assert len(boxed) == len(study.boxes) > 1
    for d in range(len(study.hu)):
        rows, columns = np.nonzero(study.altered[d])
        if d in boxed:
            box = boxed[d]
            assert box.x <= columns.min() and columns.max() < box.x + box.width
            assert box.y <= rows.min() and rows.max() < box.y + box.height
            assert box.width <= np.ptp(columns) + 6 and box.height <= np.ptp(rows) + 6
        else:
            assert len(rows) < 3


def test_the_boxes_of_a_level_know_nothing_of_a_broken_neighbour():
    plan = draw_plan(18, 0, size=SIZE, levels=("C5", "C6"))
    both = render(plan)
    for level in plan.levels:
        alone = render(replace(plan, fractures={level: plan.fractures[level]}))
        assert [box for box in both.boxes if box.level == level] == list(alone.boxes) != []


# --------------------------------------------------------------------------------------------------- label patterns


def test_label_patterns_follow_the_published_table():
    p = level_patterns()
    assert p.shape == (128,) and abs(p.sum() - 1) < 1e-9 and (p >= 0).all()
    rows = label_statistics_rows(drawn_labels(5000, seed=99))
    assert [row.what for row in rows if not row.passed] == [] and len(rows) >= 15


def test_neighbours_break_together_more_than_independent_levels_would():
    joint = (PATTERNS.T * level_patterns()) @ PATTERNS
    single = np.diag(joint)
    for a in range(6):
        assert joint[a, a + 1] > 1.3 * single[a] * single[a + 1]
    assert joint[5, 6] / single[5] == pytest.approx(0.47, abs=0.01)
    several = PATTERNS.sum(axis=1) > 1
    assert level_patterns()[several].sum() / (1 - level_patterns()[0]) == pytest.approx(338 / 961, abs=0.001)


def test_balanced_levels_are_fair_coins():
    plans = [draw_plan(3, i, size=SIZE, prevalence="balanced") for i in range(200)]
    counts = [sum(level in plan.levels for plan in plans) for level in LEVELS]
    low, high = stats.binom.interval(0.999, 200, 0.5)
    assert all(low <= count <= high for count in counts)


# ------------------------------------------------------------------------------------------------------- the folder


def test_train_table_has_the_form_of_the_real_one(cohort):
    root, _ = cohort
    train = pd.read_csv(root / "train.csv")
    assert list(train.columns) == ["StudyInstanceUID", "patient_overall", *LEVELS]
    assert train.StudyInstanceUID.is_unique and len(train) == STUDIES_WRITTEN
    assert train.StudyInstanceUID.str.fullmatch(r"1\.2\.826\.0\.1\.3680043\.[1-9]\d*").all()
    assert (train.patient_overall == train[list(LEVELS)].max(axis=1)).all()
    fractures = pd.read_csv(root / "truth" / "fractures.csv")
    for row in train.itertuples():
        mine = fractures[fractures.study == row.StudyInstanceUID]
        assert [level for level in LEVELS if getattr(row, level)] == list(mine.level)
    assert train.patient_overall.any(), "this fixture needs a fractured study to mean anything"


def test_every_storage_form_occurs(cohort):
    table = storage_table(cohort[0])
    assert set(table.order) == {"head_to_feet", "feet_to_head"}
    assert set(table.first_number) == {1, 2}
    assert set(table.transfer_syntax) == {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.57"}
    assert set(table.signed) == {0, 1} and set(table.intercept) == {0, -1024}
    assert set(table.has_mask) == {0, 1} and table.has_mask.sum() == round(0.75 * STUDIES_WRITTEN)
    assert (table.step_mm != table.thickness_mm).any()


@pytest.mark.parametrize("studies", [6, 7, 11, 40])
@pytest.mark.parametrize("seed", range(5))
def test_storage_forms_occur_for_any_seed(studies, seed):
    forms = draw_storage(studies, np.random.default_rng(seed), 0.75)
    assert len({f.transfer_syntax for f in forms}) == 3
    assert {f.order for f in forms} == {"head_to_feet", "feet_to_head"}
    assert {f.first_number for f in forms} == {1, 2}
    assert {(f.signed, f.intercept) for f in forms} == {(False, -1024), (True, -1024), (True, 0)}
    assert not any(f.signed for f in forms if f.transfer_syntax == "1.2.840.10008.1.2.4.57")
    assert {f.has_mask for f in forms} == {False, True}


def test_dicom_headers(cohort):
    root, _ = cohort
    for row in storage_table(root).itertuples():
        study, _ = truth_of(root, row.study)
        folder = root / "train_images" / row.study
        numbers = sorted(int(p.stem) for p in folder.iterdir())
        assert numbers == list(range(row.first_number, row.first_number + len(study.hu)))
        headers = [pydicom.dcmread(folder / f"{n}.dcm", stop_before_pixels=True) for n in numbers]
        first = headers[0]
        assert first.file_meta.TransferSyntaxUID == row.transfer_syntax
        assert first.PixelRepresentation == row.signed
        assert (first.BitsAllocated, first.BitsStored, first.HighBit) == ((16, 16, 15) if row.signed else (16, 12, 11))
        assert (first.RescaleSlope, first.RescaleIntercept) == (1, row.intercept)
        assert first.SliceThickness == pytest.approx(row.thickness_mm)
        assert list(first.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
        assert str(first.PatientName).startswith("PHANTOM^")
        assert first.SOPClassUID == first.file_meta.MediaStorageSOPClassUID == pydicom.uid.CTImageStorage
        for header, number in zip(headers, numbers, strict=True):
            assert header.InstanceNumber == number and header.StudyInstanceUID == row.study
            assert header.SOPInstanceUID == header.file_meta.MediaStorageSOPInstanceUID
        assert len({h.SOPInstanceUID for h in headers}) == len(headers)
        assert len({(h.SeriesInstanceUID, h.FrameOfReferenceUID) for h in headers}) == 1
        heights = np.array([float(h.ImagePositionPatient[2]) for h in headers])
        wanted = row.step_mm * (1 if row.order == "feet_to_head" else -1)
        np.testing.assert_allclose(np.diff(heights), wanted, atol=1e-3)


def attributes_amiss(header) -> set[str]:
    """Attributes that the DICOM standard asks of every CT Image (types 1 and 2) and that are missing or empty here.

    The tables of the standard come with highdicom.
    """
    tables = Path(highdicom.__file__).parent / "_standard"
    modules = json.loads((tables / "iod_module_map.json").read_text())["ct-image"]
    attributes = json.loads((tables / "module_attribute_map.json").read_text())
    contrast = {"contrast-bolus"} if "ContrastBolusAgent" in header else set()
    asked = [a for m in modules if m["usage"] == "M" or m["key"] in contrast for a in attributes[m["key"]]]
    return {
        a["keyword"]
        for a in asked
        if not a["path"]
        and ((a["type"] in "12" and a["keyword"] not in header) or (a["type"] == "1" and header[a["keyword"]].is_empty))
    }


def test_headers_have_all_that_the_standard_asks_of_a_ct_image(cohort):
    root, _ = cohort
    contrast = pd.read_csv(root / "truth" / "people.csv", index_col=0).contrast_hu > 0
    assert contrast.any() and not contrast.all(), "this fixture must have studies with and without contrast"
    for uid, injected in contrast.items():
        header = pydicom.dcmread(next((root / "train_images" / uid).iterdir()), stop_before_pixels=True)
        assert attributes_amiss(header) == set()
        assert ("ContrastBolusAgent" in header) == injected
    del header.FrameOfReferenceUID
    header.KVP = header.Modality = None
    assert attributes_amiss(header) == {"FrameOfReferenceUID", "Modality"}, "KVP may be empty, but must be there"


def test_an_independent_reader_sees_the_true_hu_and_positions(cohort):
    root, _ = cohort
    for row in storage_table(root).itertuples():
        study, _ = truth_of(root, row.study)
        folder = root / "train_images" / row.study
        numbers = sorted(int(p.stem) for p in folder.iterdir())
        hu = []
        for place, number in enumerate(numbers):
            image = sitk.ReadImage(str(folder / f"{number}.dcm"))
            d = place if row.order == "head_to_feet" else len(numbers) - 1 - place
            hu.append((d, sitk.GetArrayFromImage(image)[0]))
            if place in (0, len(numbers) - 1):
                first_voxel_ras = np.array([-1, -1, 1]) * image.GetOrigin()
                np.testing.assert_allclose(first_voxel_ras, study.affine[:3] @ [d, 0, 0, 1], atol=1e-3)
        volume = np.stack([pixels for _, pixels in sorted(hu, key=lambda pair: pair[0])])
        assert np.array_equal(volume, study.hu), row


def affine_from_headers(folder):
    """(column, row, slice by height) -> RAS mm from DICOM tags alone, by the formula of the standard (C.7.6.2.1.1)."""
    headers = sorted(
        (pydicom.dcmread(p, stop_before_pixels=True) for p in folder.iterdir()),
        key=lambda h: float(h.ImagePositionPatient[2]),
    )
    low, high = (np.array(h.ImagePositionPatient, dtype=float) for h in (headers[0], headers[-1]))
    row_way, column_way = np.array(headers[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    down, across = (float(v) for v in headers[0].PixelSpacing)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = row_way * across, column_way * down
    lps[:3, 2], lps[:3, 3] = (high - low) / (len(headers) - 1), low
    return np.diag([-1, -1, 1, 1]) @ lps, int(headers[0].Rows)


def test_label_maps_lie_on_the_dicom_grid(cohort):
    root, _ = cohort
    for row in storage_table(root).itertuples():
        path = root / "segmentations" / f"{row.study}.nii"
        assert path.exists() == bool(row.has_mask)
        if not row.has_mask:
            continue
        image = nib.load(path)
        assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
        assert image.get_data_dtype() == np.uint16
        study, _ = truth_of(root, row.study)
        affine, rows = affine_from_headers(root / "train_images" / row.study)
        flip_rows = np.array([[1, 0, 0, 0], [0, -1, 0, rows - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
        np.testing.assert_allclose(image.affine, affine @ flip_rows, atol=2e-3)
        for stored, code in (
            (image.header.get_qform(), image.header["qform_code"]),
            (image.header.get_sform(), image.header["sform_code"]),
        ):
            assert int(code) == 1
            np.testing.assert_allclose(stored, image.affine, atol=1e-3)
        # Each labelled voxel, sent through millimetres into the volume, finds its own label there.
        array = np.asarray(image.dataobj)
        index = np.argwhere(array)
        there = np.linalg.inv(study.affine) @ image.affine @ np.c_[index, np.ones(len(index))].T
        assert np.abs(there[:3] - there[:3].round()).max() < 0.01
        found = study.labels[tuple(there[:3].round().astype(int))]
        assert np.array_equal(found, array[tuple(index.T)]) and np.count_nonzero(study.labels) == len(index)
        assert set(np.unique(array)) >= set(range(9)), "thoracic labels belong to real maps too"


def test_boxes_point_into_the_right_files(cohort):
    root, _ = cohort
    boxes = pd.read_csv(root / "train_bounding_boxes.csv")
    assert list(boxes.columns) == ["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]
    train = pd.read_csv(root / "train.csv", index_col=0)
    assert set(boxes.StudyInstanceUID) == set(train.index[train.patient_overall == 1])
    table = storage_table(root)
    with_boxes = table[table.study.isin(boxes.StudyInstanceUID)]
    assert {"head_to_feet", "feet_to_head"} <= set(with_boxes.order), "this fixture must try both orders"
    assert 2 in set(with_boxes.first_number), "and a numbering that starts at 2"
    for row in table.itertuples():
        study, _ = truth_of(root, row.study)
        mine = boxes[boxes.StudyInstanceUID == row.study]
        covered = np.zeros_like(study.altered)
        for box in mine.itertuples():
            header = pydicom.dcmread(
                root / "train_images" / row.study / f"{box.slice_number}.dcm", stop_before_pixels=True
            )
            d = round(float((study.affine[2, 3] - header.ImagePositionPatient[2]) / row.step_mm))
            x, y = max(0, int(box.x)), max(0, int(box.y))
            area = (d, slice(y, int(box.y + box.height)), slice(x, int(box.x + box.width)))
            assert study.altered[area].any(), "an empty box: slice_number names another slice"
            covered[area] = True
        left = (study.altered & ~covered).sum(axis=(1, 2))
        assert left.max() <= 2 * train.loc[row.study, list(LEVELS)].sum(), "two voxels of a level in a slice get no box"


def test_shares_of_masks_and_boxes(tmp_path):
    write_cohort(tmp_path / "a", 2, 4, size=48, prevalence="balanced", mask_share=1.0, box_share=0.0, progress=False)
    assert len(list((tmp_path / "a" / "segmentations").iterdir())) == 2
    assert pd.read_csv(tmp_path / "a" / "train.csv").patient_overall.sum() > 0
    boxes = pd.read_csv(tmp_path / "a" / "train_bounding_boxes.csv")
    assert len(boxes) == 0 and list(boxes.columns)[-1] == "slice_number"
    shares = [sum(f.has_mask for f in draw_storage(8, np.random.default_rng(1), share)) for share in (0.0, 0.5, 0.99)]
    assert shares == [0, 4, 7], "a share below 1 leaves at least one study without a map"


# ------------------------------------------------------------------------------------- bytes, resuming, refusals


def test_bytes_depend_on_the_seed_alone(cohort, tmp_path):
    root, before = cohort
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        write_cohort(tmp_path / "again", STUDIES_WRITTEN, SEED, size=SIZE, prevalence="balanced", progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert digests(tmp_path / "again") == before
    write_cohort(tmp_path / "other", 1, SEED + 1, size=SIZE, prevalence="balanced", progress=False)
    assert not set(digests(tmp_path / "other").values()) & set(before.values())


def test_bytes_do_not_depend_on_the_number_of_processes(cohort, tmp_path):
    _, before = cohort
    write_cohort(tmp_path / "two", STUDIES_WRITTEN, SEED, size=SIZE, prevalence="balanced", workers=2, progress=False)
    assert digests(tmp_path / "two") == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(workers, cohort, tmp_path):
    """With two workers the parent alone is killed: they live on for a while and write beside the new run."""
    _, before = cohort
    root = tmp_path / "killed"
    command = [sys.executable, "-m", "cspine_utils.phantom", "--out", str(root), "--studies", str(STUDIES_WRITTEN)]
    command += ["--seed", str(SEED), "--size", str(SIZE), "--prevalence", "balanced", "--workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and len(list(root.glob("truth/*.npz"))) < 2:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = len(list(root.glob("truth/*.npz")))
    assert 2 <= done < STUDIES_WRITTEN, "this fixture must be killed in the middle"
    write_cohort(root, STUDIES_WRITTEN, SEED, size=SIZE, prevalence="balanced", progress=False)
    assert digests(root) == before


def test_a_process_without_its_parent_stops(monkeypatch):
    def stop(code):
        raise SystemExit(code)

    monkeypatch.setattr(cohort_module.os, "_exit", stop)
    with pytest.raises(SystemExit):
        cohort_module._work(1 + cohort_module.os.getppid(), "never used")


def test_what_another_process_has_put_there_is_replaced(tmp_path):
    made, place = tmp_path / "made", tmp_path / "place"
    for folder, text in ((made, "new"), (place, "old")):
        folder.mkdir()
        (folder / "1.dcm").write_text(text)
    cohort_module._put(made, place)
    assert (place / "1.dcm").read_text() == "new" and not made.exists()
    with pytest.raises(FileNotFoundError):
        cohort_module._put(made, place)


def test_twins_are_written_for_fractured_studies_alone(tmp_path):
    root = write_cohort(tmp_path / "t", 3, 4, size=48, prevalence="balanced", twins=True, progress=False)
    train = pd.read_csv(root / "train.csv", index_col=0)
    twins = {path.stem for path in (root / "truth" / "twins").iterdir()}
    assert twins == set(train.index[train.patient_overall == 1]) and twins
    for uid in twins:
        (twin, record), (study, _) = read_truth(root / "truth" / "twins" / f"{uid}.npz"), truth_of(root, uid)
        change = np.abs(twin.hu.astype(int) - study.hu)
        assert (
            change[study.altered].min() > 50
            and record["levels"] == record["boxes"] == []
            and record["landmarks"]
            and not twin.altered.any()
        )
    next((root / "truth" / "twins").iterdir()).unlink()
    write_cohort(root, 3, 4, size=48, prevalence="balanced", twins=True, progress=False)
    assert {path.stem for path in (root / "truth" / "twins").iterdir()} == twins, "a lost twin is made again"


def test_a_full_disk_is_noticed_before_the_first_study(tmp_path, monkeypatch):
    monkeypatch.setattr(cohort_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=300_000))
    with pytest.raises(ParameterError, match=r"0 MB of free space.*2 studies of size 48"):
        write_cohort(tmp_path / "full", 2, 0, size=48, progress=False)
    assert not (tmp_path / "full").exists()
    monkeypatch.setattr(cohort_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    root = write_cohort(tmp_path / "roomy", 1, 0, size=48, progress=False)
    used = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    voxels = read_truth(next((root / "truth").glob("*.npz")))[0].hu.size
    assert used < cohort_module._BYTES_PER_VOXEL * voxels + 200 * 1200, "the estimate is on the safe side"


def test_truth_tells_of_people_look_alikes_and_landmarks(cohort):
    root, _ = cohort
    people = pd.read_csv(root / "truth" / "people.csv", index_col=0)
    mimics = pd.read_csv(root / "truth" / "mimics.csv")
    for index in range(STUDIES_WRITTEN):
        plan = draw_plan(SEED, index, size=SIZE, prevalence="balanced")
        assert people.loc[plan.uid, "age_years"] == pytest.approx(plan.patient.age_years, abs=0.06)
        mine = mimics[mimics.study == plan.uid]
        assert sorted(zip(mine.level, mine.mimic, strict=True)) == sorted(
            (level, name) for level, names in plan.mimics.items() for name in names
        )
        study, record = truth_of(root, plan.uid)
        to_voxel = np.linalg.inv(study.affine) @ np.diag([-1, -1, 1, 1])
        for level in LEVELS[1:]:
            d, h, w = (to_voxel @ [*record["landmarks"][level]["centre"], 1.0])[:3].round().astype(int)
            assert study.labels[d, h, w] == LABEL_IDS[level], "the middle of a body lies in its label"


def test_a_study_alone_equals_the_study_in_its_cohort(cohort):
    root, _ = cohort
    plan = draw_plan(SEED, 4, size=SIZE, prevalence="balanced")
    study, record = truth_of(root, plan.uid)
    assert np.array_equal(render(plan).hu, study.hu)
    assert tuple(record["levels"]) == plan.levels


def test_a_stopped_run_ends_with_the_same_bytes(cohort, tmp_path):
    root, before = cohort
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    uids = list(storage_table(copy).study)
    shutil.rmtree(copy / "train_images" / uids[0])
    (copy / "truth" / f"{uids[1]}.npz").write_bytes(b"half a file")
    next((copy / "train_images" / uids[2]).iterdir()).unlink()
    (copy / "train.csv").unlink()
    cut_short = copy / "truth" / f"{uids[5]}.npz"
    cut_short.write_bytes(cut_short.read_bytes()[:5000])
    slice_file = next((copy / "train_images" / uids[6]).iterdir())
    slice_file.write_bytes(slice_file.read_bytes()[:-100])
    (copy / ".partial" / uids[3] / "images").mkdir(parents=True)
    (copy / ".partial" / uids[3] / "images" / "1.dcm").write_bytes(b"stopped here")
    kept = (copy / "truth" / f"{uids[4]}.npz").stat().st_mtime_ns
    write_cohort(copy, STUDIES_WRITTEN, SEED, size=SIZE, prevalence="balanced", progress=False)
    assert digests(copy) == before
    assert (copy / "truth" / f"{uids[4]}.npz").stat().st_mtime_ns == kept, "a finished study is not made again"


def test_another_cohort_in_the_folder_is_refused(cohort, tmp_path):
    root, before = cohort
    with pytest.raises(ParameterError, match="seed=5.*seed=6"):
        write_cohort(root, STUDIES_WRITTEN, SEED + 1, size=SIZE, prevalence="balanced", progress=False)
    assert digests(root) == before
    real = tmp_path / "real"
    real.mkdir()
    (real / "train.csv").write_text("somebody's table")
    with pytest.raises(ParameterError, match="never written over"):
        write_cohort(real, 1, 0, size=SIZE, progress=False)
    assert [p.name for p in real.iterdir()] == ["train.csv"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"studies": 0},
        {"studies": 2.5},
        {"size": 40},
        {"difficulty": "brutal"},
        {"prevalence": "flat"},
        {"seed": -1},
        {"mask_share": 1.5},
        {"box_share": float("nan")},
        {"workers": 0},
        {"device": "abacus"},
        {"device": "cuda:99"},
        {"device": "meta"},
        {"device": "cpu:3"},
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(wrong, tmp_path):
    arguments = {"studies": 1, "seed": 0, "size": SIZE, "progress": False} | wrong
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        write_cohort(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("levels", ["C5", ("C8",), ("C5", "C5"), 5, (["C5"],)])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ParameterError, match="levels"):
        draw_plan(0, 0, levels=levels)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ParameterError, match="a file"):
        write_cohort(tmp_path / "file", 1, 0, size=SIZE, progress=False)


def test_stopping_by_hand_says_that_it_goes_on(monkeypatch, capsys, tmp_path):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "write_cohort", stopped)
    assert command_line.main(["--out", str(tmp_path / "x"), "--studies", "1", "--seed", "1"]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on where it was\n"


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "cspine_utils.phantom", "--seed", "1", "--size", "48"]
    good = subprocess.run([*command, "--out", str(tmp_path / "out"), "--studies", "1"], capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    assert json.loads((tmp_path / "out" / "cohort.json").read_text())["size"] == 48
    bad = subprocess.run([*command, "--out", str(tmp_path / "out2"), "--studies", "0"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: studies: found 0") and bad.stderr.count("\n") == 1
