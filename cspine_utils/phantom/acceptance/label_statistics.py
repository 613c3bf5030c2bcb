"""Do drawn labels follow the published table: rates, numbers of broken levels, which levels break together?"""

from __future__ import annotations

import numpy as np
from scipy import stats

from cspine_utils.anatomy import LEVELS

from ..patterns import CONDITIONALS, LEVEL_COUNTS, NUMBER_COUNTS, STUDIES, draw_levels
from ..study import Stage, stream
from .report import Row

#: The printed conditionals are rounded to 0.01, and 42 of them are compared at once: so much is allowed for (rates).
ROUNDING = 0.0025


def drawn_labels(studies: int, seed: int) -> np.ndarray:
    """Broken levels of so many drawn studies, bool `(studies, 7)`."""
    drawn = [set(draw_levels(stream(seed, i, Stage.LEVELS), "rsna")) for i in range(studies)]
    return np.array([[level in levels for level in LEVELS] for levels in drawn])


def _expected(rate: float, n: int, slack: float = 0.0) -> tuple[float, float]:
    """99 % range of a share out of n draws with this rate (+- slack), as shares."""
    low = stats.binom.interval(0.99, n, max(rate - slack, 1e-6))[0]
    high = stats.binom.interval(0.99, n, min(rate + slack, 1.0))[1]
    return low / n, high / n


def label_statistics_rows(broken: np.ndarray) -> list[Row]:
    """Drawn labels `(n, 7)` beside the counts of the public RSNA-2022 table, each within its 99 % range."""
    n = len(broken)
    rows = []
    for i, level in enumerate(LEVELS):
        expected = _expected(LEVEL_COUNTS[i] / STUDIES, n)
        rows.append(Row("label rates", f"{level} broken, share of studies", float(broken[:, i].mean()), *expected, n))
    count = broken.sum(axis=1)
    for number in range(7):
        expected = _expected(NUMBER_COUNTS[number] / STUDIES, n)
        rows.append(Row("label rates", f"{number} levels broken, share", float((count == number).mean()), *expected, n))
    outside, worst, gap = 0, "", 0.0
    for a in range(7):
        for b in range(7):
            if a == b:
                continue
            both = float((broken[:, a] & broken[:, b]).mean())
            rate = LEVEL_COUNTS[a] / STUDIES * CONDITIONALS[a, b]
            low, high = _expected(rate, n, ROUNDING)
            outside += not low <= both <= high
            if abs(both - rate) > gap:
                worst, gap = f"{LEVELS[a]} and {LEVELS[b]}", abs(both - rate)
    rows.append(
        Row("label rates", f"pairs of levels out of their 99 % range (farthest: {worst})", float(outside), 0.0, 0.0, 42)
    )
    coupling = [_lift(broken, a, a + 1) for a in range(6)]
    rows.append(
        Row("label rates", "neighbours broken together / if independent, smallest", min(coupling), 1.3, None, n)
    )
    if broken[:, 5].any():
        share, six = float(broken[broken[:, 5], 6].mean()), int(broken[:, 5].sum())
        rows.append(Row("label rates", "P(C7 | C6)", share, *_expected(0.47, six, 0.005), six))
    several, any_broken = int((count > 1).sum()), int((count > 0).sum())
    expected = _expected(338 / 961, any_broken)
    rows.append(
        Row("label rates", "several levels, share of broken studies", several / any_broken, *expected, any_broken)
    )
    return rows


def _lift(broken: np.ndarray, a: int, b: int) -> float:
    apart = broken[:, a].mean() * broken[:, b].mean()
    return float((broken[:, a] & broken[:, b]).mean() / apart) if apart else float("nan")
