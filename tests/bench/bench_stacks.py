"""What the store of stacks saves, beside the students' way of making and loading the same arrays, in one run.

    python tests/bench/bench_stacks.py [--quick] [--readme]

One study of 300 slices of 512 x 512 is drawn and written, as DICOM (thin headers) and as a label map (uint16, LAS, as
the real ones), C1-C7 on 210 slices, so that both ways show the same voxels. Compared are

* disk: the store beside the 105 float64 files of `export_seed_layout`
* building: `stacks.prepare` of this study in this process, beside reading five DICOMs and the whole label map for every
  odd slice (pydicom, nibabel) and saving a float64 array; that is done for every 7th odd slice and scaled to 105
* loading: frames `(6, h, w)` in random order from the store, beside `np.load` of the files, at 512 x 512 and 224 x 224

They take turns, so that a busy moment hits both; the ratio is the median of the ratios within a turn. All that is
loaded is compared with the other way's values before anything is timed. Files are read from a warm cache.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import io_files
import io_report
import nibabel as nib
import numpy as np
import pydicom
from io_tags import STUDY_UID

from cspine_utils import dicom, stacks
from cspine_utils.anatomy import LEVELS
from cspine_utils.rsna import BOX_COLUMNS, STUDY_COLUMN, RsnaDataset

SIDE, FIRST = 512, 45
EVERY = 7
LOAD_SIDES = (512, 224)


def write_study(root: Path, slices: int, shown: int) -> RsnaDataset:
    """The study in RSNA-2022 form, intact, with labels 1-7 on `shown` slices from `FIRST` on."""
    folder = root / "train_images" / STUDY_UID
    io_files.write_series(folder, io_files.forms()["thin"], slices=slices, size=SIDE)
    volume = dicom.read_series(folder)
    mask = np.zeros(volume.shape, np.uint16)
    bone = volume.hu > 200
    bone[:, : SIDE // 2 - 40] = bone[:, SIDE // 2 + 80 :] = False
    for level in range(1, 8):
        part = slice(FIRST + (level - 1) * shown // 7, FIRST + level * shown // 7)
        mask[part] = np.where(bone[part], level, 0)
    image = nib.Nifti1Image(mask, volume.affine, dtype=np.uint16)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(("L", "A", "S"))
    )
    (root / "segmentations").mkdir()
    nib.save(image.as_reoriented(turn), root / "segmentations" / f"{STUDY_UID}.nii")
    head = ",".join([STUDY_COLUMN, "patient_overall", *LEVELS])
    (root / "train.csv").write_text(f"{head}\n{STUDY_UID},0{',0' * len(LEVELS)}\n")
    (root / "train_bounding_boxes.csv").write_text(",".join([STUDY_COLUMN, *BOX_COLUMNS]) + "\n")
    return RsnaDataset(root)


def as_the_seed_did(dataset: RsnaDataset, frame: int, slices: int, shown: int) -> np.ndarray:
    """One frame from the files: five DICOMs and the label map read anew; float64 `(6, 512, 512)`."""
    folder, channels = dataset.series_dir(STUDY_UID), []
    for offset in stacks.NEIGHBOURS:
        number = FIRST + min(max(2 * frame + offset, 0), shown - 1) + 1  # files count from 1, head -> feet
        file = pydicom.dcmread(folder / f"{number}.dcm")
        channels.append(file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept))
    labels = nib.load(dataset.mask_path(STUDY_UID)).get_fdata()
    channels.append(labels[:, ::-1, slices - 1 - (FIRST + 2 * frame)].T)  # LAS: its slices run feet -> head
    return np.array(channels)


def building(dataset: RsnaDataset, folder: Path, slices: int, shown: int, turns: int) -> tuple[float, float, float]:
    """Seconds of ours, of the seed's way for all frames, and their ratio."""
    frames, times = shown // 2, []
    few = range(0, frames, EVERY)
    for turn in range(turns):
        started = time.perf_counter()
        report = stacks.prepare(dataset, folder / f"turn{turn}", size=None, count=shown, workers=0, progress=False)
        ours = time.perf_counter() - started
        assert report["status"].tolist() == ["made"], report["reason"].iloc[0]
        started = time.perf_counter()
        for frame in few:
            np.save(folder / "seed.npy", as_the_seed_did(dataset, frame, slices, shown))
        seed = (time.perf_counter() - started) * frames / len(few)
        times.append((ours, seed))
    stored = stacks.open_study(folder / "turn0", STUDY_UID)
    for frame in few:
        assert np.array_equal(stored.frame(frame), as_the_seed_did(dataset, frame, slices, shown)), frame
    ours, seed = (statistics.median(column) for column in zip(*times, strict=True))
    return ours, seed, statistics.median(s / o for o, s in times)


