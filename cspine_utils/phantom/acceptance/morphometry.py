"""Measuring bones on the voxels of a label map, as an osteologist measures them with callipers.

Nothing here looks at the numbers that a bone was drawn with: sizes are read from the label map, along rays in the
bone's own frame (`StudyPlan.landmarks`: local x left, y back, z head, origin at the body's centre; C1: on the axis of
the dens). Rays are placed so that they do not leave through pedicles or transverse roots, and every length is the
median of several. All lengths are in mm.

    python -m cspine_utils.phantom.acceptance.morphometry --studies 24 --size 160

prints what is measured on intact necks beside what is published (`published.PUBLISHED`).
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm import tqdm

from cspine_utils.anatomy import LABEL_IDS

from ..patient import SUBAXIAL
from ..rendering import render
from ..study import draw_plan
from .published import PUBLISHED, SEX_MEASURES, SEX_RATIO, SPREAD_FACTOR, Published
from .report import Row
from .ruler import STEP_MM, Mask, crossing, extent, median, rays

#: With fewer people than this a spread says little.
FEW_PEOPLE = 20


def measure_body(mask: Mask) -> dict[str, float]:
    """Width, depth, heights of a body C3-C7.

    Depth lies in the midline near both endplates (0.3 of the height above and below the middle), where bones are
    measured. Width is taken across the upper third, in front of the pedicles and above the transverse roots: lower
    down a ray to the side leaves through a root. Heights are taken a third of the depth before and behind the centre.
    """
    x = np.linspace(-3.0, 3.0, 5)
    height = extent(mask, rays(x, (-1.0, 0.0, 1.0), 0.0), 2, 14.0)
    if not np.isfinite(height):
        return dict.fromkeys(("width", "depth", "front height", "rear height"), float("nan"))
    depth = extent(mask, rays(x, 0.0, height * np.array([-0.32, -0.26, 0.26, 0.32])), 1, 18.0)
    middle = 0.5 * median(
        mask.leaves(rays(x, 0.0, 0.0), (0, 1, 0), 18.0) - mask.leaves(rays(x, 0.0, 0.0), (0, -1, 0), 18.0)
    )
    wide = rays(0.0, middle + depth * np.linspace(-0.2, 0.1, 4), height * np.array([0.30, 0.35, 0.40]))
    heights = [extent(mask, rays(x, middle + s * depth / 3, 0.0), 2, 16.0) for s in (-1, 1)]
    return {
        "width": extent(mask, wide, 0, 24.0),
        "depth": depth,
        "front height": heights[0],
        "rear height": heights[1],
    }


def measure_canal(mask: Mask) -> dict[str, float]:
    """Canal of C2-C7 at the height of the pedicles and laminae: depth in the midline, greatest width; and the local
    point in the midline where its rear wall lies (the spinolaminar line)."""
    starts = rays((-1.0, 0.0, 1.0), 0.0, np.linspace(-3.0, 1.0, 5))
    front = mask.leaves(starts, (0, 1, 0), 18.0)
    wall = starts + np.outer(np.nan_to_num(front, nan=50.0) + 0.6, (0, 1, 0))
    depth = mask.meets(wall, (0, 1, 0), 32.0) + 0.6
    deep, y = median(depth), median(front)
    result = {"canal depth": deep, "canal width": float("nan"), "rear wall": y + deep}
    if np.isfinite(deep):
        widths = []
        for share in (0.2, 0.3, 0.4, 0.5, 0.6):
            side = rays(0.0, y + share * deep, np.linspace(-1.5, 2.0, 4))
            widths.append(median(mask.meets(side, (1, 0, 0), 26.0) + mask.meets(side, (-1, 0, 0), 26.0)))
        result["canal width"] = float(np.nanmax(widths)) if np.isfinite(widths).any() else float("nan")
    return result


def measure_spinous(mask: Mask, rear_wall: float) -> float:
    """From the spinolaminar line, at the middle of its height, to the farthest point of the spinous process.

    `rear_wall` is the local y of the canal's rear wall, see `measure_canal`.
    """
    if not np.isfinite(rear_wall):
        return float("nan")
    z = np.linspace(-16.0, 6.0, 45)
    wall = mask.meets(rays(0.0, rear_wall - 4.0, z), (0, 1, 0), 7.0)
    points = mask.surface()
    points = points[(np.abs(points[:, 0]) < 9.0) & (points[:, 1] > rear_wall)]
    if not len(points) or not np.isfinite(wall).any():
        return float("nan")
    start = np.array([0.0, rear_wall - 4.0 + np.nanmedian(wall), np.median(z[np.isfinite(wall)])])
    inward = start - points[np.linalg.norm(points - start, axis=1).argmax()]
    far = float(np.linalg.norm(inward))
    outside = mask.meets(start - inward * (1 + 3.0 / far), inward, 6.0)  # from 3 mm beyond the tip inwards
    return far + 3.0 - median(outside)


def measure_transverse_foramina(mask: Mask, width: float, cell_mm: float = 0.4) -> list[float]:
    """Diameters (of the circle with the same area) of the holes for the vertebral artery, as one looks through them
    along the bone's axis: roots and bar of the process lie at different heights. A side without a hole is left out."""
    x, y, z = np.arange(0.0, 32.0, cell_mm), np.arange(-14.0, 18.0, cell_mm), np.linspace(-5.0, 3.0, 11)
    found = []
    for side in (-1, 1):
        bone = mask.at(rays(side * x, y, z)).reshape(len(x), len(y), len(z)).max(axis=2) >= 0.5
        holes, count = ndimage.label(~bone)
        border = set(np.unique(np.r_[holes[0], holes[-1], holes[:, 0], holes[:, -1]]))
        areas = [0.0]
        for hole in set(range(1, count + 1)) - border:
            place = np.argwhere(holes == hole)
            if place[:, 0].mean() * cell_mm > 0.4 * width:
                areas.append(len(place) * cell_mm**2)
        if max(areas) > 3.0:
            found.append(float(np.sqrt(4 * max(areas) / np.pi)))
    return found


