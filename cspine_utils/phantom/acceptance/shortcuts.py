"""Can the answer be had without looking at a fracture?

Every number that a study carries besides its pictures (person, scan, storage, look-alikes, surroundings, digits of its
uid) and simple numbers of its pictures (histogram, noise) are held against the label, one by one and all together.
`plan_features` walks through the plan by itself, so that whatever is added to a plan is tested, too.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import ndimage

from cspine_utils.anatomy import LEVELS

from ..export import Storage
from ..study import StudyPlan
from ..truth import Rendered
from .report import Row
from .separation import FREE, MODELS, auroc_row, cross_validated, null_error, rate_z, z_limit

#: Fields of a plan that are the answer itself, or say nothing because all studies of a cohort share them.
ANSWERS = ("fractures", "levels", "seed", "index", "uid", "difficulty", "size", "device", "study_shape", "start")


def flatten(thing, name: str = "") -> dict[str, float | str | None]:
    """Numbers, booleans, texts and Nones inside dataclasses, mappings, sequences and arrays, by dotted name."""
    if thing is None or isinstance(thing, (str, bool, np.bool_, numbers.Real)):
        value = float(thing) if isinstance(thing, (bool, np.bool_, numbers.Real)) else thing
        return {name: value}
    if dataclasses.is_dataclass(thing):
        parts = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
    elif isinstance(thing, dict):
        parts = thing
    elif isinstance(thing, (Sequence, np.ndarray)):
        values = list(thing)
        if values and all(isinstance(v, str) for v in values):
            return {f"{name}.{value}": 1.0 for value in values} | {f"{name}.count": float(len(values))}
        parts = dict(enumerate(values)) | {"count": float(len(values))}
    else:
        return {}
    found = {}
    for key, value in parts.items():
        if key not in ANSWERS:
            found |= flatten(value, f"{name}.{key}".lstrip("."))
    return found


def plan_features(plans: Sequence[StudyPlan], storages: Sequence[Storage] | None = None) -> pd.DataFrame:
    """One row a study, one numeric column a feature; texts become one column a value, what is missing is 0.

    Columns that are the same in all studies are left out.
    """
    rows = []
    for i, plan in enumerate(plans):
        row = flatten(plan)
        row |= {f"storage.{k}": v for k, v in flatten(storages[i] if storages else None).items() if k}
        row["field of view, mm"] = plan.grid.pixel_mm * plan.grid.shape[2]
        row["covered height, mm"] = plan.grid.step_mm * plan.grid.shape[0]
        row["thickness / step"] = plan.grid.thickness_mm / plan.grid.step_mm
        row["mimics, all"] = float(sum(map(len, getattr(plan, "mimics", {}).values())))
        digits = [int(c) for c in plan.uid if c.isdigit()]
        row |= {"uid, last digit": digits[-1], "uid, last digit is odd": digits[-1] % 2}
        row |= {"uid, length": len(plan.uid), "uid, sum of digits": sum(digits)}
        rows.append(row)
    table = pd.DataFrame(rows)
    texts = [c for c in table if not pd.api.types.is_numeric_dtype(table[c])]
    columns = [table.drop(columns=texts).fillna(0.0).astype(float)]
    for name in texts:
        columns.append(pd.get_dummies(table[name].astype(str), prefix=name, prefix_sep=" = ").astype(float))
    table = pd.concat(columns, axis=1)
    return table.loc[:, table.nunique() > 1]


def feature_rows(check: str, table: pd.DataFrame, truth: np.ndarray, *, exact: bool, show: int = 6) -> list[Row]:
    """The features farthest from .5 by AUROC, worst first, and any that fails; the number of all of them in the first
    row; and the largest difference of the rate of a yes-or-no feature (AUROC cannot see rare ones)."""
    rows = [auroc_row(check, f"{name}: AUROC", table[name].to_numpy(), truth, exact=exact) for name in table]
    rows.sort(key=lambda row: -abs(row.value - 0.5))
    failed = [row for row in rows[show:] if not row.passed]
    error = null_error(truth)
    kept = [Row(check, "features held against the answer", float(len(rows)), 1, None, len(truth))]
    kept.append(
        Row(
            check, "chance alone: .5 +- 1.96 SE, upper end", 0.5 + 1.96 * error, None, FREE[1], len(truth), judged=exact
        )
    )
    flags = [name for name in table if table[name].nunique() == 2]
    if flags:
        kept.append(flag_row(check, {name: table[name].to_numpy() > table[name].min() for name in flags}, truth))
    return kept + rows[:show] + failed


def flag_row(check: str, flags: dict[str, np.ndarray], truth: np.ndarray, chance: float = 0.001) -> Row:
    """The yes-or-no feature whose rate differs most between broken and intact, in standard errors."""
    z = {name: abs(rate_z(flag, truth)) for name, flag in flags.items()}
    worst = max(z, key=z.get)
    limit = z_limit(len(z), chance)
    return Row(check, f"largest |z| of {len(z)} flags ({worst})", z[worst], 0.0, limit, len(truth))


def model_rows(
    check: str, table: pd.DataFrame, truth: np.ndarray, rng: np.random.Generator, *, exact: bool
) -> list[Row]:
    """Cross-validated models of all features together: AUROC on studies that they were not fitted on.

    Below .42 is no shortcut: a model that learned chance patterns is as often wrong as right on others.
    """
    x, y = table.to_numpy(dtype=float), np.asarray(truth, dtype=bool)
    rows = []
    for name, model in MODELS.items():
        row = auroc_row(check, f"{name}, cross-validated: AUROC", cross_validated(model, x, y, rng), y, exact=exact)
        rows.append(dataclasses.replace(row, low=None, verdict=row.verdict or row.value < 0.5 or None))
    return rows


def metadata_rows(plans, storages, rng: np.random.Generator) -> list[Row]:
    """No number beside the pictures may tell whether a study is fractured."""
    table = plan_features(plans, storages)
    truth = np.array([bool(plan.levels) for plan in plans])
    exact = null_error(truth) * 3.5 < FREE[1] - 0.5  # so many studies that chance alone does not pass the range
    return feature_rows("metadata", table, truth, exact=exact) + model_rows("metadata", table, truth, rng, exact=exact)


def mimic_rows(plans) -> list[Row]:
    """Look-alikes must be as frequent in broken vertebrae as in intact ones of the same level."""
    levels = [(plan, level) for plan in plans for level in LEVELS]
    truth = np.array([level in plan.levels for plan, level in levels])
    drawn = [getattr(plan, "mimics", {}).get(level, ()) for plan, level in levels]
    names = sorted({name for names in drawn for name in names})
    if not names:
        return [Row("mimics", "kinds of look-alikes drawn", 0.0, 1, None, len(truth))]
    flags = {}
    for level in LEVELS:  # within a level: levels differ in both rates
        here = np.array([other == level for _, other in levels])
        for name in names:
            flag = np.array([name in own for own, h in zip(drawn, here, strict=True) if h])
            if flag.any():
                flags[f"{name} at {level}"] = (flag, truth[here])
    z = {name: abs(rate_z(*pair)) for name, pair in flags.items()}
    pooled = {n: abs(_stratified_z([flags[f"{n} at {k}"] for k in LEVELS if f"{n} at {k}" in flags])) for n in names}
    worst, worst_pooled = max(z, key=z.get), max(pooled, key=pooled.get)
    count = np.array([len(own) for own in drawn], dtype=float)
    return [
        Row("mimics", "kinds of look-alikes drawn", float(len(names)), 1, None, len(truth)),
        Row(
            "mimics",
            "look-alikes per vertebra, broken",
            float(count[truth].mean()),
            None,
            None,
            int(truth.sum()),
            judged=False,
        ),
        Row(
            "mimics",
            "look-alikes per vertebra, intact",
            float(count[~truth].mean()),
            None,
            None,
            int((~truth).sum()),
            judged=False,
        ),
        Row("mimics", f"largest |z| of a rate within a level ({worst})", z[worst], 0.0, z_limit(len(z)), len(truth)),
        Row(
            "mimics",
            f"largest |z| of a rate, all levels ({worst_pooled})",
            pooled[worst_pooled],
            0.0,
            z_limit(len(pooled)),
            len(truth),
        ),
    ]


def _stratified_z(pairs) -> float:
    """Difference of a flag's rate between true and false, levels kept apart (Mantel-Haenszel), in standard errors."""
    above = variance = 0.0
    for flag, truth in pairs:
        n, a, m = len(flag), truth.sum(), flag.sum()
        if n > 1:
            above += float((flag & truth).sum() - a * m / n)
            variance += a * (n - a) * m * (n - m) / (n**2 * (n - 1))
    return float(above / np.sqrt(variance)) if variance > 0 else 0.0


