"""The tables of bench_io in Markdown, its targets judged, and where they go in README.md."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

from io_readers import READERS
from io_surveys import HEADER_READERS

README = Path(__file__).with_name("README.md")
PEERS = ("SimpleITK", "dicomsdl", "python-gdcm", "dcm2niix")
SURVEY = "screening.survey"
BASE = ("pydicom", "imagecodecs", "numpy", "nibabel")


def lines(contest) -> str:
    """A contest as it ended, for the terminal."""
    rows = [f"{contest.title} ({contest.files} files)"]
    for name, seconds in contest.seconds.items():
        peak = f"  peak {contest.peaks[name]:.2f} x" if name in contest.peaks else ""
        rate = contest.files / contest.median(name)
        row = f"  {name:<26} {contest.median(name):8.4f} s  {contest.ratio(name):7.2f} x  {rate:9,.0f} files/s{peak}"
        rows.append(f"{row}  [{min(seconds):.4f} to {max(seconds):.4f}]")
    return "\n".join(rows + [f"  {name}: {fault}" for name, fault in contest.faults.items()])


def reading_table(contests) -> str:
    """One row a reader: how many times as long as this package in each form, and peak memory."""
    with_peaks = [contest for contest in contests if contest.peaks]
    titles = [c.title if c.judged else f"{c.title} ({c.files} slices)" for c in contests]
    head = ["reader", *titles, *(f"peak, {contest.title}" for contest in with_peaks), "how"]
    rows = []
    for reader in READERS:
        if not reader.is_installed:
            rows.append([reader.name] + ["-"] * (len(head) - 2) + ["not installed"])
            continue
        cells = [_ratio(contest, reader.name) for contest in contests]
        peaks = [f"{c.peaks[reader.name]:.2f}" if reader.name in c.peaks else "-" for c in with_peaks]
        rows.append([reader.name, *cells, *peaks, reader.uses])
    return table(head, rows)


def header_table(contests) -> str:
    """One row a reader of headers: files a second, and how many times as long as this package."""
    rows = []
    for reader in HEADER_READERS:
        if reader.is_installed:
            rows.append([reader.name, *(_rate(contest, reader.name) for contest in contests), reader.uses])
        else:
            rows.append([reader.name] + ["-"] * len(contests) + ["not installed"])
    if any(SURVEY in contest.seconds for contest in contests):
        cells = [_rate(contest, SURVEY) for contest in contests]
        rows.append([SURVEY, *cells, "all it does for a study, in the processes it takes by itself"])
    return table(["headers only", *(contest.title for contest in contests), "how"], rows)


def targets(reading, headers) -> list[tuple[str, float, str, bool]]:
    """(what, value, limit in words, met) of every target that could be judged here."""
    judged = []
    ours = READERS[0].name
    for contest in (contest for contest in reading if contest.judged):
        for peer in ("SimpleITK, names given", "SimpleITK, finds names"):
            if peer in contest.seconds:
                value = contest.ratio(peer)
                judged.append((f"{contest.title}: {peer}, times as long as ours", value, "at least 1.5", value >= 1.5))
        if "dicomsdl, careful" in contest.seconds:
            value = 1 / contest.ratio("dicomsdl, careful")
            judged.append(
                (f"{contest.title}: ours, times as long as dicomsdl, careful", value, "at most 2", value <= 2)
            )
        if contest.peaks:
            value = contest.peaks[ours]
            judged.append((f"{contest.title}: peak memory, times the volume", value, "at most 2.2", value <= 2.2))
    for contest in headers:
        if "gdcm.Scanner" in contest.seconds:
            value = contest.ratio("gdcm.Scanner")
            judged.append(
                (f"headers, {contest.title}: gdcm.Scanner, times as long as ours", value, "at least 1", value >= 1)
            )
            if SURVEY in contest.seconds:
                value /= contest.ratio(SURVEY)
                what = f"headers, {contest.title}: gdcm.Scanner, times as long as {SURVEY}"
                judged.append((what, value, "at least 1", value >= 1))
    return judged


def report(reading, headers, *, slices: int, repeats: int) -> str:
    """Everything that a run found, in Markdown."""
    today = datetime.date.today().isoformat()
    parts = [
        f"Measured on {today} with {machine()}; {repeats} repeats, {slices} slices of 512 x 512. {_versions()}",
        "kB a file: " + ", ".join(f"{contest.title} {contest.kilobytes:.0f}" for contest in reading) + ".",
        "How many times as long as this package (seconds in brackets), and peak memory as a multiple of the volume:",
        reading_table(reading),
        faults(reading),
        "Headers only, files a second (in brackets: how many times as long as this package in one process):",
        header_table(headers),
        faults(headers),
        "Targets:",
        table(
            ["what", "value", "target", ""],
            [[what, f"{value:.2f}", limit, "met" if met else "**missed**"] for what, value, limit, met in
             targets(reading, headers)],
        ),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def faults(contests) -> str:
    """A sentence for every reader whose result was not what was written."""
    found = [f"{name} on {contest.title}: {fault}" for contest in contests for name, fault in contest.faults.items()]
    return "Not equal to what was written: " + "; ".join(found) + "." if found else "All values equal what was written."


def into_readme(text: str, bench: str = "bench_io") -> None:
    """Replace what stands between the two markers of a bench in README.md."""
    begin, end = f"<!-- {bench}: begin -->", f"<!-- {bench}: end -->"
    old = README.read_text()
    before, rest = old.split(begin)
    after = rest.split(end)[1]
    README.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _ratio(contest, name: str) -> str:
    if name not in contest.seconds:
        return "cannot"
    mark = " (wrong)" if name in contest.faults else ""
    if name == next(iter(contest.seconds)):
        return f"1 ({contest.median(name):.3f} s){mark}"
    return f"{contest.ratio(name):.2f}{mark}"


def _rate(contest, name: str) -> str:
    if name not in contest.seconds:
        return "-"
    mark = ", wrong" if name in contest.faults else ""
    return f"{contest.files / contest.median(name):,.0f} ({contest.ratio(name):.2f}{mark})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; the columns of words are named here, all others are set to the right."""
    words = ("reader", "headers only", "model", "how", "what", "")
    ruler = "|".join("---" if name in words else "---:" for name in head)
    return "\n".join([f"| {' | '.join(head)} |", f"|{ruler}|", *(f"| {' | '.join(row)} |" for row in rows)])


def machine() -> str:
    """What the numbers were measured on, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} logical cores for everybody ({platform.machine()}, {platform.system()})"


def _versions() -> str:
    named = [f"Python {platform.python_version()}"]
    for package in BASE + PEERS:
        try:
            named.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            named.append(f"{package} not installed")
    return ", ".join(named) + "."