def measure_axis(mask: Mask) -> dict[str, float]:
    """C2: height of dens and whole bone, depth and width of the dens.

    The dens begins where the shoulders end, that is where a section is no wider than 15 mm; its depth and width are
    the greatest between a quarter and three quarters of its height.
    """
    nothing = dict.fromkeys(("dens height", "dens depth", "dens width", "C2 height"), float("nan"))
    above = rays(np.linspace(-2, 2, 5), np.linspace(-4, 4, 9), 12.0)
    tip = mask.leaves(above, (0, 0, 1), 40.0)
    below = mask.leaves(rays(np.linspace(-3, 3, 5), np.linspace(-10, 3, 11), 0.0), (0, 0, -1), 25.0)
    if not np.isfinite(tip).any() or not np.isfinite(below).any():
        return nothing
    top, bottom = 12.0 + float(np.nanmax(tip)), -float(np.nanmax(below))
    axis_y = float(np.mean(above[np.isfinite(tip), 1]))
    z = np.arange(4.0, top - 1.0, 0.25)
    middle = rays(0.0, axis_y, z)
    wide = mask.leaves(middle, (1, 0, 0), 24.0) + mask.leaves(middle, (-1, 0, 0), 24.0)
    deep = mask.leaves(middle, (0, 1, 0), 16.0) + mask.leaves(middle, (0, -1, 0), 16.0)
    shoulders = z[~(wide <= 15.0)]
    base = float(shoulders.max()) if len(shoulders) else z[0]
    part = (z > base + 0.25 * (top - base)) & (z < base + 0.75 * (top - base))
    if not np.isfinite(wide[part]).any() or not np.isfinite(deep[part]).any():
        return nothing
    return {
        "dens height": top - base,
        "dens depth": float(np.nanquantile(deep[part], 0.9)),
        "dens width": float(np.nanquantile(wide[part], 0.9)),
        "C2 height": top - bottom,
        "top": top,
    }