# ------------------------------------------------------------------------------------------------------------ images


def image_features(study: Rendered) -> dict[str, float]:
    """Simple numbers of a whole study: HU histogram, share of air, fat, soft tissue, bone, noise in air and muscle."""
    hu = study.hu.astype(np.float32)
    q = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
    found = {f"HU percentile {p:g}": float(v) for p, v in zip(q, np.percentile(hu, q), strict=True)}
    found |= {"HU mean": float(hu.mean()), "HU SD": float(hu.std())}
    for name, low, high in (("air", -1100, -500), ("fat", -150, -50), ("soft", 0, 120), ("bone", 250, 4000)):
        found[f"share of {name}"] = float(((hu > low) & (hu < high)).mean())
    own = study.labels > 0
    found["HU mean in labels"] = float(hu[own].mean()) if own.any() else 0.0
    # Noise: what is left after the mean of the four neighbours in the slice is taken away, a robust spread.
    fine = hu[:, 1:-1, 1:-1] - (hu[:, :-2, 1:-1] + hu[:, 2:, 1:-1] + hu[:, 1:-1, :-2] + hu[:, 1:-1, 2:]) / 4
    smooth = ndimage.uniform_filter(hu, 5)[:, 1:-1, 1:-1]
    for name, low, high in (("air", -1030, -960), ("muscle", 30, 80)):
        part = fine[(smooth > low) & (smooth < high)]
        found[f"noise in {name}"] = float(1.4826 * np.median(np.abs(part - np.median(part)))) if part.size else 0.0
    return found


def image_rows(studies: Iterable[tuple[dict[str, float], bool]], rng: np.random.Generator) -> list[Row]:
    """No simple number of a study's pictures may tell whether it is fractured; `(image_features, fractured)` each."""
    found = list(studies)
    table, truth = pd.DataFrame([f for f, _ in found]), np.array([t for _, t in found], dtype=bool)
    table = table.loc[:, table.nunique() > 1]
    rows = feature_rows("image", table, truth, exact=False)
    return rows + model_rows("image", table, truth, rng, exact=False)
