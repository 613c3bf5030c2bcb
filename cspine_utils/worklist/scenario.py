"""What happens in a reading room: who comes, how long reading takes, what the AI does to the order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real

from cspine_utils.errors import WorklistError

DISCIPLINES = ("fifo", "nonpreemptive", "preemptive")
READING_LAWS = ("exponential", "lognormal", "fixed")
#: Larger numbers mean nothing here, and their squares overflow.
_MOST = 1e9
#: A formula takes a step for each, and nobody has so many.
_MOST_RADIOLOGISTS = 10_000


@dataclass(frozen=True)
class Scenario:
    """A list of exams, all cervical spine CTs unless `share` says otherwise, and those who read it. Times in minutes.

    Attributes
    ----------
    radiologists : c, all alike, all on one list
    load : share of their time that they read, lambda E[S] / c; lambda is the rate of arrivals (Poisson). Near 1 the
        room takes long to settle, see `simulate`
    reading_min : mean reading time of an exam without fracture
    fractured_factor : exams with fracture take so many times as long
    reading_law : "exponential", "lognormal" or "fixed"
    reading_cv : coefficient of variation of lognormal reading times
    share : of cervical spine CTs on the list; the AI sees no others
    prevalence : of fractures among cervical spine CTs
    sensitivity : share of the exams with fracture that the AI flags
    specificity : share of the cervical spine CTs without fracture that it does not flag
    operating_points : pairs (sensitivity, specificity), one of which is drawn for each replication instead: draws, say,
        of what few exams leave open about a model. A simulation then tells the mean over them
    latency_min : from arrival until the AI has answered; the exam can be read meanwhile
    discipline : what a flag does. "fifo": nothing; "nonpreemptive": the exam is read next; "preemptive": at once
    cap_min : an exam that has waited so long goes before the flagged ones, and is interrupted no more
    day_profile : 24 numbers, arrivals in each hour of the day relative to their mean
    horizon_min : arrivals stop after so many minutes; a load of 1 and more is possible then

    Raises WorklistError for a scenario that cannot be.
    """

    radiologists: int = 1
    load: float = 0.8
    reading_min: float = 10.0
    fractured_factor: float = 1.0
    reading_law: str = "exponential"
    reading_cv: float = 1.0
    share: float = 1.0
    prevalence: float = 0.05
    sensitivity: float = 0.9
    specificity: float = 0.9
    operating_points: tuple[tuple[float, float], ...] = ()
    latency_min: float = 0.0
    discipline: str = "nonpreemptive"
    cap_min: float | None = None
    day_profile: tuple[float, ...] = ()
    horizon_min: float | None = None

    def __post_init__(self):
        points = _sequence("operating_points", self.operating_points)
        points = tuple(tuple(_plain(v) for v in _sequence("operating_points", pair)) for pair in points)
        hours = tuple(_plain(v) for v in _sequence("day_profile", self.day_profile))
        object.__setattr__(self, "operating_points", points)
        object.__setattr__(self, "day_profile", hours)
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        check_radiologists(self.radiologists)
        for name in ("share", "prevalence", "sensitivity", "specificity"):
            _check(name, getattr(self, name), 0.0, 1.0, "a probability from 0 to 1")
        for pair in points:
            if len(pair) != 2:
                _refuse("operating_points", pair, "pairs (sensitivity, specificity)")
            for value in pair:
                _check("operating_points", value, 0.0, 1.0, "probabilities from 0 to 1")
        for name in ("load", "reading_min", "fractured_factor", "reading_cv"):
            _check(name, getattr(self, name), 0.0, _MOST, f"a number above 0, up to {_MOST:g}", above=True)
        _check("latency_min", self.latency_min, 0.0, math.inf, "minutes from 0 up; infinity never answers", ends=True)
        for name in ("cap_min", "horizon_min"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), 0.0, math.inf, "minutes above 0, or null", above=True)
        for name, known in (("discipline", DISCIPLINES), ("reading_law", READING_LAWS)):
            if getattr(self, name) not in known:
                _refuse(name, getattr(self, name), "one of " + ", ".join(known))
        self._check_profile()
        if self.load >= 1 and self.horizon_min is None:
            _refuse(
                "load", self.load, "below 1: with more work than time the list grows without end",
                "lower the load (more radiologists share the same exams at a lower load), or set horizon_min to look "
                "at a limited time.",
            )  # fmt: skip

    def _check_profile(self) -> None:
        if not self.day_profile:
            return
        good = all(isinstance(v, Real) and math.isfinite(v) and v >= 0 for v in self.day_profile)
        if len(self.day_profile) != 24 or not good or not sum(self.day_profile):
            _refuse("day_profile", list(self.day_profile), "24 numbers from 0 up, one an hour, not all 0")

    @property
    def flagged_share(self) -> float:
        """P+, of all exams on the list."""
        return self.share * (self.prevalence * self.sensitivity + (1 - self.prevalence) * (1 - self.specificity))

    @property
    def mean_reading_min(self) -> float:
        """E[S] of all exams on the list."""
        return self.reading_min * (1 + self.share * self.prevalence * (self.fractured_factor - 1))

    @property
    def arrivals_per_min(self) -> float:
        """lambda."""
        return self.load * self.radiologists / self.mean_reading_min

    def to_json(self) -> str:
        content = {name: (str(value) if value == math.inf else value) for name, value in asdict(self).items()}
        return json.dumps(content, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Scenario:
        """Raises WorklistError for what is no JSON object, and for fields that a scenario does not have."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise WorklistError(
                "scenario", found=f"no JSON ({error})", expected="a JSON object", remedy="see Scenario().to_json()."
            ) from error
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: Mapping) -> Scenario:
        """As `from_json`, of what was read."""
        known = [field.name for field in fields(cls)]
        if not isinstance(content, Mapping):
            _refuse("scenario", content, "an object with some of the fields " + ", ".join(known))
        strange = sorted(set(content) - set(known))
        if strange:
            _refuse("scenario", ", ".join(strange), "fields among " + ", ".join(known), "mind the spelling.")
        return cls(**{name: (math.inf if value == "inf" else value) for name, value in content.items()})


def or_null(value: float) -> float | None:
    """JSON has no NaN and no infinity: what there is not is null; counts stay whole."""
    if not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(value)


def check_radiologists(count) -> None:
    """Raise WorklistError unless it is a number of people that a reading room may have."""
    whole = isinstance(count, Integral) and not isinstance(count, bool)
    if not whole or not 1 <= count <= _MOST_RADIOLOGISTS:
        _refuse("radiologists", count, f"a whole number from 1 to {_MOST_RADIOLOGISTS:,}")


def _plain(value):
    """numpy's numbers as Python's own, which JSON knows."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _sequence(name: str, value) -> list:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        _refuse(name, value, "a list")
    return list(value)


def _check(name, value, low, high, expected, *, above=False, ends=False) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    if not number or not low <= value <= high or (above and value == low) or (math.isinf(value) and not ends):
        _refuse(name, value, expected)


def _refuse(name: str, found, expected: str, remedy: str = "pass such a value.") -> None:
    raise WorklistError(name, found=found if isinstance(found, str) else repr(found), expected=expected, remedy=remedy)