def loading(store: Path, files: list[Path], turns: int) -> tuple[float, float, float]:
    """Frames a second of ours, of the files, and their ratio."""
    stored, generator, rates = stacks.open_study(store, STUDY_UID), np.random.default_rng(3), []
    for frame, path in enumerate(files):
        assert np.array_equal(stored.frame(frame), np.load(path)), path
    for _ in range(turns):
        order = generator.permutation(len(files)).tolist()
        started = time.perf_counter()
        for frame in order:
            stored.frame(frame)
        between = time.perf_counter()
        for frame in order:
            np.load(files[frame])
        rates.append((len(files) / (between - started), len(files) / (time.perf_counter() - between)))
    ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
    return ours, theirs, statistics.median(o / t for o, t in rates)


def bytes_of(paths) -> int:
    return sum(path.stat().st_size for path in paths)


def run(root: Path, slices: int, shown: int, turns: int) -> list[list]:
    """Rows of (what, ours, the seed's way, ratio, target, met)."""
    dataset = write_study(root / "rsna", slices, shown)
    ours, seed, ratio = building(dataset, root, slices, shown, turns)
    rows = [["building, seconds", f"{ours:.2f}", f"{seed:.1f}", f"{ratio:.1f}", "at least 30", ratio >= 30]]
    for side in LOAD_SIDES:
        store, form = root / f"store{side}", f"{side} x {side}"
        stacks.prepare(dataset, store, size=side, count=shown, workers=0, progress=False)
        files = stacks.export_seed_layout(store, STUDY_UID, root / f"seed{side}")
        ours, theirs = bytes_of(store.iterdir()), bytes_of(files)
        cells = [f"disk at {form}, MB", f"{ours / 1e6:.2f}", f"{theirs / 1e6:.2f}", f"{theirs / ours:.4f}"]
        rows.append([*cells, "at least 8", theirs >= 8 * ours])
        ours, theirs, ratio = loading(store, files, 3 * turns)
        cells = [f"loading at {form}, frames a second", f"{ours:,.0f}", f"{theirs:,.0f}", f"{ratio:.2f}"]
        rows.append([*cells, "at least 2", ratio >= 2])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer slices and turns, to see that it runs")
    parser.add_argument("--readme", action="store_true", help="put the table into tests/bench/README.md")
    arguments = parser.parse_args()
    slices, shown, turns = (100, 42, 1) if arguments.quick else (300, 2 * stacks.FRAMES, 3)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rsna").mkdir()
        rows = run(Path(folder), slices, shown, turns)
    head = ["what", "this package", "as the seed", "ratio", "target", ""]
    cells = [[*row[:-1], "met" if row[-1] else "**missed**"] for row in rows]
    text = f"One study of {slices} slices, C1-C7 on {shown}, {turns} turns ({3 * turns} of loading), "
    text += f"{time.strftime('%Y-%m-%d')}, {io_report.machine()}.\n\n{io_report.table(head, cells)}"
    print(text)
    if arguments.readme:
        io_report.into_readme(text, "bench_stacks")


if __name__ == "__main__":
    main()
