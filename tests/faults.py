"""Hand the readers faulty files, and see what each of them does: `python tests/faults.py` prints the table.

`faults_dicom` and `faults_files` make the corpus from good files. Every fault is read in one child process, since
starting Python costs more than reading: with a limit on memory, an alarm for every fault, and a parent that notices
when the child dies or hangs, writes that down and starts another one for the faults that are left.

A fault is met properly if the reader raises an error of this package that names the file and says what to do, or, where
the fault allows it, if what was read is right. `READERS` holds, beside the package's own readers, some that fail on
purpose, so that a test can see each kind of failure being noticed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
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
_NO_MEMORY = re.compile("MemoryError|[Uu]nable to allocate|[Oo]ut of memory")


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


# ------------------------------------------------------------------------------------------------ the parent


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
            [sys.executable, __file__, "--child", str(order), str(into), str(printed)],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, pass_fds=[into],
        )  # fmt: skip
    os.close(into)
    running, text = None, b""
    try:
        while True:
            # Starting may take long on a busy machine; after that the child's own alarm should come first.
            if not select.select([out], [], [], 300 if running is None else 5 + 3 * seconds)[0]:
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


# ------------------------------------------------------------------------------------------------- the child


class _Alarm(BaseException):
    """Not an Exception, so that no reader takes it for damage in a file."""


def _ring(signum, frame):
    raise _Alarm


def _child(order: Path, out: int, printed: Path) -> None:
    plan = json.loads(order.read_text())
    read = READERS[plan["reader"]]()
    good = {p.stem[5:]: dict(np.load(p)) for p in order.parent.glob("good_*.npz")}
    signal.signal(signal.SIGALRM, _ring)
    limit = _data_bytes() + int(plan["memory_mb"] * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for job in plan["jobs"]:
        os.write(out, json.dumps({"start": job["name"]}).encode() + b"\n")
        result = _meet(read, job, good.get(job["good"]), plan["seconds"], printed)
        os.write(out, json.dumps(asdict(result)).encode() + b"\n")


def _meet(read, job, good, seconds: float, printed: Path) -> Result:
    from cspine_utils.errors import CSpineError

    result = Result(job["name"], "read")
    said = printed.stat().st_size
    before_mb, start = _start_peak_mb(), time.perf_counter()
    value = None
    try:
        if job["as_nobody"] and os.geteuid() == 0:
            os.seteuid(65534)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        value = read(job["kind"], job["path"], good)
    except _Alarm:
        result.outcome, result.message = "hangs", f"nothing after {seconds:g} s"
    except CSpineError as error:
        result.outcome, result.message = "refused", str(error)
        if any(isinstance(cause, MemoryError) or _NO_MEMORY.search(str(cause)) for cause in _causes(error)):
            result.outcome, result.message = "memory", f"refused only after memory ran out: {error}"
    except MemoryError as error:
        result.outcome, result.message = "memory", f"MemoryError: {error}"
    except Exception as error:
        result.outcome, result.message = "leaks", f"{type(error).__name__}: {error}{_place(error)}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if os.geteuid() != os.getuid():
            os.seteuid(os.getuid())
    result.seconds = time.perf_counter() - start
    result.peak_mb = max(0.0, _peak_mb() - before_mb)
    if result.outcome == "read":
        result.equal, result.strange = compare(job, value, good)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with open(printed, "rb") as file:
        file.seek(said)
        result.printed = file.read().decode(errors="replace")[:2000]
    return result


def compare(job, value, good) -> tuple[bool, str]:
    """(is it what the good files hold, what is strange about it or "")."""
    if job["kind"] == "dataset":
        return list(value) == good["studies"].tolist(), ""
    if job["kind"] == "mask":
        if value.dtype != np.uint8 or value.shape != good["mask"].shape:
            return False, f"a mask of {value.dtype} {value.shape}"
        return np.array_equal(value, good["mask"]), ""
    hu, affine, names = value.hu, value.affine, list(value.file_names)
    left_out = getattr(value, "left_out", {})
    equal = (
        hu.shape == good["hu"].shape
        and np.array_equal(hu, good["hu"])
        and np.allclose(affine, good["affine"], atol=1e-3)
    )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if hu.dtype != np.int16 or hu.shape[1:] != good["hu"].shape[1:] or len(hu) != len(names):
        return equal, f"{hu.dtype} {hu.shape} from {len(names)} files"
    if not np.isfinite(affine).all() or not ((spacing > 0.01) & (spacing < 100)).all():
        return equal, f"spacing {spacing}"
    missing = set(os.listdir(job["path"])) - set(names) - set(left_out)
    if missing:
        return equal, f"{sorted(missing)} neither read nor in left_out"
    if not all(isinstance(reason, str) and len(reason) > 5 for reason in left_out.values()):
        return equal, f"left_out without reasons: {left_out}"
    for name, slice_hu in zip(names, hu, strict=True):
        known = np.flatnonzero(good["names"] == name)
        if job["damaged"] not in (name, "*") and len(known) and not np.array_equal(slice_hu, good["hu"][known[0]]):
            return equal, f"slice {name}, which is not damaged, has other values"
    return equal, ""


def _causes(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _place(error) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace else ""


def _status_kb(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not on Linux
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _data_bytes() -> int:
    kb = _status_kb("VmData:")
    return 2**31 if kb is None else 1024 * kb


def _start_peak_mb() -> float:
    """Memory in use now; the peak is counted from here on, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak_mb()
    return _status_kb("VmRSS:") / 1024


