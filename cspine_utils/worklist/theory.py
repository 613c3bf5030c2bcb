"""Mean waits in closed form, each with its source and where it holds. Outside, WorklistError.

Rates are per minute, times in minutes. Class 1 is what the AI flags, class 2 all others; sigma_k is the load of the
classes 1 ... k. The wait of an exam is its time in the system less its own reading, so an interruption is waiting.

Erlang (1917) and Kleinrock, "Queueing Systems" 1 (1975), for a list without classes; Cobham (1954), Operations Research
2:70; Miller (1960), 8:723 and Conway, Maxwell, Miller, "Theory of Scheduling" (1967) for interrupted reading; Davis
(1966), 14:133 for several readers. What is marked as ours follows from these and is checked by simulation
(tests/bench/bench_worklist.py). The public functions refuse numbers that no room has.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import NamedTuple

from cspine_utils.errors import WorklistError

from .scenario import Scenario, check_radiologists

#: What `table` tells, in minutes: of everybody without AI, then with it.
TABLE = ("fifo_min", "flagged_min", "unflagged_min", "diseased_min", "non_diseased_min", "saving_min")


class Waits(NamedTuple):
    """Mean waits in minutes: of all exams, of those in class 1, and of those in class 2."""

    fifo: float
    flagged: float
    unflagged: float


def mm1_wait(arrivals: float, reading_min: float) -> float:
    """M/M/1, first in, first out: rho / (mu - lambda) (Erlang 1917)."""
    _real(arrivals=arrivals, reading_min=reading_min)
    rho = _load(arrivals * reading_min)
    return rho * reading_min / (1 - rho)


def erlang_c(offered: float, radiologists: int) -> float:
    """Probability that an exam has to wait in M/M/c, from lambda E[S] (Erlang 1917), by the recursion for Erlang B."""
    check_radiologists(radiologists)
    _load(offered / radiologists)
    blocked = 1.0
    for k in range(1, radiologists + 1):
        blocked = offered * blocked / (k + offered * blocked)
    rho = offered / radiologists
    return blocked / (1 - rho + rho * blocked)


def mmc_wait(arrivals: float, reading_min: float, radiologists: int) -> float:
    """M/M/c, first in, first out: C / (c mu - lambda) (Kleinrock 1975)."""
    _real(arrivals=arrivals, reading_min=reading_min)
    waits = erlang_c(arrivals * reading_min, radiologists)
    return waits * reading_min / (radiologists - arrivals * reading_min)


def mmc_longer_than(minutes: float, arrivals: float, reading_min: float, radiologists: int) -> float:
    """P(wait > minutes) in M/M/c, first in, first out: C exp(-(c mu - lambda) t) (Kleinrock 1975)."""
    _real(minutes=minutes, arrivals=arrivals, reading_min=reading_min)
    waits = erlang_c(arrivals * reading_min, radiologists)
    return waits * math.exp(-(radiologists / reading_min - arrivals) * minutes) if reading_min else 0.0


def mg1_wait(arrivals: float, mean: float, second_moment: float) -> float:
    """M/G/1, first in, first out, from E[S] and E[S^2] (Pollaczek 1930, Khinchine 1932)."""
    _real(arrivals=arrivals, mean=mean, second_moment=second_moment)
    if second_moment < mean**2 * (1 - 1e-9):
        _refuse("second_moment", second_moment, f"E[S]^2 = {mean**2:g} or more")
    return arrivals * second_moment / (2 * (1 - _load(arrivals * mean)))


class Class(NamedTuple):
    """A class of exams: how many come a minute, E[S] and E[S^2] of their reading."""

    arrivals: float
    mean: float
    second_moment: float


def nonpreemptive_mg1(classes: list[Class]) -> list[float]:
    """Waits of classes in order of their priority, M/G/1: W0 / ((1 - sigma_(k-1)) (1 - sigma_k)) (Cobham 1954)."""
    residual = sum(c.arrivals * c.second_moment for c in classes) / 2
    waits, above = [], 0.0
    for c in classes:
        here = _load(above + c.arrivals * c.mean)
        waits.append(residual / ((1 - above) * (1 - here)))
        above = here
    return waits


def preemptive_mg1(classes: list[Class]) -> list[float]:
    """Waits when exams are interrupted and read on later, M/G/1 (Miller 1960).

    A part of a class whose own mean is s waits s / E[S] times the interruptions: see `interruptions`.
    """
    waits, above, residual = [], 0.0, 0.0
    for c in classes:
        here = _load(above + c.arrivals * c.mean)
        residual += c.arrivals * c.second_moment / 2
        waits.append(residual / ((1 - above) * (1 - here)) + interruptions(c.mean, above))
        above = here
    return waits


def interruptions(mean: float, above: float) -> float:
    """How long exams of this mean reading time are interrupted when the classes before them have the load `above`."""
    _real(mean=mean)
    _load(above)
    return mean * above / (1 - above)


def nonpreemptive_mmc(arrivals: list[float], reading_min: float, radiologists: int) -> list[float]:
    """Waits of classes with one exponential law, M/M/c (Davis 1966)."""
    total = sum(arrivals)
    waits, above = [], 0.0
    anyone = erlang_c(total * reading_min, radiologists) * reading_min / radiologists
    for rate in arrivals:
        here = above + rate * reading_min / radiologists
        waits.append(anyone / ((1 - above) * (1 - here)))
        above = here
    return waits


def preemptive_mmc(arrivals: list[float], reading_min: float, radiologists: int) -> list[float]:
    """Waits of classes with one exponential law, M/M/c: the first k classes are an M/M/c of their own."""
    waits, rate, number = [], 0.0, 0.0
    for own in arrivals:
        rate += own
        waiting = rate * mmc_wait(rate, reading_min, radiologists)
        waits.append((waiting - number) / own if own else math.nan)
        number = waiting
    return waits


def triage_saving(scenario: Scenario) -> float:
    """By how much a fracture waits less: W_FIFO rho (Se - P+) / (1 - rho P+). Ours; non-preemptive, one reading law.

    With nothing but cervical spine CTs on the list: W_FIFO rho (1 - prevalence) J / (1 - rho P+), J = Se + Sp - 1. So
    an AI that does not know more than chance saves nothing, and an idle room has nothing to save. The AI answers at
    once here: `latency_factor` tells what is left of it otherwise.
    """
    _one_law(scenario, "nonpreemptive")
    flagged = scenario.flagged_share
    own = waits(scenario).fifo * scenario.load
    return own * (scenario.sensitivity - flagged) / (1 - scenario.load * flagged)


def latency_factor(scenario: Scenario) -> float:
    """Which part of the saving is left if the AI answers after `latency_min`: exp(-(c mu - lambda) L).

    Ours; non-preemptive M/M/c: nobody overtakes before the answer, and the number of those who wait has no memory.
    """
    _stationary(scenario)
    _one_law(scenario, "nonpreemptive", exponential=True)
    rate = scenario.radiologists / scenario.reading_min - scenario.arrivals_per_min
    return math.exp(-rate * scenario.latency_min)


def waits(scenario: Scenario) -> Waits:
    """Mean waits of the classes, the AI answering at once; NaN for a class in which nobody is.

    Raises WorklistError where no formula is exact: several radiologists with other than one exponential law, a day
    profile, a horizon, a cap, drawn operating points.
    """
    _stationary(scenario)
    flagged, others = _classes(scenario)
    c, m = scenario.radiologists, scenario.mean_reading_min
    if c > 1:
        _one_law(scenario, scenario.discipline, exponential=True)
        rates = [flagged.arrivals, others.arrivals]
        fifo = mmc_wait(sum(rates), m, c)
        known = {"nonpreemptive": nonpreemptive_mmc, "preemptive": preemptive_mmc}.get(scenario.discipline)
        found = known(rates, m, c) if known else (fifo, fifo)
        return _of_somebody(fifo, found, (flagged, others))
    second = sum(k.arrivals * k.second_moment for k in (flagged, others)) / scenario.arrivals_per_min
    fifo = mg1_wait(scenario.arrivals_per_min, m, second)
    known = {"nonpreemptive": nonpreemptive_mg1, "preemptive": preemptive_mg1}.get(scenario.discipline)
    return _of_somebody(fifo, known([flagged, others]) if known else (fifo, fifo), (flagged, others))


def table(scenario: Scenario) -> dict[str, float]:
    """Mean waits in minutes under the names that the command line prints; NaN for exams that there are not."""
    found = waits(scenario)
    if math.isinf(scenario.latency_min):  # an AI that never answers, whatever its discipline
        found = Waits(*[found.fifo] * 3)
    elif scenario.latency_min and scenario.discipline != "fifo":
        factor = latency_factor(scenario)
        found = Waits(found.fifo, *(found.fifo + (w - found.fifo) * factor for w in found[1:]))
    se, sp = scenario.sensitivity, scenario.specificity
    s1, s2 = scenario.reading_min * scenario.fractured_factor, scenario.reading_min
    more = {"fractured": 0.0, "intact": 0.0}  # of the interruptions, what their own length adds
    if scenario.discipline == "preemptive" and scenario.radiologists == 1 and not math.isinf(scenario.latency_min):
        flagged, others = _classes(scenario)
        above = flagged.arrivals * flagged.mean
        more = {
            "fractured": interruptions(s1, above) - interruptions(others.mean, above),
            "intact": interruptions(s2, above) - interruptions(others.mean, above),
        }
    diseased = _mixed(se, found.flagged, found.unflagged + more["fractured"])
    intact = _mixed(1 - sp, found.flagged, found.unflagged + more["intact"])
    if not scenario.share * scenario.prevalence:
        diseased = math.nan
    if not scenario.share * (1 - scenario.prevalence):
        intact = math.nan
    return dict(zip(TABLE, (*found, diseased, intact, found.fifo - diseased), strict=True))


def table_or_nan(scenario: Scenario) -> dict[str, float]:
    """`table`, and NaN under each of its names where no formula is exact."""
    try:
        return table(scenario)
    except WorklistError:
        return dict.fromkeys(TABLE, math.nan)


def _of_somebody(fifo: float, found, classes) -> Waits:
    return Waits(fifo, *(wait if k.arrivals else math.nan for wait, k in zip(found, classes, strict=True)))


def _mixed(share: float, flagged: float, unflagged: float) -> float:
    """Wait of exams of which this share is flagged; a class with no share may be nobody's."""
    return (share * flagged if share else 0.0) + ((1 - share) * unflagged if share < 1 else 0.0)


