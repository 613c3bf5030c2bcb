"""What surrounds the vertebrae: unlabelled bones, muscles and fat, cord and discs, airway, lungs, skin and air.

Frames as in `sdf`. HU of soft tissue: muscle 45-60, fat -120 to -90, CSF about 10, cord 30-40 (Hounsfield-scale
tables); disc 85, thyroid 100 and the shapes of all soft parts are textbook values.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .anatomy import BONES, JOINT_MM, Patient, Spine
from .sdf import Field, Grid, Pose, Primitive, block, capsule, coverage, noise, overlap, smoothstep

AIR_HU, LUNG_HU, SKIN_HU, FAT_HU, MUSCLE_HU = -1000.0, -870.0, 40.0, -100.0, 55.0
DISC_HU, CORD_HU, CSF_HU, EPIDURAL_HU, BRAIN_HU = 85.0, 38.0, 10.0, -60.0, 35.0

#: Outline of head, neck and shoulders at some vertebrae: half width, half depth, centre behind the body's centre (mm).
_OUTLINE = {
    "C1": (74.0, 92.0, -14.0),
    "C2": (70.0, 82.0, -12.0),
    "C3": (63.0, 68.0, -6.0),
    "C4": (59.0, 61.0, -1.0),
    "C5": (58.0, 59.0, 2.0),
    "C6": (62.0, 60.0, 4.0),
    "C7": (76.0, 63.0, 4.0),
    "T1": (104.0, 68.0, 3.0),
    "T2": (140.0, 74.0, 2.0),
}

#: Airway: half width, half depth, centre in front of the body's centre (mm): nasopharynx, larynx, trachea.
_AIRWAY = {
    "C1": (14.0, 8.0, -27.0),
    "C2": (13.0, 7.5, -26.0),
    "C3": (13.0, 7.0, -26.0),
    "C4": (11.0, 8.0, -28.0),
    "C5": (8.0, 10.0, -31.0),
    "C6": (7.5, 10.0, -32.0),
    "C7": (8.5, 9.0, -31.0),
    "T1": (9.0, 8.5, -31.0),
    "T2": (9.0, 8.5, -31.0),
}

#: Soft parts beside the midline at C5: place (x, y) and half-axes in mm, drift of x and y per mm towards the head, HU.
_PARTS = (
    ("longus colli", 8, -13, 6, 4, 0.0, 0.0, 55),
    ("anterior scalene", 24, -7, 6, 7, 0.0, 0.02, 55),
    ("middle scalene", 31, 3, 7, 8, -0.03, 0.0, 55),
    ("sternocleidomastoid", 42, -20, 8, 14, 0.06, 0.30, 58),
    ("levator scapulae", 38, 17, 7, 9, 0.02, -0.06, 55),
    ("multifidus", 9, 27, 7, 8, 0.0, 0.0, 52),
    ("semispinalis cervicis", 20, 30, 9, 8, 0.0, 0.0, 54),
    ("semispinalis capitis", 14, 42, 11, 7, 0.02, 0.0, 54),
    ("splenius", 30, 38, 10, 6, 0.0, 0.0, 57),
    ("trapezius", 20, 52, 24, 6, -0.05, 0.0, 58),
    ("carotid", 25, -24, 4, 4, 0.02, 0.05, 46),
    ("jugular", 33, -23, 6, 5, 0.03, 0.08, 46),
    ("carotid fat", 28, -15, 6, 4, 0.0, 0.05, -95),
    ("posterior triangle fat", 44, 2, 7, 9, 0.0, 0.02, -98),
    ("thyroid", 19, -34, 7, 10, 0.02, 0.0, 75),
    ("strap muscles", 14, -49, 12, 6, 0.02, 0.0, 55),
    ("oesophagus", 4, -19, 6, 4, 0.0, 0.0, 45),
    ("pharyngeal wall", 7, -32, 9, 13, 0.0, 0.0, 50),
    ("submandibular fat", 32, -42, 12, 8, 0.02, 0.0, -80),
    ("nuchal fat", 1.5, 56, 2.5, 6, 0.0, 0.0, -90),
)


def build_other_bones(grid: Grid, spine: Spine, patient: Patient, vertebrae: dict[str, Field]) -> list[Field]:
    """Skull base with condyles, jaw, hyoid and the first ribs: bone without a label (their sizes: textbook values)."""
    k = patient.scale
    skull = Field(grid, spine.skull, (-95.0, -70.0, 2.0), (95.0, 110.0, 60.0))

    def shell(x, y, z):
        r = torch.sqrt((x / 72.0) ** 2 + ((y - 8.0) / 92.0) ** 2 + ((z - 64.0) / 50.0) ** 2)
        return ((r - 1.0).abs() * 50.0 - 2.6) * 0.9

    skull.add(Primitive(shell, (-76, -90, 8), (76, 104, 60)), 0.0)
    for side in (-1, 1):
        skull.add(block((side * 17.0 * k, 0.0, 13.0), (6.0, 9.0, 5.0), 3.0, slope_x=-0.35), 4.0)
        skull.add(capsule((side * 50.0, 4.0, 14.0), (side * 46.0, 12.0, 2.0), 7.0, 4.5), 3.0)  # mastoid
    skull.add(capsule((0, -9.0, 17.0), (0, -30.0, 45.0), 5.0, 7.0, stretch=(2.2, 1, 1)), 3.0)  # clivus
    skull.carve(capsule((0, 8.0, -5.0), (0, 10.0, 40.0), 14.0 * k, stretch=(1.0, 1.2, 1.0)), 2.0)
    for name in ("C1", "C2"):
        if (common := overlap(skull, vertebrae[name])) is not None:
            mine, other = common
            skull.d[mine] = torch.maximum(skull.d[mine], JOINT_MM - vertebrae[name].d[other])

    face = Field(grid, spine.skull, (-60.0, -105.0, -70.0), (60.0, -5.0, 30.0))
    hyoid_z = -52.0 * k
    for side in (-1, 1):
        jaw = [
            (50.0, -18.0, 16.0),
            (47.0, -24.0, -22.0),
            (44.0, -34.0, -34.0),
            (30.0, -68.0, -38.0),
            (0.0, -88.0, -40.0),
        ]
        for a, b in zip(jaw, jaw[1:], strict=False):
            face.add(capsule((side * a[0], *a[1:]), (side * b[0], *b[1:]), 3.2, 3.6, stretch=(1, 1.6, 1.8)), 2.0)
        face.add(capsule((0, -46.0, hyoid_z), (side * 12.0, -42.0, hyoid_z), 2.6, 2.0), 1.0)
        face.add(capsule((side * 12.0, -42.0, hyoid_z), (side * 20.0, -22.0, hyoid_z + 3.0), 1.8, 1.4), 1.0)

    ribs = []
    for name, tip in (("T1", -14.0), ("T2", -20.0)):
        s = spine.sizes[name]
        rib = Field(grid, spine.poses[name], (-75.0, -45.0, -30.0), (75.0, 30.0, 14.0))
        path = [
            (s.width / 2 + 3.5, s.depth / 2 - 1.0, 3.0),
            (s.transverse + 2, s.depth / 2 + 6.0, 0.0),
            (s.transverse + 18, 2.0, -6.0),
            (s.transverse + 16, -30.0, tip),
        ]
        for side in (-1, 1):
            for a, b in zip(path, path[1:], strict=False):
                rib.add(capsule((side * a[0], *a[1:]), (side * b[0], *b[1:]), 3.0, 3.4, stretch=(1, 1, 1.3)), 2.0)
        for bone in vertebrae.values():
            if (common := overlap(rib, bone)) is not None:
                mine, other = common
                rib.d[mine] = torch.maximum(rib.d[mine], JOINT_MM - bone.d[other])
        ribs.append(rib)
    return [skull, face, *ribs]


def _track(spine: Spine, z: np.ndarray, table: dict[str, tuple[float, ...]], scale: float) -> np.ndarray:
    """Values tabulated per vertebra, interpolated to heights `z` (mm): `(len(z), columns)`, times `scale`."""
    names = [name for name in BONES[::-1] if name in table]  # np.interp wants heights that rise
    heights = [spine.poses[name].centre[2] for name in names]
    return scale * np.stack([np.interp(z, heights, [table[n][i] for n in names]) for i in range(len(table["C2"]))], 1)


def _column(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)[:, None, None]


def _ellipse(x, y, cx, cy, rx, ry) -> torch.Tensor:
    """Roughly the distance (mm) to an ellipse in each slice; centres and half-axes are columns over d."""
    return (torch.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2) - 1.0) * torch.minimum(rx, ry)


def soft_tissue(grid: Grid, spine: Spine, patient: Patient, rng: np.random.Generator) -> torch.Tensor:
    """HU of everything but bone, float32 `(d, h, w)`."""
    z, y, x = (axis.numpy() for axis in grid.axes())
    centre = _track(spine, z, {n: tuple(spine.poses[n].centre[:2]) for n in BONES}, 1.0)
    cx, cy = _column(centre[:, 0]), _column(centre[:, 1])
    hu = _muscles(grid, spine, centre, rng)
    x, y = torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, :, None]

    shape = _track(spine, z, _OUTLINE, patient.scale)
    skin = _ellipse(
        x,
        y,
        cx,
        cy + _column(shape[:, 2]),
        _column(shape[:, 0] * patient.neck[0]),
        _column(shape[:, 1] * patient.neck[1]),
    )
    fat = float(rng.uniform(3.0, 9.0))
    hu = torch.lerp(hu, torch.tensor(FAT_HU), coverage(-skin - fat - 2.0, 2.5))
    hu = torch.lerp(hu, torch.tensor(SKIN_HU), coverage(-skin - 1.6, grid.voxel_mm))

    _canal_contents(hu, grid, spine, x, y, z)
    for upper, lower in zip(BONES[1:], BONES[2:], strict=False):
        _disc(hu, grid, spine, upper, lower)
    air = _track(spine, z, _AIRWAY, patient.scale)
    lungs = spine.poses["T2"].centre + [0.0, -14.0, -22.0]
    for side in (-1, 1):
        apex = torch.sqrt(
            ((x - float(lungs[0]) - side * 42.0) / 26.0) ** 2
            + ((y - float(lungs[1])) / 34.0) ** 2
            + ((_column(z) - float(lungs[2])) / 36.0) ** 2
        )
        low = z < lungs[2] + 38.0
        hu[low] = torch.lerp(hu[low], torch.tensor(LUNG_HU), coverage((apex[low] - 1.0) * 26.0, grid.voxel_mm))
    airway = _ellipse(x, y, cx, cy + _column(air[:, 2]), _column(air[:, 0]), _column(air[:, 1]))
    hu = torch.lerp(hu, torch.tensor(AIR_HU), coverage(airway, grid.voxel_mm))
    return torch.lerp(hu, torch.tensor(AIR_HU), coverage(-skin, grid.voxel_mm))


def _muscles(grid: Grid, spine: Spine, centre: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Each voxel belongs to the nearest soft part; thin fat lies where two parts meet. Half resolution, then enlarged.

    Soft borders carry no fine detail in a bone-window course, and an eighth of the voxels makes this cheap.
    """
    z, y, x = (axis[::2] for axis in grid.axes())
    cx, cy = _column(centre[::2, 0]), _column(centre[::2, 1])
    up = z[:, None, None] - float(spine.poses["C5"].centre[2])
    shape = (len(z), len(y), len(x))
    wobble = [
        2.2 * noise(shape, tuple(2 * s for s in (grid.step_mm, grid.pixel_mm, grid.pixel_mm)), 16.0, rng)
        for _ in range(2)
    ]
    x = x[None, None] - cx + wobble[0]
    y = y[None, :, None] - cy + wobble[1]
    best, second, hu = torch.full(shape, 1e3), torch.full(shape, 1e3), torch.full(shape, MUSCLE_HU)
    for _, px, py, rx, ry, drift_x, drift_y, value in _PARTS:
        dy = (y - (py + drift_y * up)) / ry
        for side in (-1, 1):
            dx = (x - side * (px + drift_x * up)) / rx
            f = (torch.sqrt(dx * dx + dy * dy) - 1.0) * min(rx, ry)
            second = torch.minimum(second, torch.maximum(best, f))
            hu = torch.where(f < best, torch.full((), value + float(rng.normal(0.0, 2.0))), hu)
            best = torch.minimum(best, f)
    between = coverage((second - best) - 1.6, 1.6)
    hu = torch.lerp(hu, torch.tensor(FAT_HU), 0.75 * between)
    return F.interpolate(hu[None, None], size=grid.shape, mode="trilinear", align_corners=False)[0, 0]