def _peak_mb() -> float:
    kb = _status_kb("VmHWM:")
    if kb is None:
        kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kb / 1024


# ----------------------------------------------------------------------------------------------- the readers


def _package():
    from cspine_utils.dicom import read_series
    from cspine_utils.nifti import read_mask
    from cspine_utils.rsna import RsnaDataset
    from cspine_utils.volume import Volume

    def read(kind, path, good):
        if kind == "series":
            return read_series(path)
        if kind == "mask":
            return read_mask(path, Volume(good["hu"], good["affine"]))
        dataset = RsnaDataset(path)
        for study in dataset.studies:
            dataset.series_dir(study), dataset.mask_path(study)
        return dataset.studies

    return read


def _failing(act):
    return lambda: lambda kind, path, good: act(path)


def _leaks(path):
    raise ValueError("could not convert string to float")


def _eats(path):
    try:
        np.ones(2**40)
    except MemoryError as error:
        from cspine_utils.errors import SeriesError

        raise SeriesError(path, found="no memory", expected="memory", remedy="buy some.") from error


def _grows(path):
    np.ones(60 * 2**20)  # 480 MB, below the limit of the process
    _vague(path)


def _talks(path):
    from cspine_utils.errors import SeriesError

    print("Traceback (most recent call last):", file=sys.stderr)
    raise SeriesError(path, found="damage", expected="none", remedy="look for it.")


def _vague(path):
    from cspine_utils.errors import SeriesError

    raise SeriesError("a file", found="damage", expected="none", remedy="look for it.")


READERS = {
    "package": _package,
    "leaks": _failing(_leaks),
    "hangs": _failing(lambda path: time.sleep(1000)),
    "hangs for good": _failing(lambda path: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]) or time.sleep(1000)),
    "eats": _failing(_eats),
    "grows": _failing(_grows),
    "dies": _failing(lambda path: os.kill(os.getpid(), signal.SIGSEGV)),
    "leaves": _failing(lambda path: os._exit(3)),
    "vague": _failing(_vague),
    "talks": _failing(_talks),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ the corpus


def make_corpus(folder: Path, *, seeds: int = 12):
    """(faults, good) for `run`; `seeds` is the number of random damages of each sort.

    Nothing is written before a fault is built; then `folder` gets the good series.
    """
    import faults_dicom
    import faults_files

    faults, good = faults_dicom.corpus(folder, seeds)
    more, also = faults_files.corpus(seeds)
    return faults + more, good | also


def open_folder() -> tempfile.TemporaryDirectory:
    """A temporary folder that every user may enter, as the faults of rights need it."""
    folder = tempfile.TemporaryDirectory(prefix="faults")
    os.chmod(folder.name, 0o755)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--only", default="", help="a pattern of names")
    parser.add_argument("--reader", default="package", choices=READERS)
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
    if sys.argv[1:2] == ["--child"]:
        _child(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        sys.exit(main())
