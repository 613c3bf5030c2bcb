"""The same patients with and without the AI, replicated: waits by class, and the saving with its interval."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import stats

from cspine_utils import parallel
from cspine_utils.errors import WorklistError, check_whole_number

from . import queues
from .scenario import Scenario, or_null

#: True positives, false negatives, false positives, true negatives, and what is no cervical spine CT.
CLASSES = ("TP", "FN", "FP", "TN", "other")
#: The first exams of a replication see an emptier room than later ones; they are read, and left out of every number.
WARM_UP = 0.2
_MINUTES_A_DAY = 24 * 60.0
#: With a day profile, days of warm-up: four times as many are counted then, and where the last one breaks off matters
#: little.
_DAYS = 3
#: Minutes. Two arms sum up the same times in another order.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Patients:
    """Exams in the order of their arrival.

    Attributes
    ----------
    arrival, reading : minutes, `(n,)`
    kind : index into `CLASSES`, `(n,)`
    """

    arrival: np.ndarray
    reading: np.ndarray
    kind: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        return (self.kind == CLASSES.index("TP")) | (self.kind == CLASSES.index("FP"))


def draw_patients(scenario: Scenario, n_exams: int, generator: np.random.Generator) -> Patients:
    """Who comes when, with what, and what the AI says of it.

    Who comes, how long it is read and what it has do not depend on the AI: one number is drawn for each, and the AI's
    answer compares a third one with its sensitivity or specificity. So scenarios that differ in the AI alone meet the
    same patients, and a better AI flags all that a worse one finds.

    Raises WorklistError for fewer exams than may come until the scenario's horizon.
    """
    _check_horizon(scenario, n_exams)
    arrival = _arrivals(scenario, n_exams, generator)
    n = len(arrival)
    reading = _unit_readings(scenario, n, generator) * scenario.reading_min
    what, said = generator.random(n), generator.random(n)
    se, sp = scenario.sensitivity, scenario.specificity
    if scenario.operating_points:
        se, sp = scenario.operating_points[generator.integers(len(scenario.operating_points))]
    spine, broken = what < scenario.share, what < scenario.share * scenario.prevalence
    reading[broken] *= scenario.fractured_factor
    flagged = np.where(broken, said < se, said < 1 - sp)
    kind = np.where(broken, np.where(flagged, 0, 1), np.where(flagged, 2, 3))
    kind[~spine] = 4
    return Patients(arrival, reading, kind.astype(np.int8))


def _check_horizon(scenario: Scenario, n_exams: int) -> None:
    """Refuse what would end before the horizon and look like a quiet evening."""
    if scenario.horizon_min is None:
        return
    wanted = scenario.arrivals_per_min * _even_minutes(scenario)
    enough = math.ceil(wanted + 6 * math.sqrt(wanted) + 10)  # six standard deviations more than the mean
    if n_exams < enough:
        raise WorklistError(
            "n_exams",
            found=f"{n_exams:,}",
            expected=f"more than come in {scenario.horizon_min:g} min, which are about {wanted:,.0f}",
            remedy=f"take {enough:,}.",
        )


def _even_minutes(scenario: Scenario) -> float:
    """Minutes of an even day in which as many exams come as until the horizon."""
    if not scenario.day_profile:
        return scenario.horizon_min
    days, rest = divmod(scenario.horizon_min, _MINUTES_A_DAY)
    return days * _MINUTES_A_DAY + float(np.interp(rest, np.arange(25) * 60.0, _done_by_hour(scenario)))


def _done_by_hour(scenario: Scenario) -> np.ndarray:
    """The same at each full hour of a day, `(25,)`."""
    hours = np.asarray(scenario.day_profile, dtype=float)
    return np.concatenate([[0.0], np.cumsum(hours / hours.sum() * _MINUTES_A_DAY)])


def _arrivals(scenario: Scenario, n: int, generator: np.random.Generator) -> np.ndarray:
    """Poisson arrivals; with a day profile, a clock that runs fast in busy hours and slowly in quiet ones."""
    arrival = np.cumsum(generator.exponential(1 / scenario.arrivals_per_min, n))
    if scenario.day_profile:
        days, rest = np.divmod(arrival, _MINUTES_A_DAY)
        arrival = days * _MINUTES_A_DAY + np.interp(rest, _done_by_hour(scenario), np.arange(25) * 60.0)
    if scenario.horizon_min is not None:
        arrival = arrival[arrival < scenario.horizon_min]
    return arrival


def _unit_readings(scenario: Scenario, n: int, generator: np.random.Generator) -> np.ndarray:
    if scenario.reading_law == "fixed":
        return np.ones(n)
    if scenario.reading_law == "lognormal":
        variance = math.log1p(scenario.reading_cv**2)
        return generator.lognormal(-variance / 2, math.sqrt(variance), n)
    return generator.exponential(1.0, n)


def waits_of(patients: Patients, scenario: Scenario) -> np.ndarray:
    """Minutes that each exam waits under the scenario's discipline.

    An AI that never answers is no AI, whatever its discipline.
    """
    c, cap = scenario.radiologists, math.inf if scenario.cap_min is None else scenario.cap_min
    if scenario.discipline == "fifo" or math.isinf(scenario.latency_min):
        return queues.fifo(patients.arrival, patients.reading, c)
    ready = np.where(patients.flagged, patients.arrival + scenario.latency_min, np.inf)
    discipline = {"nonpreemptive": queues.nonpreemptive, "preemptive": queues.preemptive}[scenario.discipline]
    return discipline(patients.arrival, patients.reading, ready, c, cap)


@dataclass(frozen=True)
class Interval:
    """Mean over replications with its 95 % interval (Student's t); one replication has none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """What a simulation found.

    Attributes
    ----------
    scenario, n_exams, seed, replications : what was asked
    means : Interval by name, minutes: fifo_min, flagged_min, unflagged_min, diseased_min, non_diseased_min, and
        saving_min = how much less an exam with fracture waits than in the same room without AI, missed_delay_min = how
        much longer a missed one does; NaN for what no replication has
    classes : by class, then "fifo" or "triage": n, mean, median, q25, q75, p95, p99, max of all replications' exams
    savings : by class, and of all "diseased" exams: mean, median, q25, q75 of how much less each exam waits than the
        same exam without AI, and the shares "faster", "same" and "slower" of those that gain, see no difference, lose.
        (A median of savings is no difference of medians.)
    warm_up : share of each replication that was left out at its start
    warning : "", or why these numbers are not those of a room that has settled
    """

    scenario: Scenario
    n_exams: int
    seed: int
    replications: int
    means: Mapping[str, Interval]
    classes: Mapping[str, Mapping[str, Mapping[str, float]]]
    savings: Mapping[str, Mapping[str, float]]
    warm_up: float = WARM_UP
    warning: str = ""

    def to_json(self) -> str:
        content = {
            **{name: or_null(interval.mean) for name, interval in self.means.items()},
            "intervals": {name: [or_null(i.low), or_null(i.high)] for name, i in self.means.items()},
            "classes": {k: {arm: {s: or_null(v) for s, v in row.items()} for arm, row in arms.items()}
                        for k, arms in self.classes.items()},
            "savings": {name: {s: or_null(v) for s, v in row.items()} for name, row in self.savings.items()},
            "n_exams": self.n_exams, "seed": self.seed, "replications": self.replications,
            "warm_up": self.warm_up, "warning": self.warning or None, "scenario": json.loads(self.scenario.to_json()),
        }  # fmt: skip
        return json.dumps(content, indent=2, allow_nan=False)


def simulate(scenario: Scenario, *, n_exams: int, seed: int, replications: int = 20, workers: int = 0) -> Result:
    """Let the room run, with and without the AI, on the same patients.

    Parameters
    ----------
    n_exams : of each replication; the first fifth warms up (see `WARM_UP`). With a horizon nothing does: there the room
        is meant to be empty at the start, and so many exams must be enough to reach it
    seed : of all replications; each has a stream of its own, so numbers do not depend on `workers`
    workers : processes, 0 for none but this one

    Intervals are of the means over replications. With drawn operating points that is the mean over the draws: how far
    single ones lie apart, `theory.table` of each tells. A room that begins empty needs about rho / (1 - sqrt(rho))^2
    exams to forget it (the relaxation time of M/M/c: Morse 1955), and with a day profile some days; where the warm-up
    is shorter, waits are too low, and `Result.warning` says so.

    Raises
    ------
    WorklistError : a replication that failed; too few exams to reach the horizon
    ParameterError : counts that cannot be
    """
    check_whole_number("n_exams", n_exams, 2)
    check_whole_number("replications", replications, 1)
    check_whole_number("seed", seed, 0)
    _check_horizon(scenario, n_exams)
    work = partial(_replicate, scenario, n_exams, seed)
    found = {}
    for number, result in parallel.each(work, range(replications), workers=workers):
        if isinstance(result, parallel.Failure):
            raise WorklistError(
                f"replication {number}", found=result.reason, expected="waits", remedy="report it with the scenario."
            )
        found[number] = result
    kinds, before, after = (np.concatenate([found[i][part] for i in range(replications)]) for part in range(3))
    rows = [_means(*found[i]) for i in range(replications)]
    of = {name: kinds == k for k, name in enumerate(CLASSES)} | {"diseased": kinds < 2}
    return Result(
        scenario, n_exams, seed, replications,
        means={name: interval([row[name] for row in rows]) for name in rows[0]},
        classes={
            name: {arm: _spread(w[of[name]]) for arm, w in (("fifo", before), ("triage", after))} for name in CLASSES
        },
        savings={name: _savings((before - after)[who]) for name, who in of.items()},
        warm_up=WARM_UP if scenario.horizon_min is None else 0.0, warning=_unsettled(scenario, n_exams),
    )  # fmt: skip


def _unsettled(scenario: Scenario, n_exams: int) -> str:
    if scenario.horizon_min is not None:
        return ""
    needed, why = scenario.load / (1 - math.sqrt(scenario.load)) ** 2, f"at load {scenario.load:g}"
    if scenario.day_profile:
        days = _DAYS * _MINUTES_A_DAY * scenario.arrivals_per_min
        needed, why = max((needed, why), (days, f"with a day profile, {_DAYS} days of it,"))
    if WARM_UP * n_exams >= needed:
        return ""
    return (
        f"{why} the room needs about {needed:,.0f} exams to forget that it was empty at the start, and the warm-up has "
        f"{WARM_UP * n_exams:,.0f}: the waits are not those of a room that has settled; take "
        f"{math.ceil(needed / WARM_UP):,} exams"
    )


def _replicate(scenario: Scenario, n_exams: int, seed: int, number: int):
    """(kind, wait without AI, wait with AI) of the exams after the warm-up."""
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
    patients = draw_patients(scenario, n_exams, generator)
    before = queues.fifo(patients.arrival, patients.reading, scenario.radiologists)
    after = waits_of(patients, scenario)
    first = 0 if scenario.horizon_min is not None else int(WARM_UP * len(before))
    return patients.kind[first:], before[first:], after[first:]


def _means(kind: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    def mean(waits, *names):
        chosen = np.isin(kind, [CLASSES.index(name) for name in names])
        return float(waits[chosen].mean()) if chosen.any() else math.nan

    return {
        "fifo_min": float(before.mean()) if len(before) else math.nan,
        "flagged_min": mean(after, "TP", "FP"),
        "unflagged_min": mean(after, "FN", "TN", "other"),
        "diseased_min": mean(after, "TP", "FN"),
        "non_diseased_min": mean(after, "FP", "TN"),
        "saving_min": mean(before, "TP", "FN") - mean(after, "TP", "FN"),
        "missed_delay_min": mean(after, "FN") - mean(before, "FN"),
    }


def interval(values, confidence: float = 0.95) -> Interval:
    """Mean of independent replications and its interval by Student's t; replications without a number are left out."""
    values = np.asarray([v for v in values if not math.isnan(v)])
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(mean, float(mean - half), float(mean + half))


def _spread(waits: np.ndarray) -> dict[str, float]:
    if not len(waits):
        return {"n": 0} | dict.fromkeys(("mean", "median", "q25", "q75", "p95", "p99", "max"), math.nan)
    q25, median, q75, p95, p99, top = np.percentile(waits, [25, 50, 75, 95, 99, 100])
    return {
        "n": len(waits), "mean": float(waits.mean()), "median": median, "q25": q25, "q75": q75, "p95": p95,
        "p99": p99, "max": top,
    }  # fmt: skip


def _savings(minutes: np.ndarray) -> dict[str, float]:
    """Of exams: by how much each waits less, `(n,)`."""
    if not len(minutes):
        return dict.fromkeys(("mean", "median", "q25", "q75", "faster", "same", "slower"), math.nan)
    q25, median, q75 = np.percentile(minutes, [25, 50, 75])
    faster, slower = float((minutes > _ROUNDING).mean()), float((minutes < -_ROUNDING).mean())
    return {
        "mean": float(minutes.mean()), "median": median, "q25": q25, "q75": q75, "faster": faster,
        "same": 1 - faster - slower, "slower": slower,
    }  # fmt: skip
