"""Hounsfield units of each tissue, and the noise, measured on the finished pictures at anatomical places.

Places come from the landmarks (see `morphometry`) and from what is measured around them: the walls of the canal, the
skin at the nape. HU are read without noise; the ranges are those of the literature (Hounsfield-scale tables; trabecular
bone of the neck: QCT series, pubmed 35485915, 11176311; noise: AJNR 39:385). Where no source was found the range is a
textbook value and marked [T].
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage, stats

from cspine_utils.anatomy import LABEL_IDS

from ..patient import SUBAXIAL
from ..truth import Rendered
from .morphometry import FEW_PEOPLE, measure_canal
from .report import Row
from .ruler import Mask, crossing, rays

#: Wanted mean HU by tissue: (low, high, source).
TISSUES: dict[str, tuple[float | None, float | None, str]] = {
    "airway": (None, -950.0, "air -1000"),
    "fat under the skin of the nape": (-120.0, -80.0, "fat -120..-90"),
    "muscle of the nape": (40.0, 65.0, "muscle 45-60"),
    "cord": (25.0, 45.0, "30-40 [T]"),
    "CSF": (0.0, 25.0, "+15; 5-15 [T]"),
    "disc": (60.0, 115.0, "70-110 [T]"),
    "trabecular bone, bodies C3-C7": (120.0, 450.0, "150-450"),
    "bone, 99th percentile": (900.0, 1900.0, "cortex 500-1900"),
}
TRABECULAR = "trabecular bone, bodies C3-C7"

#: Wanted noise above the shoulders (HU SD): 30-52 in a cadaver's neck (AJNR 39:385), 8-15 for soft kernels [T]; and
#: its rise at the shoulders, 1.5-3.
NOISE_HU, SHOULDER_RISE = (8.0, 60.0), (1.5, 3.0)


def sample(volume: np.ndarray, affine: np.ndarray, lps: np.ndarray) -> np.ndarray:
    """Values of a volume `(d, h, w)` at LPS points `(..., 3)` in mm, trilinear; NaN outside."""
    ras = np.asarray(lps, dtype=float) * [-1.0, -1.0, 1.0]
    inverse = np.linalg.inv(affine)
    index = np.moveaxis(ras @ inverse[:3, :3].T + inverse[:3, 3], -1, 0)
    return ndimage.map_coordinates(volume, index, order=1, mode="constant", cval=np.nan, output=np.float32)


def _middle(values) -> float:
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")


def tissue_hu(study: Rendered, landmarks: dict) -> dict[str, float]:
    """HU of every tissue of one intact study without noise, by the names of `TISSUES`; NaN where it was not found."""
    hu, affine = study.hu, study.affine

    def at(name: str, x, y, z) -> np.ndarray:
        mark = landmarks[name]
        points = rays(x, y, z) @ np.asarray(mark["axes"]).T + np.asarray(mark["centre"])
        return sample(hu, affine, points)

    found: dict[str, list[float]] = {name: [] for name in TISSUES}
    masks = {n: Mask(study.labels, affine, LABEL_IDS[n], m["centre"], m["axes"]) for n, m in landmarks.items()}
    for name in SUBAXIAL:
        # The front half of the body, well inside: the vein's channel comes in from behind.
        found[TRABECULAR].append(
            float(np.nanmean(at(name, np.linspace(-4, 4, 7), np.linspace(-3, 0, 4), (-2, -1, 0, 1, 2))))
        )
    for name in ("C4", "C5", "C6"):
        canal = measure_canal(masks[name])
        deep, back = canal["canal depth"], canal["rear wall"]
        if np.isfinite(deep):
            middle = back - deep / 2
            found["cord"].append(
                _middle(at(name, (-2, -1, 0, 1, 2), middle + np.array([-1.5, -0.5, 0.5, 1.5]), (-1, 0, 1)))
            )
    for upper, lower in (("C2", "C3"), ("C3", "C4"), ("C4", "C5"), ("C5", "C6"), ("C6", "C7")):
        found["disc"].append(_disc(study, masks[upper], masks[lower]))
    found["CSF"].append(_csf(at))
    found["airway"].append(_airway(at))
    fat, muscle = _nape(at)
    found["fat under the skin of the nape"].append(fat)
    found["muscle of the nape"].append(muscle)
    bone = hu[(study.labels >= 1) & (study.labels <= 7)]
    found["bone, 99th percentile"].append(float(np.percentile(bone, 99)) if bone.size else float("nan"))
    return {name: _middle(values) for name, values in found.items()}


def _csf(at) -> float:
    """Beside the cord at C1, behind the dens, where the space is wide enough for a voxel without partial volume."""
    return _middle(
        np.concatenate([at("C1", side * np.array([6.8, 7.3, 7.8]), (7.0, 8.0, 9.0), 0.0) for side in (-1, 1)])
    )


def _disc(study: Rendered, upper: Mask, lower: Mask) -> float:
    """Halfway between the endplates in the middle of a disc; NaN for a disc so thin that it blurs with bone there."""
    way = lower.centre - upper.centre
    reach = float(np.linalg.norm(way))
    t = np.arange(0.0, reach, 0.3)
    starts = upper.patient(rays(np.linspace(-3, 3, 5), np.linspace(-2, 2, 3), 0.0))
    line = starts[:, None] + t[:, None] * (way / reach)
    first = crossing(upper.sample(line), t, falling=True)
    last = crossing(lower.sample(line), t, falling=False)
    step = abs(float(study.affine[2, 0]))  # slices are up to 1.5 steps thick, and endplates are not level
    good = last - first > 1.5 * step + 2.6
    if good.sum() < 5:
        return float("nan")
    middle = starts[good] + ((first + last) / 2)[good, None] * (way / reach)
    return _middle(sample(study.hu, study.affine, middle))


def _airway(at) -> float:
    """Darkest tenth of what lies 12-45 mm in front of the bodies C4-C6, up to 8 mm off the midline."""
    values = np.concatenate(
        [at(n, np.linspace(-8, 8, 9), np.arange(-55.0, -19.0, 1.0), 0.0) for n in ("C4", "C5", "C6")]
    )
    dark = values[np.isfinite(values) & (values < -500)]
    return float(np.median(dark)) if dark.size > 20 else float("nan")


def _nape(at) -> tuple[float, float]:
    """Fat 2.5-4 mm under the skin of the nape, and muscle half way between lamina and skin, at C4 and C5."""
    fat, muscle = [], []
    for name in ("C4", "C5"):
        for x in (-16.0, -12.0, 12.0, 16.0):
            y = np.arange(20.0, 100.0, 0.5)
            line = at(name, x, y, 0.0)
            # The skin is the first place after which 3 mm of air follow.
            air = np.nan_to_num(line, nan=-1000.0) < -400
            run = np.convolve(air, np.ones(6), "valid") == 6
            if not run.any():
                continue
            skin = y[run.argmax()]
            fat.append(
                np.nanmin(at(name, x, skin - np.arange(2.0, 5.0, 0.5), (-1.0, 0.0, 1.0)).reshape(6, 3).mean(axis=1))
            )
            deep = at(name, x, np.linspace(28.0, 0.5 * (28.0 + skin), 12), (-2.0, 0.0, 2.0))
            muscle.append(np.nanmedian(deep[deep > 20]) if (deep > 20).any() else np.nan)  # not the fat planes
    return _middle(fat), _middle(muscle)


def tissue_rows(table: pd.DataFrame) -> list[Row]:
    """Population means of `tissue_hu` (one row a person, with column `age_years`), and the loss of bone with age."""
    rows = []
    for name, (low, high, source) in TISSUES.items():
        values = table[name].dropna().to_numpy(dtype=float)
        mean = float(values.mean()) if len(values) else float("nan")
        rows.append(Row("HU", f"{name}, mean HU", mean, low, high, len(values), f"({source})"))
    bone = table[["age_years", TRABECULAR]].dropna()
    slope = float(stats.pearsonr(bone.age_years, bone[TRABECULAR])[0]) if len(bone) > 2 else float("nan")
    rows.append(Row("HU", "trabecular HU against age, r", slope, -1.0, -0.5, len(bone), judged=len(bone) >= FEW_PEOPLE))
    outside = float((~table[TRABECULAR].between(120, 500)).mean())
    rows.append(Row("HU", "people with trabecular HU outside 120-500, share", outside, 0.0, 0.05, len(table)))
    return rows


# ------------------------------------------------------------------------------------------------------------- noise


def noise_of(noisy: Rendered, clean: Rendered) -> np.ma.MaskedArray:
    """Noise in HU `(d, h, w)`; masked where the range of stored HU cuts it off (air, metal)."""
    cut = (clean.hu < -600) | (clean.hu > 2400)
    return np.ma.masked_array(noisy.hu.astype(np.float32) - clean.hu, mask=cut)


def slices_between(affine: np.ndarray, high_mm: float, low_mm: float, count: int) -> slice:
    """Slices whose height (LPS z = RAS z, mm) lies between two heights; `count` = number of slices."""
    z = affine[2, 3] + affine[2, 0] * np.arange(count)
    inside = np.flatnonzero((z <= high_mm) & (z >= low_mm))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


def noise_sds(noisy: Rendered, clean: Rendered, landmarks: dict) -> tuple[float, float]:
    """Noise SD in HU from C2 to C4, and at T1-T2."""
    noise = noise_of(noisy, clean)

    def sd(upper: str, lower: str) -> float:
        ends = [float(landmarks[n]["centre"][2]) for n in (upper, lower)]
        part = noise[slices_between(noisy.affine, *ends, len(noise))].compressed()
        return float(1.4826 * np.median(np.abs(part - np.median(part)))) if part.size > 100 else float("nan")

    return sd("C2", "C4"), sd("T1", "T2")


def noise_power(noise: np.ndarray, pixel_mm: float, *, bins: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Radial noise power spectrum of slices.

    Parameters
    ----------
    noise : HU `(slices, h, w)`, regions of noise alone
    pixel_mm : pixel size

    Returns
    -------
    frequencies : `(bins,)` 1/mm, from near 0 to the Nyquist frequency 1 / (2 pixel)
    power : `(bins,)` HU^2 mm^2, mean over slices and directions; its integral over the plane is the variance
    """
    noise = np.asarray(noise, dtype=np.float64)
    h, w = noise.shape[1:]
    flat = noise - noise.mean(axis=(1, 2), keepdims=True)
    window = np.hanning(h)[:, None] * np.hanning(w)  # the borders of a region must not look like edges
    spectrum = np.abs(np.fft.fft2(flat * window)) ** 2 * pixel_mm**2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(h, pixel_mm)[:, None], np.fft.fftfreq(w, pixel_mm))
    edges = np.linspace(0.0, 0.5 / pixel_mm, bins + 1)
    place = np.digitize(radius, edges) - 1
    power = np.array([spectrum[:, place == b].mean() if (place == b).any() else np.nan for b in range(bins)])
    good = np.isfinite(power)
    return ((edges[:-1] + edges[1:]) / 2)[good], power[good]


