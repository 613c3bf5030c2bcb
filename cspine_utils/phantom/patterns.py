"""Which levels break together: label patterns drawn like those of the RSNA-2022 training table.

The 2,019 studies of the public table give three kinds of aggregates: how often each level is broken, how often one
level is broken given another, and how many levels are broken per study. Among all distributions over the
2^7 = 128 patterns that agree with these aggregates, `level_patterns` finds the one that assumes nothing else
(maximum entropy), by iterative proportional fitting. No row of the table is stored here.
"""

from __future__ import annotations

import functools

import numpy as np

from cspine_utils.anatomy import LEVELS

#: Studies in the table, and studies with each level broken (C1 .. C7), counted in the public RSNA-2022 label table.
STUDIES = 2019
LEVEL_COUNTS = (146, 285, 73, 108, 162, 277, 393)

#: Studies with 0, 1, ... 6 broken levels, same table (none has seven).
NUMBER_COUNTS = (1058, 623, 239, 64, 26, 7, 2, 0)

#: P(column broken | row broken), same table, two decimals.
CONDITIONALS = np.array(
    [
        [1.00, 0.38, 0.05, 0.04, 0.11, 0.10, 0.14],
        [0.20, 1.00, 0.08, 0.05, 0.05, 0.09, 0.12],
        [0.11, 0.33, 1.00, 0.40, 0.30, 0.25, 0.19],
        [0.06, 0.14, 0.27, 1.00, 0.47, 0.29, 0.21],
        [0.10, 0.09, 0.14, 0.31, 1.00, 0.56, 0.27],
        [0.05, 0.09, 0.06, 0.11, 0.32, 1.00, 0.47],
        [0.05, 0.09, 0.04, 0.06, 0.11, 0.33, 1.00],
    ]
)

#: Every pattern as a row of seven booleans (C1 .. C7).
PATTERNS = np.array(list(np.ndindex(*(2,) * 7)), dtype=bool)


@functools.cache
def level_patterns() -> np.ndarray:
    """Probability of each of the 128 `PATTERNS`, float64 `(128,)`, sums to 1.

    Each sweep rescales the distribution to the pair tables, then to the single rates, then to the count of broken
    levels. The printed conditionals are rounded, so the three cannot all hold exactly: ending with the coarse tables
    makes those exact and leaves an error of about 0.001 in a pair.
    """
    single = np.array(LEVEL_COUNTS) / STUDIES
    number = np.array(NUMBER_COUNTS) / STUDIES
    joint = CONDITIONALS * single[:, None]
    joint = (joint + joint.T) / 2
    pairs = [(a, b) for a in range(7) for b in range(a)]
    count = PATTERNS.sum(axis=1)
    p = np.full(len(PATTERNS), 1.0 / len(PATTERNS))
    p[count == 7] = 0.0
    for _ in range(400):
        for a, b in pairs:
            both = joint[a, b]
            cells = {
                (1, 1): both,
                (1, 0): single[a] - both,
                (0, 1): single[b] - both,
                (0, 0): 1.0 - single[a] - single[b] + both,
            }
            _fit(p, 2 * PATTERNS[:, a] + PATTERNS[:, b], [cells[v] for v in ((0, 0), (0, 1), (1, 0), (1, 1))])
        for a in range(7):
            _fit(p, PATTERNS[:, a].astype(int), [1.0 - single[a], single[a]])
        _fit(p, count, number)
    p.flags.writeable = False
    return p


def _fit(p: np.ndarray, group: np.ndarray, wanted) -> None:
    """Scale `p` in place so that the groups sum to `wanted`."""
    now = np.bincount(group, weights=p, minlength=len(wanted))
    factor = np.divide(wanted, now, out=np.zeros(len(wanted)), where=now > 0)
    p *= factor[group]


def draw_levels(rng: np.random.Generator, prevalence: str) -> tuple[str, ...]:
    """The broken levels of one study: "rsna" like the training table, "balanced" every level with probability 1/2."""
    if prevalence == "balanced":
        broken = rng.random(7) < 0.5
    else:
        broken = PATTERNS[rng.choice(len(PATTERNS), p=level_patterns())]
    return tuple(level for level, is_broken in zip(LEVELS, broken, strict=True) if is_broken)
