"""Hand the readers faulty files, and see what each of them does: `python tests/faults.py` prints the table.

The modules `faults_*` make the corpus from good files. Every fault is read in one child process, since
starting Python costs more than reading: with a limit on memory, an alarm for every fault, and a parent that notices
when the child dies or hangs, writes that down and starts another one for the faults that are left.

A fault is met properly if the reader raises an error of this package that names the file and says what to do, or, where
the fault allows it, if what was read is right. `faults_child.READERS` holds, beside the package's own
readers, some that fail on purpose, so that a test can see each kind of failure being noticed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

REFUSED = "refused"  # a typed error
READ = "read"  # equal to the good file's content
EITHER = "refused or read"
SANE = "refused or sane"  # damage that need not show: what was read must have the right form, and the rest be untouched
#: Limits of a fault. A damaged file of some kilobytes needs no more than this, whatever its header claims.
SECONDS = 20.0
PEAK_MB = 300.0
#: What a reader may ask for before the system says no; more would be a danger to the machine that runs the tests.
MEMORY_MB = 1024
LONGEST_MESSAGE = 2000
#: How libraries tell that memory was refused. A reader that lets it come to this eats memory where there is some.
NO_MEMORY = re.compile("MemoryError|[Uu]nable to allocate|[Oo]ut of memory")


@dataclass(frozen=True)
class Fault:
    """One faulty input.

    Attributes
    ----------
    name : of the case; unique
    kind : "series" (a folder of slices), "mask" (a label file) or "dataset" (a folder in RSNA-2022 form)
    build : makes the input in the empty folder that it is given; returns the path to read
    expected : `REFUSED`, `READ`, `EITHER` or `SANE`
    says : a pattern that the error's text must hold
    good : the key of what it was made from, in the corpus' `good`
    damaged : the file at fault; slices of other files must be read as they were
    as_nobody : read by a user without rights (root may read everything)
    """

    name: str
    kind: str
    build: Callable[[Path], Path] = field(repr=False)
    expected: str = REFUSED
    says: str = ""
    good: str = ""
    damaged: str = ""
    as_nobody: bool = False


@dataclass
class Result:
    """What a reader did with a fault: `outcome` is "refused", "read", "leaks", "hangs", "memory" or "killed"."""

    name: str
    outcome: str
    seconds: float = 0.0
    peak_mb: float = 0.0
    message: str = ""
    equal: bool = False
    strange: str = ""
    printed: str = ""


def judge(fault: Fault, path: str, result: Result) -> str:
    """Why the result is a failure, or ""."""
    if result.outcome not in ("refused", "read"):
        return f"{result.outcome}: {result.message}"
    if "Traceback" in result.printed:
        return f"a traceback was printed: {result.printed}"
    if result.peak_mb > PEAK_MB:
        return f"took {result.peak_mb:.0f} MB for a small file"
    if result.outcome == "refused":
        if fault.expected == READ:
            return f"refused: {result.message}"
        if path not in result.message or "What to do:" not in result.message:
            return f"the error does not say where and what to do: {result.message}"
        if len(result.message) > LONGEST_MESSAGE:
            return f"an error of {len(result.message)} characters: {result.message[:200]}"
        if not re.search(fault.says, result.message):
            return f"the error does not say {fault.says!r}: {result.message}"
        return ""
    if fault.expected == REFUSED:
        return "read as if nothing were wrong"
    if fault.expected in (READ, EITHER) and not result.equal:
        return f"read, with other values than the good file's {result.strange}".rstrip()
    return result.strange and f"read, but {result.strange}"


def run(corpus, folder: Path, *, reader="package", seconds=SECONDS, memory_mb=MEMORY_MB) -> dict[str, Result]:
    """Build every fault of a corpus in `folder` and read it; returns the result of each, by name.

    Parameters
    ----------
    corpus : (faults, good): a list of Fault; key -> dict of arrays that the good files hold
    folder : must be open to all users where a fault wants to be read by one without rights
    """
    faults, good = corpus
    for key, arrays in good.items():
        np.savez(folder / f"good_{key}.npz", **arrays)
    jobs = []
    for number, fault in enumerate(faults):
        home = folder / f"{number:03d}"
        home.mkdir()
        path = fault.build(home)
        jobs.append({k: v for k, v in asdict(fault).items() if k != "build"} | {"path": os.fspath(path)})
    results: dict[str, Result] = {}
    while len(results) < len(jobs):
        left = [job for job in jobs if job["name"] not in results]
        for result in _one_child(left, folder, reader, seconds, memory_mb):
            results[result.name] = result
    return {job["name"]: results[job["name"]] for job in jobs}


def paths_of(corpus, folder: Path) -> dict[str, str]:
    """Name of a fault -> the start of the paths that an error on it may name."""
    return {fault.name: str(folder / f"{number:03d}") for number, fault in enumerate(corpus[0])}


def _one_child(jobs, folder: Path, reader: str, seconds: float, memory_mb: float):
    """Results of the first jobs: of all of them, or up to the one that the child did not survive."""
    order = folder / "jobs.json"
    order.write_text(json.dumps({"jobs": jobs, "reader": reader, "seconds": seconds, "memory_mb": memory_mb}))
    out, into = os.pipe()
    printed = folder / "printed.txt"
    with open(printed, "wb") as sink:
        child = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("faults_child.py"), str(order), str(into), str(printed)],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, pass_fds=[into],
        )  # fmt: skip
    os.close(into)
    running, text = None, b""
    try:
        while True:
            # Starting may take long on a busy machine; after that the child's own alarm should come first.
            if not select.select([out], [], [], 300 if running is None else 2 + 3 * seconds)[0]:
                child.kill()
            piece = os.read(out, 1 << 16)
            *lines, text = (text + piece).split(b"\n")
            for line in lines:
                record = json.loads(line)
                if "start" in record:
                    running = record["start"]
                else:
                    running = None
                    yield Result(**record)
            if not piece:
                break
    finally:
        os.close(out)
        code = child.wait()
    last = printed.read_text(errors="replace")[-2000:]
    if running is not None:
        hung = code == -signal.SIGKILL
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        yield Result(running, "hangs" if hung else "killed", message=f"the process ended by {cause}", printed=last)
    elif code != 0:
        raise RuntimeError(f"the child did not start (exit code {code}):\n{last}")


def make_corpus(folder: Path, *, seeds: int = 12):
    """(faults, good) for `run`; `seeds` is the number of random damages of each sort.

    Nothing is written before a fault is built; then `folder` gets the good series.
    """
    import faults_folders
    import faults_headers
    import faults_masks
    import faults_pixels
    import faults_series
    import faults_tables

    series = faults_series.Maker(folder / "templates")
    faults_headers.add_to(series, seeds)
    faults_pixels.add_to(series)
    faults_folders.add_to(series)
    masks, good_mask = faults_masks.corpus(seeds)
    tables, good_tables = faults_tables.corpus()
    good = {"series": faults_series.good(), "mask": good_mask, "dataset": good_tables}
    return series.faults + masks + tables, good


def open_folder() -> tempfile.TemporaryDirectory:
    """A temporary folder that every user may enter, as the faults of rights need it."""
    folder = tempfile.TemporaryDirectory(prefix="faults")
    os.chmod(folder.name, 0o755)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--only", default="", help="a pattern of names")
    parser.add_argument("--reader", default="package", help="a key of faults_child.READERS")
    parser.add_argument("--memory-mb", type=int, default=MEMORY_MB)
    parser.add_argument("--keep", help="make the corpus here and leave it")
    arguments = parser.parse_args()
    with open_folder() as temporary:
        folder = Path(arguments.keep or temporary)
        (folder / "cases").mkdir(parents=True)
        faults, good = make_corpus(folder, seeds=arguments.seeds)
        corpus = [f for f in faults if re.search(arguments.only, f.name)], good
        results = run(corpus, folder / "cases", reader=arguments.reader, memory_mb=arguments.memory_mb)
        where = paths_of(corpus, folder / "cases")
    failures = 0
    print(f"{'case':<44} {'outcome':<8} {'s':>6} {'MB':>6}  message")
    for fault in corpus[0]:
        result = results[fault.name]
        problem = judge(fault, where[fault.name], result)
        failures += bool(problem)
        text = f"FAILED {problem}" if problem else result.message or "as expected"
        text = " ".join(text.replace(str(folder), "").split())
        mb = "" if math.isnan(result.peak_mb) else f"{result.peak_mb:.0f}"
        print(f"{fault.name:<44} {result.outcome:<8} {result.seconds:6.2f} {mb:>6}  {ascii(text[:300])[1:-1]}")
    print(f"{len(corpus[0])} faults, {failures} of them not met properly")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
