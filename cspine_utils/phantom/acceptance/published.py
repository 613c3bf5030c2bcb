"""What the literature says: sizes of bones, as the phantom is measured against.

Where a series gives a standard deviation, the phantom's mean must lie within one of it and its spread within a factor
of `SPREAD_FACTOR`. Where none is published, the wanted range is the range of published means, widened by
`SLACK_WITHOUT_SD`, and the spread is not judged. "Textbook value" means that no series was found.
"""

from __future__ import annotations

from dataclasses import dataclass

SPREAD_FACTOR = 1.5
SLACK_WITHOUT_SD = 0.10


@dataclass(frozen=True)
class Published:
    """One published length in mm.

    Attributes
    ----------
    name : shown in tables
    measures : the names in `morphometry.measure_study` that are pooled for it
    means : the lowest and the highest published mean (one number twice if there is one series)
    sd : published standard deviation of single bones; None if none was found
    n : bones or people in the series; None if unknown
    source : where it is from
    max_age : only people up to this age are compared (the series' own)
    """

    name: str
    measures: tuple[str, ...]
    means: tuple[float, float]
    sd: float | None
    n: int | None
    source: str
    max_age: float = 200.0

    @property
    def mean(self) -> float:
        return sum(self.means) / 2

    @property
    def wanted(self) -> tuple[float, float]:
        """The range in which the phantom's mean must lie."""
        low, high = self.means
        return (
            (low - self.sd, high + self.sd)
            if self.sd
            else (
                low * (1 - SLACK_WITHOUT_SD),
                high * (1 + SLACK_WITHOUT_SD),
            )
        )


def _each(measure: str, levels: str = "C3 C4 C5 C6") -> tuple[str, ...]:
    return tuple(f"{measure} {level}" for level in levels.split())


def _one(measure: str, mean, sd, n, source, **more) -> Published:
    means = mean if isinstance(mean, tuple) else (mean, mean)
    return Published(measure, (measure,), means, sd, n, source, **more)


_BONES_404 = "Galloway collection, 404 vertebrae"
_BONES_164 = "north-west Indian C3-C6, 164 bones"
_BONES_100 = "Manipal 2020, 100 bones C3-C6"
_MEDWIN = "Medwin JHUA, C3-C6"
_PARIHAR = "Parihar, CT, central India"
_TEXTBOOK = "textbook value"

#: Depth is measured near both endplates, so the published upper and lower depths are averaged.
PUBLISHED: tuple[Published, ...] = (
    _one("width C3", 22.1, 1.5, 404, _BONES_404),
    _one("width C4", 22.7, 1.65, 404, _BONES_404),
    _one("width C5", 23.6, 1.5, 404, _BONES_404),
    _one("width C6", 24.7, 1.75, 404, _BONES_404),
    _one("width C7", 26.0, None, None, _TEXTBOOK),
    _one("depth C3", 15.2, 1.4, 164, _BONES_164 + " (upper 14.7 +- 1.4, lower 15.7)"),
    _one("depth C6", 16.0, None, 164, _BONES_164 + " (upper 15.7, lower 16.3)"),
    _one("depth C7", (16.0, 18.0), None, None, _TEXTBOOK),
    Published("depth C3-C6", _each("depth"), (15.2, 15.2), 2.0, 100, _BONES_100 + " (upper 14.8, lower 15.6)"),
    _one("front height C3", 12.0, None, 164, _BONES_164),
    _one("front height C5", 10.7, None, 164, _BONES_164),
    _one("front height C7", (13.0, 14.0), None, None, _TEXTBOOK),
    Published("front height C3-C6", _each("front height"), (10.9, 10.9), 1.4, 100, _BONES_100),
    Published("rear height C3-C6", _each("rear height"), (11.1, 11.1), 1.4, None, _MEDWIN),
    _one("canal depth C2", 14.4, 1.6, None, _PARIHAR),
    _one("canal depth C4", 12.8, 1.5, None, _PARIHAR),
    Published("canal depth C3-C6", _each("canal depth"), (12.3, 12.3), 1.7, 100, _BONES_100),
    _one("canal width C2", 21.6, 1.6, None, _PARIHAR),
    _one("canal width C4", 20.4, 1.7, None, _PARIHAR),
    Published("canal width C3-C6", _each("canal width"), (22.0, 22.0), 1.8, 100, _BONES_100),
    _one("dens height", (15.8, 17.8), None, None, "dens series (msjonline 11789; PMC3687901)"),
    _one("dens depth", (10.7, 11.5), None, None, "dens series (msjonline 11789; PMC3687901)"),
    _one("dens width", (8.5, 10.3), None, None, "dens series (PMC3687901; Acharya 2021)"),
    _one("C2 height", 38.1, None, None, "dens series (msjonline 11789)"),
    _one("C1 width", (71.0, 72.0), None, None, "Patel & Gupta; Rekha 2016"),
    _one("C1 canal depth", (28.0, 30.0), None, None, "Patel & Gupta; Rekha 2016"),
    Published(
        "disc, middle, C2/3-C6/7",
        ("disc C2/3", "disc C3/4", "disc C4/5", "disc C5/6", "disc C6/7"),
        (4.1, 4.1),
        1.2,
        1000,
        "PMC11225399, CT of adults of 18-35 years (here: up to 45)",
        max_age=45.0,
    ),
    Published("spinous C3-C6", _each("spinous"), (15.3, 15.3), 4.3, 100, _BONES_100),
    _one("spinous C7", 26.0, None, None, _TEXTBOOK),
    Published("foramen C3-C6", _each("foramen"), (5.5, 5.5), 0.9, None, "Hindawi ari/2015/391823"),
    _one("C1-C7 length", (105.0, 135.0), None, None, _TEXTBOOK),
)

#: Men are larger than women by this, mean over `SEX_MEASURES` (textbook value; the facts' proposal is 5-8 %).
SEX_RATIO = (1.03, 1.10)
SEX_MEASURES = (
    *_each("width", "C3 C4 C5 C6 C7"),
    *_each("depth", "C3 C4 C5 C6 C7"),
    *_each("front height", "C3 C4 C5 C6 C7"),
    "C1 width",
    "C2 height",
)