def _classes(scenario: Scenario) -> tuple[Class, Class]:
    """What is flagged, and what is not: mixtures of exams with and without fracture."""
    f, pi, se, sp = scenario.share, scenario.prevalence, scenario.sensitivity, scenario.specificity
    spread = {"exponential": 1.0, "lognormal": scenario.reading_cv**2, "fixed": 0.0}[scenario.reading_law]
    intact, broken = scenario.reading_min, scenario.reading_min * scenario.fractured_factor
    flagged, missed = (f * pi * se, f * (1 - pi) * (1 - sp)), f * pi * (1 - se)
    found = []
    for with_fracture, without in (flagged, (missed, 1 - sum(flagged) - missed)):
        share = with_fracture + without
        mean = (with_fracture * broken + without * intact) / share if share else intact
        square = (with_fracture * broken**2 + without * intact**2) / share if share else intact**2
        found.append(Class(scenario.arrivals_per_min * share, mean, square * (1 + spread)))
    return found[0], found[1]


def _real(**values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < math.inf:
            _refuse(name, value, "a number from 0 up")


def _refuse(name: str, found, expected: str) -> None:
    raise WorklistError(name, found=repr(found), expected=expected, remedy="pass such a number.")


def _load(rho: float) -> float:
    if not 0 <= rho < 1:
        raise WorklistError(
            "load",
            found=f"{rho:.4g}",
            expected="0 to less than 1; from 1 on the list grows without end, and there is no mean wait",
            remedy="lower the load.",
        )
    return rho


def _stationary(scenario: Scenario) -> None:
    for name in ("day_profile", "horizon_min", "cap_min", "operating_points"):
        if getattr(scenario, name):
            raise WorklistError(
                name, found=repr(getattr(scenario, name)), expected="none: no formula covers it", remedy="simulate it."
            )


def _one_law(scenario: Scenario, discipline: str, *, exponential: bool = False) -> None:
    laws = scenario.fractured_factor == 1 and (not exponential or scenario.reading_law == "exponential")
    several = scenario.radiologists > 1 and scenario.reading_law != "exponential"
    if scenario.discipline != discipline or not laws or several:
        raise WorklistError(
            "scenario",
            found=f"{scenario.discipline}, {scenario.radiologists} radiologists, {scenario.reading_law} reading, "
            f"fractured_factor {scenario.fractured_factor}",
            expected=f"{discipline}, {'exponential reading' if exponential else 'one reading law'} for all exams",
            remedy="simulate it: no formula is exact there.",
        )
