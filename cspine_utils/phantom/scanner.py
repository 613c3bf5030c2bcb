"""The scanner: blur in and across the slice, quantum noise with the spectrum of its kernel, shoulders, metal streaks.

Sharp kernels blur little (full width at half maximum 0.8-0.9 mm), overshoot at edges and have noise of middle and high
frequencies; a soft kernel blurs to 1.8 mm and has noise of low frequencies (textbook values). Noise SD with a bone
kernel 25-45 HU at 1 mm, 8-15 HU with a soft one; from C6 down, where the shoulders lie in the beam, 1.5-3 times that,
with streaks along the rows (AJNR 39:385). Slices are averaged over their thickness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .grid import Grid, smoothstep
from .patient import Spine

#: Range that 12 unsigned bits hold with an intercept of -1024. All storage forms are clipped to it, so that the form
#: of a file tells nothing about its content.
HU_RANGE = (-1024, 3071)


@dataclass(frozen=True)
class Kernel:
    """A reconstruction kernel.

    Attributes
    ----------
    dicom_name : what the header says
    sigma_mm : blur in the slice (Gaussian)
    edge : overshoot: this share of a blur twice as wide is taken away again
    noise : SD of its noise relative to the bone kernel
    rise, cut, fall : noise power over spatial frequency f (1/mm): f^rise exp(-(f/cut)^fall)
    """

    dicom_name: str
    sigma_mm: float
    edge: float
    noise: float
    rise: float
    cut: float
    fall: float

    def noise_power(self, frequency: torch.Tensor) -> torch.Tensor:
        """Relative noise power at spatial frequencies in 1/mm."""
        return frequency**self.rise * torch.exp(-((frequency / self.cut) ** self.fall))


KERNELS = {
    "bone": Kernel("BONE", 0.40, 0.25, 1.0, 1.6, 0.62, 2.4),
    "sharp": Kernel("BONEPLUS", 0.35, 0.40, 1.3, 2.0, 0.75, 2.6),
    "soft": Kernel("STANDARD", 0.75, 0.0, 0.35, 0.7, 0.30, 2.0),
}


@dataclass(frozen=True)
class Scan:
    """How a study is scanned: kernel, noise SD above the shoulders (HU), its rise there, strength of streaks (HU)."""

    kernel: str
    noise_hu: float
    shoulder: float
    streak_hu: float


def draw_scan(rng: np.random.Generator, noise_factor: float) -> Scan:
    """Most trauma studies come with a bone kernel (shares of the kernels: textbook values)."""
    kernel = str(rng.choice(list(KERNELS), p=(0.75, 0.15, 0.10)))
    level = float(rng.uniform(24.0, 34.0)) * noise_factor * KERNELS[kernel].noise
    return Scan(kernel, level, float(rng.uniform(1.5, 2.8)), float(rng.uniform(250.0, 700.0)))


def blur_reach(grid: Grid, kernel: str) -> tuple[int, int, int]:
    """Voxels along d, h, w beyond which the blur does not reach."""
    across, within = _profiles(grid, kernel)
    return len(across) - 1, len(within) - 1, len(within) - 1


def blur(values: torch.Tensor, grid: Grid, kernel: str) -> torch.Tensor:
    """The scanner's point spread, `(d, h, w)` -> same. Linear; zero beyond the edge."""
    across, within = _profiles(grid, kernel)
    for axis, profile in ((0, across), (1, within), (2, within)):
        values = _convolve(values, profile, axis)
    return values


def _profiles(grid: Grid, kernel: str) -> tuple[list[float], list[float]]:
    """Half line-spread functions (weights at 0, 1, ... voxels) across and within the slice, each of sum 1."""
    k = KERNELS[kernel]
    narrow, wide = (_gaussian(f * k.sigma_mm / grid.pixel_mm, 2.0 * k.sigma_mm / grid.pixel_mm) for f in (1.0, 2.0))
    within = list((1.0 + k.edge) * narrow - k.edge * wide) if k.edge else list(_gaussian(k.sigma_mm / grid.pixel_mm))
    half = grid.thickness_mm / grid.step_mm / 2  # a box of the slice thickness, in steps
    reach = max(0, int(np.ceil(half - 0.5)))
    box = np.array([max(0.0, min(half, i + 0.5) - max(-half, i - 0.5)) for i in range(reach + 1)])
    return list(box / (box[0] + 2 * box[1:].sum())), within


