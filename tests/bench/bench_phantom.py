"""What a synthetic study costs, each beside a named peer in the same run.

    python tests/bench/bench_phantom.py [--quick]

* a whole study at 128 and at 256 pixels: seconds of wall and of processor, peak memory of a process of its own
* a pair (fractured, intact twin) of one vertebra at 1.25 mm, beside rendering the whole study twice and cutting it out
* a pair of whole studies, beside rendering the two one after the other
* torch with one thread, beside two (studies are rendered on one thread whatever torch is told: about 1.0 is right)
* a cohort written by one process, beside two
* the last of many studies, beside the first: nothing may pile up

The ratios are what to look at: seconds depend on the machine and on who else uses it. Peers take turns, so that a busy
moment hits both, and where one thread works its processor time is compared, which others disturb less.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch

from cspine_utils.phantom import draw_plan, render, render_pair, render_vertebra_pair, write_cohort

SEED = 77


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of processor time, or by another clock."""
    started = clock()
    work()
    return clock() - started


def in_turn(jobs: dict[str, Callable[[int], object]], runs: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each job; the first of its runs is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for run in range(runs + 1):
        for name, job in jobs.items():
            times[name].append(seconds(lambda job=job, run=run: job(run), clock))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def compare(title: str, jobs: dict[str, Callable[[int], object]], runs: int, clock=time.process_time) -> None:
    """Print every job's median, and how many times as long each later one takes as the first."""
    medians = in_turn(jobs, runs, clock)
    first = next(iter(medians))
    for name, median in medians.items():
        ratio = "" if name == first else f"   {median / medians[first]:6.2f} x {first}"
        print(f"{title:<16}  {name:<44} {median:7.2f} s{ratio}", flush=True)


def one_study(size: int) -> None:
    """Render one study and print wall seconds, processor seconds, peak resident memory (for a process of its own)."""
    torch.set_num_threads(1)
    render(draw_plan(SEED, 0, size=48))  # what a first call loads does not belong to a study
    started, used = time.perf_counter(), time.process_time()
    study = render(draw_plan(SEED, 1, size=size, levels=("C2", "C5")))
    wall, processor = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024) / 2**10
    shape = " x ".join(str(n) for n in study.hu.shape[::-1])
    print(
        f"{'whole study':<16}  {shape:<44} {wall:7.2f} s   {processor:6.2f} s of processor, peak {peak:.2f} GiB",
        flush=True,
    )


def cut_out(level: str, box_mm, run: int):
    """The peer of `render_vertebra_pair`: both whole studies, then the box around the level."""
    plan = draw_plan(SEED, run, size=128, levels=(level,))
    centre = plan.grid.index(plan.landmarks()[level]["centre"])
    shape = [round(length / mm) for length, mm in zip(box_mm, plan.grid.spacing_mm, strict=True)]
    first = [max(0, round(float(c) - n / 2)) for c, n in zip(centre, shape, strict=True)]
    part = tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))
    return [study.hu[part].copy() for study in render_pair(plan)]


def vertebrae(runs: int) -> None:
    box = (40.0, 60.0, 60.0)  # 32 x 48 x 48 voxels of about 1.25 mm

    def crop(run: int):
        return render_vertebra_pair(draw_plan(SEED, run, size=128, levels=("C5",)), "C5", box_mm=box)

    compare("one vertebra", {"pair of crops": crop, "whole pair, cut out": lambda run: cut_out("C5", box, run)}, runs)


def pairs(runs: int) -> None:
    def apart(run: int):
        plan = draw_plan(SEED, run, size=128, levels=("C5",))
        return render(plan), render(plan, fractured=False)

    def together(run: int):
        return render_pair(draw_plan(SEED, run, size=128, levels=("C5",)))

    compare("twins", {"render_pair": together, "render twice": apart}, runs)


def threads(runs: int) -> None:
    def with_threads(count: int):
        def job(run: int):
            torch.set_num_threads(count)
            try:
                return render(draw_plan(SEED, run, size=128))
            finally:
                torch.set_num_threads(1)

        return job

    compare(
        "threads",
        {"torch told one thread": with_threads(1), "torch told two": with_threads(2)},
        runs,
        time.perf_counter,
    )


def processes(studies: int, size: int) -> None:
    def cohort(workers: int):
        def job(run: int):
            with tempfile.TemporaryDirectory() as folder:
                write_cohort(os.path.join(folder, "c"), studies, SEED + run, size=size, workers=workers, progress=False)

        return job

    jobs = {f"{studies} studies, two processes": cohort(2), f"{studies} studies, one process": cohort(1)}
    compare("processes", jobs, 1, time.perf_counter)


def many(studies: int) -> None:
    """The same few studies again and again: median seconds and memory of the last third beside the first."""
    torch.set_num_threads(1)
    times, memory = [], []
    for index in range(studies):
        times.append(seconds(lambda index=index: render(draw_plan(SEED, index % 4, size=64))))
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    third = studies // 3
    first, last = statistics.median(times[1 : third + 1]), statistics.median(times[-third:])
    print(
        f"{'many studies':<16}  {'last third of ' + str(studies):<44} {last:7.2f} s   {last / first:6.2f} x first third"
    )
    print(
        f"{'many studies':<16}  {'peak memory, last':<44} {'':9}   {memory[-1] / memory[third]:6.2f} x after a third",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What a synthetic study costs, each beside a named peer.")
    parser.add_argument("--quick", action="store_true", help="fewer runs, no study of 256 pixels")
    parser.add_argument("--one-study", type=int, metavar="SIZE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one_study:
        return one_study(args.one_study)
    for size in (128,) if args.quick else (128, 256):
        subprocess.run([sys.executable, __file__, "--one-study", str(size)], check=True)
    runs = 2 if args.quick else 5
    vertebrae(runs)
    pairs(runs)
    threads(runs)
    processes(*((4, 64) if args.quick else (8, 128)))
    many(12 if args.quick else 60)
    return None


if __name__ == "__main__":
    main()