def noise_patches(noisy: Rendered, clean: Rendered, landmarks: dict, n: int = 32) -> np.ndarray:
    """Square regions of noise `(slices, n, n)` around the spine from C2 to C4, where no voxel is cut off."""
    noise = noise_of(noisy, clean)
    heights = [float(landmarks[name]["centre"][2]) for name in ("C2", "C5")]
    inverse = np.linalg.inv(noisy.affine)
    found = []
    part = slices_between(noisy.affine, *heights, len(noise))
    for d in range(part.start, part.stop):
        centre = np.asarray(landmarks["C4"]["centre"]) * [-1, -1, 1]
        _, h, w = (inverse[:3, :3] @ centre + inverse[:3, 3]).astype(int)
        for dw in (-n, 0):
            h0, w0 = h - n // 3, w + dw
            region = noise[d, h0 : h0 + n, w0 : w0 + n]
            if region.shape == (n, n) and np.ma.getmaskarray(region).mean() < 0.02:
                found.append(region.filled(0.0))
    return np.array(found)


def spectrum_rows(spectra: list[tuple[str, np.ndarray, np.ndarray]]) -> list[Row]:
    """Shape of the noise power by kernel; `(kernel, frequencies, power)` of one study each.

    Sharp (bone) kernels amplify fine detail: little power near zero, its peak beyond a quarter of Nyquist. Soft kernels
    suppress it: the upper half of the band holds less than the lower half.
    """
    rows = []
    for kernel in sorted({k for k, _, _ in spectra}):
        own = [(f, p) for k, f, p in spectra if k == kernel]
        peak = float(np.median([f[p.argmax()] / f[-1] for f, p in own]))
        start = float(np.median([p[:2].mean() / p.max() for _, p in own]))
        halves = float(np.median([p[len(p) // 2 :].mean() / p[: len(p) // 2].mean() for _, p in own]))
        if "soft" in kernel:
            rows.append(Row("noise", f"{kernel} kernel: power above / below half Nyquist", halves, 0.0, 0.7, len(own)))
        else:
            rows.append(
                Row("noise", f"{kernel} kernel: peak of the power, share of Nyquist", peak, 0.25, 1.0, len(own))
            )
            rows.append(Row("noise", f"{kernel} kernel: power near zero / at the peak", start, 0.0, 0.6, len(own)))
    return rows


def noise_rows(sds: list[tuple[str, float, float]], spectra) -> list[Row]:
    """Noise above the shoulders, its rise there (`(kernel, above, below)` of one study each), and its spectrum."""
    above = np.array([a for _, a, _ in sds])
    rise = np.array([b / a for _, a, b in sds])
    rows = [
        Row("noise", "SD from C2 to C4, HU, mean", float(np.nanmean(above)), *NOISE_HU, len(sds)),
        Row("noise", "SD at T1-T2 / SD from C2 to C4, mean", float(np.nanmean(rise)), *SHOULDER_RISE, len(sds)),
    ]
    return rows + spectrum_rows(spectra)
