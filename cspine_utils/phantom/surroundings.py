"""What varies around a spine whatever its fractures: contrast, collar, table, swelling, fat, metal in the teeth.

All rates are drawn without a look at the fractures, so none of these can tell a broken neck from a whole one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from .grid import Grid, coverage, mix, smoothstep
from .hounsfield import CARBON_HU, METAL_HU, TABLE_FOAM_HU
from .patient import Patient, Spine
from .tracks import Levels, paint

#: Rates (shares of patients). Contrast: 1/4-1/3 of trauma scans (RSNA dataset paper); the rest: textbook values.
CONTRAST_RATE, COLLAR_RATE, SWELLING_RATE, METAL_RATE = 0.25, 0.40, 0.10, 0.25

#: Thickness of the collar's shell.
COLLAR_MM = 2.6

#: Places of the cheek teeth of one side in the frame of the skull, mm for a mean skeleton: premolars, then molars.
TOOTH_PLACES = ((16.5, -75.0), (19.5, -69.0), (22.5, -61.5), (25.0, -52.5), (27.0, -44.0))

#: Heights of the crowns of the lower and the upper row in the frame of the skull, mm.
CROWN_Z = {"lower": -19.0, "upper": -10.0}


@dataclass(frozen=True)
class Surroundings:
    """Attributes
    ----------
    contrast_hu : HU of blood with contrast (200-400), or None without
    collar : the patient wears a stiff cervical collar
    collar_gap_mm : foam between skin and shell
    fat_mm : mean thickness of the fat under the skin (thinner in front, thicker at the back)
    swelling_mm : extra thickness of the prevertebral tissue at its peak; 0 = none
    swelling_level : where that peak lies, as a place in `KNOTS` (3.0 = C3)
    metal : filled teeth as (side, row, number): -1/1 = right/left, "lower"/"upper", 0-4 in `TOOTH_PLACES`
    plaque : sizes in mm (0 = none) of calcified plaques in the right and left carotid bifurcation
    tendon_calcium : calcification of the longus colli tendon in front of C1/C2
    cartilage_calcium : share of the larynx' cartilages that is calcified
    oesophageal_air : a dot of air in the oesophagus
    """

    contrast_hu: float | None = None
    collar: bool = False
    collar_gap_mm: float = 6.0
    fat_mm: float = 6.0
    swelling_mm: float = 0.0
    swelling_level: float = 4.0
    metal: tuple[tuple[int, str, int], ...] = ()
    plaque: tuple[float, float] = (0.0, 0.0)
    tendon_calcium: bool = False
    cartilage_calcium: float = 0.3
    oesophageal_air: bool = False

    @property
    def dental(self) -> int:
        """Number of metal fillings."""
        return len(self.metal)

    def swelling(self, levels: Levels) -> np.ndarray:
        """By how much the throat is pushed forward in each slice, mm `(d,)`."""
        place = levels.at(np.arange(levels.weights.shape[1]))
        return self.swelling_mm * np.exp(-0.5 * ((place - self.swelling_level) / 1.1) ** 2)

    def blood(self, plain_hu: float) -> float:
        """HU of blood, which has `plain_hu` without contrast."""
        return plain_hu if self.contrast_hu is None else self.contrast_hu


def draw_surroundings(rng: np.random.Generator, patient: Patient) -> Surroundings:
    """Sample what surrounds one patient's spine; depends on age and sex, never on a fracture."""
    old = float(np.clip((patient.age_years - 45.0) / 40.0, 0.0, 1.0))
    contrast = float(rng.uniform(200.0, 400.0))
    given, worn, swollen, filled = rng.random(4) < (CONTRAST_RATE, COLLAR_RATE, SWELLING_RATE, METAL_RATE)
    teeth = [(s, row, n) for s in (-1, 1) for row in CROWN_Z for n in range(len(TOOTH_PLACES))]
    chosen = rng.choice(len(teeth), size=int(rng.integers(1, 5)), replace=False)
    plaque = np.where(rng.random(2) < 0.7 * old, rng.uniform(2.0, 5.0, 2), 0.0)
    mean_fat = 6.0 if patient.sex == "M" else 7.0
    return Surroundings(
        contrast_hu=contrast if given else None,
        collar=bool(worn),
        collar_gap_mm=float(rng.uniform(4.0, 9.0)),
        fat_mm=float(np.clip(mean_fat * rng.lognormal(0.0, 0.35), 2.5, 15.0)),
        swelling_mm=float(rng.uniform(4.0, 10.0)) if swollen else 0.0,
        swelling_level=float(rng.uniform(2.5, 6.5)),
        metal=tuple(teeth[i] for i in sorted(chosen)) if filled else (),
        plaque=(float(plaque[0]), float(plaque[1])),
        tendon_calcium=bool(rng.random() < 0.02),
        cartilage_calcium=float(np.clip(0.1 + 0.7 * old + rng.normal(0.0, 0.15), 0.0, 0.9)),
        oesophageal_air=bool(rng.random() < 0.35),
    )