def _canal_contents(hu: torch.Tensor, grid: Grid, spine: Spine, x, y, z: np.ndarray) -> None:
    """Epidural fat, CSF and cord along the canal, painted into `hu` (cord 8 x 13 mm, after AJNR 11:369)."""
    middle = _track(spine, z, {n: tuple(spine.canal(n)[:2]) for n in BONES}, 1.0)
    kx, ky = middle.mean(axis=0)
    rows, cols = (torch.nonzero((axis.flatten() - k).abs() < 26.0).flatten() for axis, k in ((y, ky), (x, kx)))
    if not len(rows) or not len(cols):
        return
    part = (slice(None), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1))
    px, py = x[:, :, part[2]], y[:, part[1]]
    cx, cy = _column(middle[:, 0]), _column(middle[:, 1])
    one = torch.ones_like(cx)
    for rx, ry, value in ((11.5, 8.0, EPIDURAL_HU), (9.5, 6.3, CSF_HU), (6.3, 3.8, CORD_HU)):
        inside = coverage(_ellipse(px, py, cx, cy, rx * one, ry * one), grid.voxel_mm)
        hu[part] = torch.lerp(hu[part], torch.tensor(value), inside)


def _disc(hu: torch.Tensor, grid: Grid, spine: Spine, upper: str, lower: str) -> None:
    """The disc between two bodies, a little thicker than the space so that the endplates cover its faces."""
    a, b, s = spine.poses[upper], spine.poses[lower], spine.sizes[lower]
    axis = a.rotation[:, 2] * (spine.sizes[upper].height + spine.sizes[upper].disc) / 2
    half = (s.width / 2 - 1.5, s.depth / 2 - 0.5, spine.sizes[upper].disc / 2 + 2.5)
    disc = Field(
        grid,
        Pose(a.centre - axis, (a.rotation + b.rotation) / 2),
        tuple(-h - 1 for h in half),
        tuple(h + 1 for h in half),
    )
    disc.add(block((0.0, 0.0, 0.0), half, 2.4), 0.0)
    hu[disc.slices] = torch.lerp(hu[disc.slices], torch.tensor(DISC_HU), coverage(disc.d, grid.voxel_mm))


def brain(hu: torch.Tensor, grid: Grid, spine: Spine) -> None:
    """Fill the skull above its shell with brain, in place."""
    field = Field(grid, spine.skull, (-72.0, -84.0, 12.0), (72.0, 100.0, 60.0))
    inside = torch.sqrt((field.x / 72.0) ** 2 + ((field.y - 8.0) / 92.0) ** 2 + ((field.z - 64.0) / 50.0) ** 2)
    hu[field.slices] = torch.lerp(hu[field.slices], torch.tensor(BRAIN_HU), smoothstep((1.0 - inside) * 20.0))
