"""Rows of the acceptance table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

COLUMNS = ("check", "what was measured", "value", "wanted", "n", "pass")


@dataclass(frozen=True)
class Row:
    """One measured number beside what it should be.

    Attributes
    ----------
    check, what : the check it belongs to, and what was measured, with unit
    value : the number; NaN never passes
    low, high : the wanted range, ends included; None = open
    n : how many things were measured
    note : printed behind the range, e.g. an interval
    judged : False for a number that is shown but not judged
    verdict : passes or not, where the range alone does not decide (see `separation.auroc_row`); None = by the range
    """

    check: str
    what: str
    value: float
    low: float | None
    high: float | None
    n: int
    note: str = ""
    judged: bool = True
    verdict: bool | None = None

    @property
    def passed(self) -> bool:
        if not self.judged:
            return True
        if self.verdict is not None:
            return self.verdict
        inside = (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)
        return bool(np.isfinite(self.value) and inside)

    @property
    def wanted(self) -> str:
        low, high = (None if end is None else f"{end:.4g}" for end in (self.low, self.high))
        if low is None and high is None:
            text = "(shown only)"
        elif low == high:
            text = low
        else:
            text = f">= {low}" if high is None else f"<= {high}" if low is None else f"{low} .. {high}"
        return text + (f"  {self.note}" if self.note else "")


def table(rows: list[Row]) -> pd.DataFrame:
    """The rows as a table with `COLUMNS`; "pass" is yes, NO, or - for numbers that are only shown."""
    return pd.DataFrame(
        [[r.check, r.what, r.value, r.wanted, r.n, ("yes" if r.passed else "NO") if r.judged else "-"] for r in rows],
        columns=list(COLUMNS),
    )


def as_text(rows: list[Row]) -> str:
    """The table for a terminal, one line a row."""
    frame = table(rows)
    frame["value"] = [f"{v:.4g}" for v in frame["value"]]
    cells = [list(COLUMNS), *frame.astype(str).to_numpy().tolist()]
    width = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, width, strict=True)).rstrip() for row in cells)
