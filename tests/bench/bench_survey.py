"""What a survey of the real set would take: files a second, and from them the minutes for its 711,601 files.

    python tests/bench/bench_survey.py [--studies 120] [--runs 3] [--readme]

Makes folders of studies with 350 files each. Headers are like the real ones and pixels 512 x 512, but they are holes in
the files (uncompressed, and JPEG Lossless with one fragment a file), so that nothing fills the disk: a survey reads
headers and never looks at pixels. One study has a label map of 512 x 512 x 350 with labels in it, which is read whole;
its seconds are counted apart.

The minutes are those of the start (processes that begin, measured on two studies) and of the marginal rate after it.

The files were just written, so the system has them in memory: what is measured is the work of the processor. A disk
that gives fewer files a second than that sets the pace itself; `resume` makes up for interruptions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import io_report
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1

from cspine_utils import nifti, screening
from cspine_utils.anatomy import TARGETS
from cspine_utils.parallel import processors
from cspine_utils.rsna import RsnaDataset
from cspine_utils.volume import Grid

FILES, SIDE, STEP_MM = 350, 512, 0.625
REAL_FILES, REAL_STUDIES, REAL_MAPS = 711_601, 2019, 87
UID = "1.2.826.0.1.3680043.9999{:05d}"


def header(number: int, compressed: bool, folder: Path) -> bytes:
    """A file up to its pixels, with the elements that real headers have."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{UID.format(0)}.1.{number}"
    meta.TransferSyntaxUID = JPEGLosslessSV1 if compressed else ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPInstanceUID, dataset.PatientID = meta.MediaStorageSOPInstanceUID, "1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = UID.format(0), UID.format(0) + ".1"
    dataset.InstanceNumber, dataset.SliceThickness = number, STEP_MM
    dataset.ImagePositionPatient = ["-89.6484", "-211.5234", f"{300 - number * STEP_MM:.4f}"]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = SIDE
    dataset.PixelSpacing = ["0.351562", "0.351562"]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = [450, 40], [1500, 350]
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.save_as(folder / "header", enforce_file_format=True)
    content = (folder / "header").read_bytes()
    (folder / "header").unlink()
    if compressed:  # undefined length, an empty table of offsets, one fragment
        size = SIDE * SIDE * 2 // 2
        opening = b"OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0" + b"\0" * 4 + b"\xfe\xff\x00\xe0"
    else:
        size, opening = SIDE * SIDE * 2, b"OW\0\0"
    return content + b"\xe0\x7f\x10\x00" + opening + size.to_bytes(4, "little")


def make(root: Path, studies: int, compressed: bool) -> RsnaDataset:
    root.mkdir()
    (root / "segmentations").mkdir()
    headers = [header(number, compressed, root) for number in range(1, FILES + 1)]
    for study in range(1, studies + 1):
        folder = root / "train_images" / UID.format(study)
        folder.mkdir(parents=True)
        for number, content in enumerate(headers, start=1):
            with open(folder / f"{number}.dcm", "wb") as file:
                file.write(content.replace(UID.format(0).encode(), UID.format(study).encode()))
                file.truncate(file.tell() + SIDE * SIDE * (1 if compressed else 2))
                if compressed:
                    file.seek(0, 2)
                    file.write(b"\xfe\xff\xdd\xe0\0\0\0\0")
    rows = [f"{UID.format(study)}" + ",0" * len(TARGETS) for study in range(1, studies + 1)]
    (root / "train.csv").write_text("\n".join(["StudyInstanceUID," + ",".join(TARGETS), *rows]) + "\n")
    (root / "train_bounding_boxes.csv").write_text("StudyInstanceUID,x,y,width,height,slice_number\n")
    return RsnaDataset(root)


def label_map_seconds(folder: Path, runs: int) -> float:
    affine = np.array([[0, 0, -0.35, 90], [0, -0.35, 0, 90], [-STEP_MM, 0, 0, 300], [0, 0, 0, 1.0]])
    mask = np.zeros((FILES, SIDE, SIDE), np.uint8)
    mask[40:300, 150:260, 200:310] = 1 + np.arange(260)[:, None, None] // 38
    grid = Grid(mask.shape, affine)
    nifti.write_mask(folder / "labels.nii", mask, grid)
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        report = nifti.describe_mask(folder / "labels.nii", grid)
        times.append(time.perf_counter() - started)
    assert report.labels == (1, 2, 3, 4, 5, 6, 7), report
    return statistics.median(times[1:])


def survey_seconds(dataset: RsnaDataset, **options) -> float:
    started = time.perf_counter()
    table = screening.survey(dataset, progress=False, **options)
    seconds = time.perf_counter() - started
    assert (table["verdict"] == "use").all() and (table["files"] == FILES).all(), table["reason"].iloc[0]
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=120)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--readme", action="store_true", help="put the table into tests/bench/README.md")
    arguments = parser.parse_args()
    rows = []
    print(f"{arguments.studies} studies of {FILES} files, median of {arguments.runs} runs, {processors()} processors")
    with tempfile.TemporaryDirectory() as folder:
        per_map = label_map_seconds(Path(folder), arguments.runs)
        print(f"a label map of {SIDE} x {SIDE} x {FILES}: {per_map:.2f} s")
        for compressed in (False, True):
            kind = "JPEG Lossless" if compressed else "uncompressed"
            few = make(Path(folder) / f"few {kind}", 2, compressed)
            many = make(Path(folder) / kind, arguments.studies, compressed)
            ways = {"in this process": {"workers": 0}, "1 process": {"workers": 1}, "2 processes": {"workers": 2}}
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for _ in range(arguments.runs + 1):  # in turn, so that a busy moment hits all; the first is thrown away
                for name, options in ways.items():
                    times[name].append((survey_seconds(few, **options), survey_seconds(many, **options)))
            for name, options in ways.items():
                start, whole = (statistics.median(column) for column in zip(*times[name][1:], strict=True))
                rate = (arguments.studies - 2) * FILES / (whole - start)
                maps = REAL_MAPS * per_map / max(options["workers"], 1)
                minutes = (start + REAL_FILES / rate + maps) / 60
                print(
                    f"{kind:<14} {name:<16} {rate:7.0f} files a second after {start:4.2f} s   "
                    f"{REAL_FILES:,} files and {REAL_MAPS} label maps: {minutes:5.2f} min",
                    flush=True,
                )
                rows.append([kind + ", " + name, f"{rate:,.0f}", f"{start:.2f}", f"{minutes:.1f}"])
    if arguments.readme:
        head = ["what", "files a second", "start, s", f"minutes for {REAL_FILES:,} files and {REAL_MAPS} label maps"]
        text = f"{arguments.studies} studies of {FILES} files in memory, median of {arguments.runs} runs, "
        text += f"{time.strftime('%Y-%m-%d')}, {io_report.machine()}. A label map takes {per_map:.2f} s."
        io_report.into_readme(text + "\n\n" + io_report.table(head, rows), "bench_survey")
    return 0


if __name__ == "__main__":
    sys.exit(main())