def metal_positions(spine: Spine, patient: Patient, surroundings: Surroundings) -> np.ndarray:
    """Middles of the metal fillings, LPS mm `(n, 3)` of the unmoved patient; n may be 0."""
    places = [
        (side * TOOTH_PLACES[n][0], TOOTH_PLACES[n][1], CROWN_Z[row] + (1.0 if row == "lower" else -1.0))
        for side, row, n in surroundings.metal
    ]
    return spine.skull.to_patient(patient.scale * np.array(places, dtype=float).reshape(-1, 3))


def add_metal(hu: torch.Tensor, levels: Levels, surroundings: Surroundings) -> None:
    """Paint the fillings into `hu`, in place: blobs of 2.6 mm radius."""
    for middle in metal_positions(levels.spine, levels.patient, surroundings):
        add_ball(hu, levels, middle, 2.6, METAL_HU)


def add_ball(hu: torch.Tensor, levels: Levels, middle: np.ndarray, radius_mm: float, value: float) -> None:
    """Paint a ball at `middle` (LPS mm) into `hu`, in place."""
    reach = radius_mm + levels.grid.voxel_mm
    first, last = levels.rows_between(middle[2] + reach, middle[2] - reach)
    part = levels.box(middle[:2] - reach, middle[:2] + reach, first, last) if last > first else None
    if part is None:
        return
    x, y = levels.at_part(part)
    d2 = (x - float(middle[0])) ** 2 + (y - float(middle[1])) ** 2 + (levels.z[part[0]] - float(middle[2])) ** 2
    paint(hu, part, torch.sqrt(d2) - radius_mm, value, levels.grid.voxel_mm)


def collar_rows(levels: Levels, surroundings: Surroundings) -> torch.Tensor:
    """1 in the slices that a collar covers (C2 to T1, from the chin to the collar bones), else 0, `(d, 1, 1)`."""
    top, bottom = float(levels.centres[2, 2]), float(levels.centres[8, 2])
    worn = smoothstep((top - levels.z) / 3.0) * smoothstep((levels.z - bottom) / 3.0)
    return worn if surroundings.collar else torch.zeros_like(worn)


def add_table(hu: torch.Tensor, grid: Grid, levels: Levels, skin_back: np.ndarray) -> None:
    """Paint the head holder and the table behind the patient into `hu`, in place; they do not move with the patient.

    `skin_back`: y (LPS mm) of the skin behind the middle in each of `levels.centres`: head holder and table lie under
    its farthest points. Both are two carbon skins around foam, bent upwards at the sides.
    """
    fixed = replace(grid, motion=None)
    x, y, z = fixed.coordinates()
    x0 = float(levels.centres[0, 0])
    head, shoulders = float(skin_back[:3].max()), float(skin_back[-3:].max())
    end = float(levels.centres[6, 2])
    for under, bend, top, bottom in ((head + 4.0, 1 / 260.0, np.inf, end), (shoulders + 3.0, 1 / 600.0, end, -np.inf)):
        sheet = under - bend * (x - x0) ** 2
        ends = grid.origin_lps[0] + grid.pixel_mm * (grid.start[2] + np.array([0, grid.shape[2] - 1])) - x0
        first, last = levels.rows_between(top, bottom)
        rows = levels.box((-1e4, under - bend * float((ends**2).max()) - 3.0), (1e4, under + 20.0), first, last)
        if rows is None:
            continue
        depth = y[:, rows[1]] - sheet
        free = ((-880.0 - hu[rows]) / 40.0).clamp(0.0, 1.0)  # not into the patient or his collar
        inside = coverage((depth - 8.0).abs() - 8.0, grid.voxel_mm)
        skins = (inside - coverage((depth - 8.0).abs() - 6.4, grid.voxel_mm)).clamp(min=0.0)
        hu[rows] = mix(mix(hu[rows], TABLE_FOAM_HU, free * inside), CARBON_HU, free * skins)
