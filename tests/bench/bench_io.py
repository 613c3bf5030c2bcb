"""How fast and how large `dicom.read_series` and the reading of headers are, beside the readers people use instead.

    python tests/bench/bench_io.py [--quick] [--readme]

A series of 300 slices of 512 x 512 is written to a temporary folder (160 MB, removed again), in one form after the
other. Every reader reads it in turn, from a warm cache, and the table says how many times as long each took as this
package: the median, over the repeats, of the ratio within a repeat. What a reader returns is compared with what was
written, voxel for voxel: a fast reader that is wrong is no peer. Peak memory is that of a process of its own, above
what it held after its imports. `--readme` puts the tables into README.md beside this file.

The ratios are what to look at: seconds depend on the machine and on who else uses it.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):  # before anything starts threads: two for everybody
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])

import io_files
import io_report
from io_readers import READERS
from io_surveys import HEADER_READERS
from io_tags import height_mm

from cspine_utils import screening
from cspine_utils.rsna import RsnaDataset

#: Forms that are judged and whose memory is measured; the others are read for information, fewer slices and repeats.
JUDGED = ("explicit", "implicit", "thin", "JPEG Lossless .70", "JPEG Lossless .57")
WITH_MEMORY = ("explicit", "JPEG Lossless .70", "JPEG Lossless .57")


@dataclass
class Contest:
    """Seconds of jobs that took turns; the first job is the measure of the others.

    seconds : name -> seconds, one for each repeat; a job that raised has none
    faults : name -> what was wrong with its result
    peaks : name -> peak memory, as a multiple of the volume's bytes
    judged : False for what is told for information only
    kilobytes : mean size of a file
    """

    title: str
    files: int
    judged: bool = True
    kilobytes: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """How many times as long as the first job: the median of the ratios within a repeat."""
        first = next(iter(self.seconds.values()))
        return statistics.median(mine / other for mine, other in zip(self.seconds[name], first, strict=True))

    def median(self, name: str) -> float:
        """Median seconds."""
        return statistics.median(self.seconds[name])


def compete(
    title: str,
    jobs: dict[str, Callable[[], object]],
    check: Callable[[str, object], str],
    *,
    files: int,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Contest:
    """Let jobs take turns: once to warm the cache and to check the result, then `repeats` times on the clock.

    Each time in another order, since a job may leave work to the next: a large volume that was given back in small
    pages, for example, lets the system tidy up at the cost of whoever asks for the next one.

    Parameters
    ----------
    jobs : name -> job; the first must succeed, another one that raises is out and its fault is kept
    check : (name, result) -> what is wrong with the result, "" if nothing
    clock : seconds from some moment on
    """
    contest = Contest(title, files, seconds={name: [] for name in jobs})
    for run in range(repeats + 1):
        names = list(contest.seconds)
        for name in random.Random(run).sample(names, len(names)):
            started = clock()
            try:
                result = jobs[name]()
            except Exception as error:  # a peer may fail in its own way on a form that it does not know
                if name == next(iter(jobs)):
                    raise
                contest.faults[name] = " ".join(f"cannot read it: {type(error).__name__} {error}".split())[:120]
                del contest.seconds[name]
                continue
            seconds = clock() - started
            if run:
                contest.seconds[name].append(seconds)
            elif fault := check(name, result):
                contest.faults[name] = fault
            del result  # its memory is given back off the clock
    return contest


def difference(values: np.ndarray, truth: np.ndarray) -> str:
    """What is wrong with HU that were read, "" if nothing."""
    if values.shape != truth.shape:
        return f"wrong shape: {values.shape} instead of {truth.shape}"
    wrong = sum(int(np.count_nonzero(mine != right)) for mine, right in zip(values, truth, strict=True))
    return f"wrong values in {wrong} of {truth.size} voxels" if wrong else ""


def read_contest(form, folder: Path, truth: np.ndarray, repeats: int, readers=READERS) -> Contest:
    """Every installed reader on the series in the folder, which holds `truth`."""
    paths = _head_to_feet(folder)
    installed = {reader.name: reader for reader in readers if reader.is_installed}
    return compete(
        form.name,
        {name: lambda reader=reader: reader.read(folder, paths) for name, reader in installed.items()},
        lambda name, result: difference(installed[name].values(result), truth),
        files=len(paths),
        repeats=repeats,
    )


def header_contest(title: str, folders: list[Path], repeats: int, readers=HEADER_READERS, extra=None) -> Contest:
    """Every installed reader of headers on the folders; `extra` jobs (name -> job) return "" or what is wrong."""
    installed = {reader.name: reader for reader in readers if reader.is_installed}
    numbers = {(folder.name, path.name): int(path.stem) for folder in folders for path in folder.iterdir()}

    def check(name: str, found) -> str:
        if name not in installed:
            return found
        if set(found) != set(numbers):
            return f"{len(found)} of {len(numbers)} files"
        heights = {key: float(installed[name].height_mm(value)) for key, value in found.items()}
        wrong = sum(abs(heights[key] - height_mm(number)) > 1e-6 for key, number in numbers.items())
        return f"wrong positions in {wrong} files" if wrong else ""

    jobs = {name: lambda reader=reader: reader.read(folders) for name, reader in installed.items()}
    return compete(title, jobs | (extra or {}), check, files=len(numbers), repeats=repeats)


def survey_job(root: Path) -> Callable[[], str]:
    """`screening.survey` with the processes it takes by itself, their start included."""
    dataset = RsnaDataset(root)

    def job() -> str:
        table = screening.survey(dataset, progress=False)
        bad = table[table["verdict"] != "use"]
        return f"{len(bad)} studies not usable: {bad['reason'].iloc[0]}" if len(bad) else ""

    return job


def peak_bytes(name: str, folder: Path) -> int:
    """Peak memory of one read in a process of its own, above what it held after its imports."""
    command = [sys.executable, __file__, "--peak", name, str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(name: str, folder: Path) -> None:
    """The child of `peak_bytes`."""
    reader = next(reader for reader in READERS if reader.name == name)
    paths = _head_to_feet(folder)
    before = peak(start=True)
    result = reader.read(folder, paths)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _RSS_UNIT
    print(max(peak() - before, children))
    del result


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def peak(start: bool = False) -> int:
    """Peak resident bytes of this process. Linux counts from `start` on; elsewhere imports may hide a little of it.

    ru_maxrss will not do where /proc is: a child inherits there the peak of the process that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
    if start:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _head_to_feet(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: int(path.stem))


