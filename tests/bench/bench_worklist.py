"""The simulation of the reading room: how fast beside simpy, how near to theory, how honest its intervals.

    python tests/bench/bench_worklist.py [--quick] [--readme]

* speed: exams a second of each discipline, and simpy on the same patients in the same run, taking turns; the ratio is
  the median of the ratios within a turn
* theory: ten million exams beside the closed forms
* intervals: how often the 95 % interval of 30 replications of 20,000 exams, the first fifth left out, holds the true
  mean, in 400 experiments
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from pathlib import Path

import io_report
import numpy as np
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simpy_room import by_simpy

from cspine_utils.worklist import DISCIPLINES, Scenario, draw_patients, simulate, theory, waits_of

BASE = {"load": 0.8, "prevalence": 0.1}
#: (discipline, radiologists) -> exams a second that it must reach.
WANTED = {("fifo", 1): 20e6, ("nonpreemptive", 1): 1e6, ("nonpreemptive", 3): 1e6}
RATIO_WANTED = 10.0
#: Minutes, of 20,000 exams: times of arrival have so many digits.
ERROR_WANTED = 1e-9


def speed(exams: int, few: int, turns: int) -> list[list[str]]:
    """Rows: discipline, radiologists, ours and simpy (exams a second), ratio, largest difference, limits, if met."""
    rows = []
    for radiologists in (1, 3):
        for discipline in DISCIPLINES:
            scenario = Scenario(**BASE, discipline=discipline, radiologists=radiologists)
            many, some = (draw_patients(scenario, n, np.random.default_rng(0)) for n in (exams, few))
            ours, theirs, ratios = [], [], []
            for _ in range(turns):
                begun = time.perf_counter()
                waits_of(many, scenario)
                between = time.perf_counter()
                found = by_simpy(some.arrival, some.reading, some.flagged, radiologists, discipline)
                ended = time.perf_counter()
                ours.append(exams / (between - begun))
                theirs.append(few / (ended - between))
                ratios.append(ours[-1] / theirs[-1])
            error = np.abs(found - waits_of(some, scenario)).max()
            least = WANTED.get((discipline, radiologists), 0.0)
            rate, ratio = statistics.median(ours), statistics.median(ratios)
            wanted = f"{least / 1e6:.0f} M, {RATIO_WANTED:.0f} x" if least else f"{RATIO_WANTED:.0f} x"
            rows.append([
                discipline, str(radiologists), f"{rate / 1e6:.2f} M", f"{statistics.median(theirs) / 1e6:.3f} M",
                f"{ratio:.0f}", f"{error:.1e}", wanted,
                "yes" if rate >= least and ratio >= RATIO_WANTED and error <= ERROR_WANTED else "NO",
            ])  # fmt: skip
    return rows


def exact(exams: int) -> list[list[str]]:
    """Rows: scenario, what, simulated, formula, error in per cent; waits below 5 % of a reading are left out."""
    rows = []
    for changes in (
        {}, {"discipline": "preemptive"}, {"radiologists": 3}, {"radiologists": 3, "discipline": "preemptive"},
        {"reading_law": "lognormal", "reading_cv": 0.7}, {"radiologists": 3, "latency_min": 10.0},
        {"load": 0.5}, {"share": 0.2, "prevalence": 0.05},
    ):  # fmt: skip
        scenario = Scenario(**(BASE | changes))
        formula = theory.table(scenario)
        found = simulate(scenario, n_exams=exams, seed=1, replications=1)
        for name in ("fifo_min", "flagged_min", "unflagged_min", "diseased_min"):
            wanted, value = formula[name], found.means[name].mean
            if wanted > 0.05 * scenario.reading_min:
                error = value / wanted - 1
                words = ", ".join(f"{k} {v}" for k, v in changes.items()) or "one radiologist, non-preemptive"
                rows.append([words, name, f"{value:.4f}", f"{wanted:.4f}", f"{100 * error:+.2f}"])
    return rows


def coverage(experiments: int, replications: int, exams: int) -> tuple[str, bool]:
    """How often the interval of the wait of fractured exams holds the exact mean."""
    scenario = Scenario(**BASE, discipline="preemptive")
    truth, held = theory.table(scenario), {"fifo_min": 0, "diseased_min": 0}
    for seed in range(experiments):
        means = simulate(scenario, n_exams=exams, seed=seed, replications=replications).means
        for name in held:
            held[name] += means[name].low <= truth[name] <= means[name].high
    words = []
    for name, count in held.items():
        band = binomtest(count, experiments).proportion_ci(method="wilson")
        words.append(f"{name} {count / experiments:.1%} ({band.low:.1%} to {band.high:.1%})")
    good = all(0.93 <= count / experiments <= 0.97 for count in held.values())
    return f"{experiments} experiments of {replications} x {exams:,} exams: " + ", ".join(words), good


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything")
    parser.add_argument("--readme", action="store_true", help="put the result into README.md")
    chosen = parser.parse_args(arguments)
    quick = 100 if chosen.quick else 1
    rows = speed(2_000_000 // quick, 20_000 // min(quick, 4), 3)
    near = exact(12_500_000 // quick)  # of which a fifth warms up
    words, good = coverage(400 // min(quick, 20), 30, 20_000 // min(quick, 10))
    worst = max(abs(float(row[-1])) for row in near)
    head = "discipline", "radiologists", "exams/s", "simpy", "ratio", "largest difference, min", "wanted", "met"
    text = "\n\n".join([
        f"Measured on {datetime.date.today().isoformat()} with {io_report.machine()}.",
        io_report.table(list(head), rows),
        io_report.table(["10 million exams", "mean wait", "simulated", "formula", "error, %"], near),
        f"Largest error {worst:.2f} % (at most 1 wanted: {'met' if worst <= 1 else 'NOT met'}).",
        f"95 % intervals that hold the exact mean: {words} (93 to 97 % wanted: {'met' if good else 'NOT met'}).",
    ])  # fmt: skip
    print(text)
    if chosen.readme:
        io_report.into_readme(text, "bench_worklist")


if __name__ == "__main__":
    main()
