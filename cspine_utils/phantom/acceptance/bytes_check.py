"""Same seed, same bytes: however many processes work, and after a run that was killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..cohort import write_cohort
from .report import Row

#: Seconds after which a run that was to be killed is given up.
PATIENCE_S = 300.0


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by relative path."""
    files = sorted(p for p in Path(root).rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def differing(a: dict[str, str], b: dict[str, str]) -> int:
    """Number of files that are not the same in both."""
    return sum(a.get(name) != b.get(name) for name in {*a, *b})


def _killed(root: Path, studies: int, seed: int, size: int) -> bool:
    """Start a run in a process of its own and kill it when its first study is done; was it killed in time?"""
    command = [sys.executable, "-m", "cspine_utils.phantom", "--out", str(root), "--studies", str(studies)]
    process = subprocess.Popen(
        [*command, "--seed", str(seed), "--size", str(size), "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end and not list(root.glob("truth/*.npz")):
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers, as when a machine goes down
    process.wait()
    return not (root / "train.csv").exists()


def bytes_rows(studies: int = 4, seed: int = 5, size: int = 48, *, workers: int = 2) -> list[Row]:
    """Write the same small cohort again: by several processes, and by one that was killed and went on."""
    with tempfile.TemporaryDirectory(prefix="phantom-bytes-") as folder:
        first, again, stopped = (Path(folder) / name for name in ("one", "several", "killed"))
        settings = {"size": size, "progress": False}
        write_cohort(first, studies, seed, **settings)
        wanted = digests(first)
        write_cohort(again, studies, seed, workers=workers, **settings)
        found = differing(digests(again), wanted)
        rows = [Row("bytes", f"files that differ with {workers} processes", float(found), 0.0, 0.0, len(wanted))]
        killed = _killed(stopped, studies, seed, size)
        write_cohort(stopped, studies, seed, **settings)
        found = differing(digests(stopped), wanted)
        what = "files that differ after a kill" if killed else "files that differ (the run ended before it was killed)"
        rows.append(Row("bytes", what, float(found), 0.0, 0.0, len(wanted)))
        return rows
