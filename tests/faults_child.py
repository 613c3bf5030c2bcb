"""The child process of `faults.run`: reads one fault after the other and reports on each. (It is no test by itself.)"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from faults import NO_MEMORY, Result

from cspine_utils.errors import CSpineError, SeriesError


class _Alarm(BaseException):
    """Not an Exception, so that no reader takes it for damage in a file."""


def _ring(signum, frame):
    raise _Alarm


def _child(order: Path, out: int, printed: Path) -> None:
    plan = json.loads(order.read_text())
    read = READERS[plan["reader"]]()
    good = {p.stem[5:]: dict(np.load(p)) for p in order.parent.glob("good_*.npz")}
    signal.signal(signal.SIGALRM, _ring)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + int(plan["memory_mb"] * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    for job in plan["jobs"]:
        os.write(out, json.dumps({"start": job["name"]}).encode() + b"\n")
        result = _meet(read, job, good.get(job["good"]), plan["seconds"], printed)
        os.write(out, json.dumps(asdict(result)).encode() + b"\n")


def _meet(read, job, good, seconds: float, printed: Path) -> Result:
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
        if any(isinstance(cause, MemoryError) or NO_MEMORY.search(str(cause)) for cause in _causes(error)):
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
        raise SeriesError(path, found="no memory", expected="memory", remedy="buy some.") from error


def _grows(path):
    np.ones(60 * 2**20)  # 480 MB, below the limit of the process
    _vague(path)


def _hangs(path):
    """Where no alarm is heard, as in a loop of a library in C."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(1000)


def _talks(path):
    print("Traceback (most recent call last):", file=sys.stderr)
    raise SeriesError(path, found="damage", expected="none", remedy="look for it.")


def _vague(path):
    raise SeriesError("a file", found="damage", expected="none", remedy="look for it.")


READERS = {
    "package": _package,
    "leaks": _failing(_leaks),
    "hangs": _failing(lambda path: time.sleep(1000)),
    "hangs for good": _failing(_hangs),
    "eats": _failing(_eats),
    "grows": _failing(_grows),
    "dies": _failing(lambda path: os.kill(os.getpid(), signal.SIGSEGV)),
    "leaves": _failing(lambda path: os._exit(3)),
    "vague": _failing(_vague),
    "talks": _failing(_talks),
}  # fmt: skip


if __name__ == "__main__":
    _child(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