def measure_atlas(mask: Mask) -> dict[str, float]:
    """C1: width across the transverse processes, depth of the ring's opening in the midline."""
    width = 0.0
    for side in (-1, 1):
        across = mask.meets(rays(side * 52.0, np.arange(-8, 16, 0.75), np.arange(-9, 7, 0.75)), (-side, 0, 0), 52.0)
        width += 52.0 - (np.nanmin(across) if np.isfinite(across).any() else np.nan)
    starts = rays((-1.0, 0.0, 1.0), 0.0, np.linspace(-4.0, 5.0, 10))
    walls = [mask.meets(starts, (0, way, 0), 34.0).reshape(3, -1) for way in (-1, 1)]
    nearest = [float(np.median(np.nanmin(w, axis=1))) if np.isfinite(w).any(axis=1).all() else np.nan for w in walls]
    return {"C1 width": float(width), "C1 canal depth": sum(nearest)}


def measure_disc(upper: Mask, lower: Mask) -> float:
    """Height of the disc in the middle: along the line between two body centres, from bone to bone."""
    way = lower.centre - upper.centre
    reach = float(np.linalg.norm(way))
    t = np.arange(0.0, reach, STEP_MM)
    starts = upper.patient(rays(np.linspace(-3, 3, 5), np.linspace(-2, 2, 3), 0.0))
    line = starts[:, None] + t[:, None] * (way / reach)
    return median(crossing(lower.sample(line), t, falling=False) - crossing(upper.sample(line), t, falling=True))


def measure_study(labels: np.ndarray, affine: np.ndarray, landmarks: dict) -> dict[str, float]:
    """All lengths of one study in mm, by name, e.g. "width C5", "disc C5/6"; NaN for what cannot be measured.

    Parameters
    ----------
    labels : uint8 `(d, h, w)`, ids of `anatomy.LABEL_IDS`
    affine : 4x4, voxel (d, h, w) -> RAS+ mm
    landmarks : `StudyPlan.landmarks()`: by bone, "centre" (LPS mm) and "axes" (columns = local axes)
    """
    names = ("C1", "C2", *SUBAXIAL)
    masks = {n: Mask(labels, affine, LABEL_IDS[n], landmarks[n]["centre"], landmarks[n]["axes"]) for n in names}
    found = measure_atlas(masks["C1"])
    axis = measure_axis(masks["C2"])
    dens_top = axis.pop("top", float("nan"))
    found |= axis
    for name in names[1:]:
        canal = measure_canal(masks[name])
        found |= {f"canal depth {name}": canal["canal depth"], f"canal width {name}": canal["canal width"]}
        if name == "C2":
            continue
        body = measure_body(masks[name])
        found |= {f"{key} {name}": value for key, value in body.items()}
        found[f"spinous {name}"] = measure_spinous(masks[name], canal["rear wall"])
        holes = measure_transverse_foramina(masks[name], body["width"])
        found[f"foramen {name}"] = float(np.mean(holes)) if holes else float("nan")
    for upper, lower in zip(names[1:], names[2:], strict=False):
        found[f"disc {upper}/{lower[1]}"] = measure_disc(masks[upper], masks[lower])
    foot = masks["C7"].patient((0.0, 0.0, -0.5 * found["front height C7"]))
    found["C1-C7 length"] = float(np.linalg.norm(masks["C2"].patient((0.0, 0.0, dens_top)) - foot))
    return found