def _gaussian(sigma: float, reach_sigma: float | None = None) -> np.ndarray:
    """Half of a normalised Gaussian in voxels; `reach_sigma` makes it as long as one of that width."""
    reach = max(1, int(np.ceil(2.6 * (reach_sigma or sigma) - 0.5)))
    weights = np.exp(-0.5 * (np.arange(reach + 1) / max(sigma, 1e-6)) ** 2)
    return weights / (weights[0] + 2 * weights[1:].sum())


def _convolve(values: torch.Tensor, half: list[float], axis: int) -> torch.Tensor:
    out = values * float(half[0])
    n = values.shape[axis]
    for k, weight in enumerate(half[1:], start=1):
        if k < n and weight:
            out.narrow(axis, k, n - k).add_(values.narrow(axis, 0, n - k), alpha=float(weight))
            out.narrow(axis, 0, n - k).add_(values.narrow(axis, k, n - k), alpha=float(weight))
    return out


def quantum_noise(grid: Grid, spine: Spine, scan: Scan, rng: np.random.Generator) -> torch.Tensor:
    """HU of noise, float32 of the grid's shape: the kernel's spectrum in the slice, correlated across thick slices."""
    kernel = KERNELS[scan.kernel]
    d, h, w = grid.shape
    white = torch.from_numpy(rng.standard_normal(grid.shape, dtype=np.float32)).to(grid.device)
    frequency = torch.hypot(
        torch.fft.fftfreq(h, grid.pixel_mm)[:, None], torch.fft.fftfreq(w, grid.pixel_mm)[None]
    )  # 1/mm
    power = kernel.noise_power(frequency)
    shape = torch.sqrt(power / power.mean())[:, : w // 2 + 1].to(grid.device)
    coloured = torch.fft.irfft2(torch.fft.rfft2(white) * shape, s=(h, w))
    across, _ = _profiles(grid, scan.kernel)
    energy = across[0] ** 2 + 2 * sum(a * a for a in across[1:])
    coloured = _convolve(coloured, across, 0) / float(np.sqrt(energy))

    start = float(spine.poses["C6"].centre[2])
    shoulder = smoothstep((start - grid.coordinates()[2]) / 40.0)
    rows = torch.from_numpy(rng.standard_normal((d, h, 3), dtype=np.float32)).to(grid.device)
    ramp = torch.linspace(0.0, 2.0, w, device=grid.device)
    streak = sum(rows[:, :, i : i + 1] * (1.0 - (ramp - i).abs()).clamp(min=0.0) for i in range(3))
    rise = scan.shoulder - 1.0
    return scan.noise_hu * ((1.0 + 0.85 * rise * shoulder) * coloured + 0.6 * rise * shoulder * streak)


def add_streaks(hu: torch.Tensor, grid: Grid, metal: np.ndarray, strength_hu: float, rng: np.random.Generator) -> None:
    """Streaks of metal fillings, in place; `metal` `(n, 3)` LPS mm of the unmoved patient.

    Bright and dark rays in the slices of a filling, fading over some centimetres: a picture of beam hardening and
    photon starvation, not a simulation of it.
    """
    x, y, z = grid.coordinates()
    for centre in np.asarray(metal, dtype=float).reshape(-1, 3):
        rays = rng.integers(3, 13, 6), rng.uniform(0.0, 2 * np.pi, 6), rng.normal(0.0, 0.5, 6)
        off = z.flatten() - float(centre[2])
        near = torch.nonzero(off.abs() < 6.0).flatten()
        if not len(near):
            continue
        part = slice(int(near[0]), int(near[-1]) + 1)
        px, py = (axis[part] if len(axis) > 1 else axis for axis in (x, y))
        px, py, pz = px - float(centre[0]), py - float(centre[1]), off[part][:, None, None]
        angle, r = torch.atan2(py, px), torch.sqrt(px * px + py * py)
        pattern = sum(float(a) * torch.cos(int(k) * angle + float(p)) for k, p, a in zip(*rays, strict=True))
        hu[part] += strength_hu * pattern * torch.exp(-r / 35.0) * torch.exp(-((pz / 2.5) ** 2))


def to_int16(hu: torch.Tensor) -> np.ndarray:
    """Round and clip to `HU_RANGE`."""
    return hu.clamp(*HU_RANGE).round().to(torch.int16).cpu().numpy()