def run(slices: int, size: int, repeats: int, studies: int) -> tuple[list[Contest], list[Contest]]:
    """All contests: of reading, one a form, and of headers."""
    reading, headers = [], []
    with tempfile.TemporaryDirectory(prefix="bench-io-") as temporary:
        for form in io_files.forms().values():
            judged = form.name in JUDGED
            count, turns = (slices, repeats) if judged else (max(slices // 5, 2), min(repeats, 3))
            with tempfile.TemporaryDirectory(dir=temporary) as place:
                folder = Path(place) / "series"
                paths = io_files.write_series(folder, form, slices=count, size=size)
                contest = read_contest(form, folder, io_files.neck(count, size), turns)
                contest.judged = judged
                contest.kilobytes = sum(path.stat().st_size for path in paths) / count / 1000
                if form.name in WITH_MEMORY:
                    volume = 2 * count * size * size
                    contest.peaks = {name: peak_bytes(name, folder) / volume for name in contest.seconds}
                reading.append(contest)
                print(io_report.lines(contest), flush=True)
                if judged:
                    headers.append(header_contest(form.name, [folder], 3 * turns))
                    print(io_report.lines(headers[-1]), flush=True)
        root = Path(temporary) / "cohort"
        folders = io_files.write_hollow_cohort(root, studies=studies, slices=slices, size=size)
        extra = {io_report.SURVEY: survey_job(root)}
        headers.append(header_contest(f"{studies} studies", folders, min(repeats, 3), extra=extra))
        print(io_report.lines(headers[-1]), flush=True)
    return reading, headers


def main() -> None:
    parser = argparse.ArgumentParser(description="Readers of CT series, each beside this package's.")
    parser.add_argument("--quick", action="store_true", help="60 slices, 3 repeats")
    parser.add_argument("--readme", action="store_true", help="put the tables into tests/bench/README.md")
    parser.add_argument("--peak", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        return print_peak(args.peak[0], Path(args.peak[1]))
    sizes = {"slices": 60, "repeats": 3, "studies": 4} if args.quick else {"slices": 300, "repeats": 9, "studies": 20}
    reading, headers = run(size=512, **sizes)
    text = io_report.report(reading, headers, slices=sizes["slices"], repeats=sizes["repeats"])
    print(text)
    if args.readme:
        io_report.into_readme(text)
    return None


if __name__ == "__main__":
    main()