def measure_cohort(studies: int, seed: int, *, size: int = 160, progress: bool = True) -> pd.DataFrame:
    """Measure intact studies: one row a person, columns sex, age_years and every length in mm."""
    table = []
    for index in tqdm(range(studies), desc="morphometry", unit="study", disable=not progress):
        plan = draw_plan(seed, index, size=size, levels=())
        study = render(plan, noise=False)
        lengths = measure_study(study.labels, study.affine, plan.landmarks())
        table.append({"sex": plan.patient.sex, "age_years": plan.patient.age_years} | lengths)
    return pd.DataFrame(table)


def values_of(table: pd.DataFrame, published: Published) -> np.ndarray:
    """The measured values that a published length is compared with."""
    chosen = table.loc[table.age_years <= published.max_age, list(published.measures)]
    values = chosen.to_numpy(dtype=float).ravel()
    return values[np.isfinite(values)]


def sex_ratio(table: pd.DataFrame) -> float:
    """Mean over `SEX_MEASURES` of (mean of men) / (mean of women)."""
    means = table.groupby("sex")[list(SEX_MEASURES)].mean()
    return float((means.loc["M"] / means.loc["F"]).mean()) if {"F", "M"} <= set(means.index) else float("nan")


def morphometry_rows(table: pd.DataFrame) -> list[Row]:
    """Means and spreads of measured people (`measure_cohort`) beside the published ones.

    With fewer than `FEW_PEOPLE` spreads are only shown, and a mean may miss its range by two standard errors.
    """
    rows, few = [], len(table) < FEW_PEOPLE
    for known in PUBLISHED:
        values = values_of(table, known)
        n = len(values)
        mean, spread = (float(values.mean()), float(values.std(ddof=1))) if n > 1 else (float("nan"),) * 2
        low, high = known.wanted
        slack = 2 * spread / np.sqrt(len(table)) if few and n > 1 else 0.0
        note = ("" if known.sd else "(no SD published)") + (" (+- 2 SE: few people)" if few else "")
        shown = few and (table.age_years <= known.max_age).sum() < 2  # nobody young enough for a series of the young
        row = Row("morphometry", f"{known.name}, mean, mm", mean, low - slack, high + slack, n, note, judged=not shown)
        rows.append(row)
        if known.sd:
            ends = known.sd / SPREAD_FACTOR, known.sd * SPREAD_FACTOR
            rows.append(Row("morphometry", f"{known.name}, SD, mm", spread, *ends, n, judged=not few))
    rows.append(
        Row(
            "morphometry",
            "men / women, mean ratio of lengths",
            sex_ratio(table),
            *SEX_RATIO,
            len(table),
            judged=not few,
        )
    )
    lengths = [name for known in PUBLISHED for name in known.measures if not name.startswith("foramen")]
    missing = float(table[sorted(set(lengths))].isna().to_numpy().mean())
    rows.append(Row("morphometry", "share of lengths that could not be measured", missing, 0.0, 0.02, len(table)))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cspine_utils.phantom.acceptance.morphometry",
        description="Measure the bones of intact synthetic necks.",
    )
    parser.add_argument("--studies", type=int, default=24)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args(arguments)
    table = measure_cohort(args.studies, args.seed, size=args.size)
    print(f"{'':26}{'measured':>16}{'published':>16}   ratio  SD ratio  n     source")
    for known in PUBLISHED:
        values = values_of(table, known)
        mean, sd = (values.mean(), values.std(ddof=1)) if len(values) > 1 else (float("nan"),) * 2
        there = f"{known.mean:.1f}" + (f" +- {known.sd:.1f}" if known.sd else "")
        ratio = f"{sd / known.sd:8.2f}" if known.sd else " " * 8
        mark = " " if known.wanted[0] <= mean <= known.wanted[1] else "!"
        print(
            f"{known.name:26}{mean:8.1f} +- {sd:4.1f}{there:>16}  {mark}{mean / known.mean:5.2f}  {ratio}"
            f"  {len(values):<4}  {known.source}"
        )
    print(f"men / women {sex_ratio(table):.3f}; wanted {SEX_RATIO[0]} .. {SEX_RATIO[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
