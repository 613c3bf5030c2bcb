"""Bones without a label: skull base, jaws with teeth, hyoid, ribs, collar bones, breastbone.

All sizes are textbook values in mm for a mean skeleton. Skull and jaws live in the frame of `Spine.skull` (origin at
the middle of C1, x to the left, y to the back, z to the head), the hyoid in that of C4, the ribs in those of their
vertebrae.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .grid import Grid, coverage, mix
from .hounsfield import AIR_HU, DENTINE_HU, ENAMEL_HU
from .patient import Patient, Spine
from .sdf import Field, Pose, Primitive, block, capsule, overlap, plate, smooth_min
from .surroundings import CROWN_Z, TOOTH_PLACES
from .vertebrae import JOINT_MM

#: Ellipsoids whose union is the outside of the skull: middle and half axes. The second one stands for both
#: cerebellar fossae.
VAULT = (((0.0, 28.0, 62.0), (71.0, 70.0, 46.0)), ((22.0, 38.0, 42.0), (40.0, 40.0, 34.0)))
VAULT_MM = 4.2

#: Pneumatised part of the mastoid: middle and half axes; the cells' spacing.
MASTOID, CELL_MM = ((49.0, 15.0, 13.0), (9.5, 13.0, 15.0)), 4.6

#: Front teeth that `TOOTH_PLACES` leaves out: canine and incisors.
FRONT_TEETH = ((13.0, -80.5), (8.5, -84.5), (3.0, -86.5))

#: First to third rib from head to front end, in the frame of the vertebra; the first two points follow its size.
RIBS = {
    "T1": ((56.0, 12.0, -5.0), (60.0, -14.0, -14.0), (47.0, -40.0, -25.0), (27.0, -56.0, -33.0)),
    "T2": ((66.0, 20.0, -8.0), (80.0, -10.0, -24.0), (72.0, -45.0, -42.0), (45.0, -66.0, -56.0)),
    "T3": ((62.0, 28.0, -10.0), (88.0, 5.0, -26.0)),
}


def build_other_bones(grid: Grid, spine: Spine, patient: Patient, vertebrae: dict[str, Field]) -> list[Field]:
    """Distance fields of the unlabelled bones that touch `grid`, a joint space away from `vertebrae` (any subset)."""
    makers = (_skull(grid, spine, patient), _jaws(grid, spine, patient), _hyoid(grid, spine, patient))
    fields = [
        field for maker in (*makers, _ribs(grid, spine, patient), _shoulder(grid, spine, patient)) for field in maker
    ]
    for field in fields:
        for bone in vertebrae.values():
            if (common := overlap(field, bone)) is not None:
                mine, other = common
                field.d[mine] = torch.maximum(field.d[mine], JOINT_MM - bone.d[other])
    return fields


def _started(grid: Grid, pose: Pose, low, high, k: float) -> Field | None:
    """An empty field, or None if its box does not touch the grid; the box is given for a mean skeleton."""
    field = Field(grid, pose, tuple(k * v for v in low), tuple(k * v for v in high))
    return field if field.d.numel() else None


def _rod(field: Field, points, radii, k: float, stretch=(1.0, 1.0, 1.0), fillet: float = 2.0) -> None:
    """A chain of rods through `points` (mm of a mean skeleton) whose radius runs through `radii`."""
    for (a, b), (ra, rb) in zip(
        zip(points, points[1:], strict=False), zip(radii, radii[1:], strict=False), strict=True
    ):
        field.add(capsule(np.multiply(a, k), np.multiply(b, k), ra * k, rb * k, stretch), fillet)


def _mirrored(side: int, points) -> list[tuple[float, float, float]]:
    return [(side * x, y, z) for x, y, z in points]


def _ellipsoid(x, y, z, middle, half, k: float) -> torch.Tensor:
    """Roughly the distance (mm) to an ellipsoid of a mean skeleton scaled by `k`."""
    r = [(v - m * k) / (h * k) for v, m, h in zip((x, y, z), middle, half, strict=True)]
    return (torch.sqrt(r[0] ** 2 + r[1] ** 2 + r[2] ** 2) - 1.0) * (min(half) * k)


def vault(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, k: float) -> torch.Tensor:
    """Distance (mm) to the outside of the skull, in the frame of the skull."""
    main, fossae = ((x, *VAULT[0]), (x.abs(), *VAULT[1]))
    return smooth_min(*(_ellipsoid(side, y, z, middle, half, k) for side, middle, half in (main, fossae)), 10.0)


def mastoid(side: int, k: float) -> Primitive:
    """The part of a mastoid that holds air cells."""
    (mx, my, mz), half = MASTOID
    middle = np.array((side * mx, my, mz))

    def distance(x, y, z):
        return _ellipsoid(x, y, z, middle, half, k)

    return Primitive(distance, tuple(k * (middle - half)), tuple(k * (middle + half)))


def _cells(side: int, k: float) -> Primitive:
    """Air cells of a mastoid: a bent lattice of balls inside it, 2.5 mm under its surface."""
    solid = mastoid(side, k)

    def distance(x, y, z):
        bent = (
            x + 1.8 * torch.sin(0.62 * z + y / 3),
            y + 1.8 * torch.sin(0.55 * x + 1.0),
            z + 1.5 * torch.sin(0.7 * y + 2.0),
        )
        folded = [v - CELL_MM * torch.round(v / CELL_MM) for v in bent]
        ball = torch.sqrt(folded[0] ** 2 + folded[1] ** 2 + folded[2] ** 2) - 0.44 * CELL_MM
        return torch.maximum(0.55 * ball, solid.distance(x, y, z) + 2.0)

    return Primitive(distance, solid.low, solid.high)


def _skull(grid: Grid, spine: Spine, patient: Patient) -> Iterator[Field]:
    """Occiput with condyles and foramen magnum, clivus, temporal bones with mastoids and styloids, pterygoid plates."""
    k = patient.scale
    for side in (-1, 1):
        low, high = sorted((side * 28.0, side * 40.0))
        styloid = _started(grid, spine.skull, (low, -25.0, -20.0), (high, -2.0, 18.0), k)
        if styloid is not None:
            _rod(styloid, _mirrored(side, [(37, -5, 16), (34, -13, 0), (31, -21, -16)]), (1.9, 1.4, 0.9), k)
            yield styloid
    skull = _started(grid, spine.skull, (-74.0, -50.0, -2.0), (74.0, 94.0, 30.0), k)
    if skull is None:
        return

    def shell(x, y, z):
        return (vault(x, y, z, k) + VAULT_MM / 2).abs() - VAULT_MM / 2

    skull.add(Primitive(shell, (-74 * k, -45 * k, 7 * k), (74 * k, 100 * k, 60 * k)), 0.0)
    _rod(skull, [(0, 31, 11), (0, 60, 14), (0, 76, 26)], (3.5, 4.0, 6.0), k, stretch=(1.6, 1, 1), fillet=4.0)
    _rod(skull, [(0, -7, 16), (0, -22, 36)], (4.2, 6.0), k, stretch=(2.4, 1, 1), fillet=3.0)  # clivus
    for side in (-1, 1):
        skull.add(
            block((side * 18.0 * k, 0.5 * k, 11.5 * k), (6.2 * k, 10.5 * k, 6.0 * k), 3.5, slope_x=-0.3, skew=0.38), 4.0
        )
        _rod(skull, _mirrored(side, [(20, 10, 16), (30, 24, 13)]), (5.0, 4.0), k, fillet=4.0)  # jugular process
        skull.add(mastoid(side, k), 3.0)
        skull.carve(_cells(side, k), 0.3)
        _rod(skull, _mirrored(side, [(50, 2, 24), (13, -17, 27)]), (8.0, 6.0), k, fillet=4.0)  # petrous bone
        _rod(skull, _mirrored(side, [(13, -32, 24), (15, -36, 2)]), (1.4, 1.2), k, stretch=(1, 3.2, 1))
    skull.carve(capsule((0, 13.0 * k, -12.0), (0, 12.0 * k, 60.0), 14.2 * k, stretch=(1.0, 1.22, 1.0)), 2.0)
    for side in (-1, 1):  # canal of the carotid, hole of the jugular vein
        skull.carve(capsule((side * 25 * k, -8 * k, -5), (side * 26 * k, -8 * k, 40), 3.2 * k), 1.0)
        skull.carve(capsule((side * 29 * k, 4 * k, 4), (side * 28 * k, 2 * k, 40), 4.2 * k), 1.0)
    yield skull


def _jaws(grid: Grid, spine: Spine, patient: Patient) -> Iterator[Field]:
    """Right and left half of the mandible with ramus, condyle and sockets; hard palate with the upper sockets."""
    k = patient.scale
    for side in (-1, 1):
        low, high = (-2.0, -98.0, -52.0), (62.0, -4.0, 26.0)
        if side < 0:
            low, high = (-high[0], *low[1:]), (-low[0], *high[1:])
        jaw = _started(grid, spine.skull, low, high, k)
        if jaw is None:
            continue
        wall = _mirrored(side, [(48.5, -16, -8), (45.5, -44, -8)])
        jaw.add(plate(*np.multiply(wall, k), 24.0 * k, 2.9 * k), 1.5)
        jaw.carve(capsule(*np.multiply(_mirrored(side, [(30, -30, 20), (66, -30, 20)]), k), 8.5 * k), 1.0)
        _rod(jaw, _mirrored(side, [(47.5, -17, 6), (48, -14, 15)]), (3.0, 3.2), k)
        _rod(jaw, _mirrored(side, [(43, -14, 17), (54, -13, 18)]), (4.2, 3.8), k)
        _rod(jaw, _mirrored(side, [(47, -20, -28), (44, -42, -36)]), (3.8, 4.6), k, stretch=(1, 1, 1.3))
        for a, b in (
            ((44.5, -40, -33), (24, -68, -35)),
            ((24, -68, -35), (10, -86, -36)),
            ((10, -86, -36), (0, -89, -36)),
        ):
            jaw.add(plate(*np.multiply(_mirrored(side, [a, b]), k), 12.5 * k, 4.4 * k), 2.0)
        for x, y in TOOTH_PLACES + FRONT_TEETH:
            jaw.carve(_root(side * x, y, "lower", k, 0.35), 0.3)
        yield jaw
    palate = _started(grid, spine.skull, (-34.0, -94.0, -8.0), (34.0, -34.0, 16.0), k)
    if palate is None:
        return
    palate.add(block((0, -62.0 * k, 8.5 * k), (23.0 * k, 22.0 * k, 1.8 * k), 1.5), 1.5)
    for side in (-1, 1):
        row = ((28.5, -38, 1), (24.5, -58, 1), (16, -77, 1), (6, -87, 1), (0, -88, 1))
        for a, b in zip(row, row[1:], strict=False):
            palate.add(plate(*np.multiply(_mirrored(side, [a, b]), k), 8.0 * k, 4.6 * k), 2.0)
    for side in (-1, 1):
        for x, y in TOOTH_PLACES + FRONT_TEETH:
            palate.carve(_root(side * x, y, "upper", k, 0.35), 0.3)
    yield palate


def _root(x: float, y: float, row: str, k: float, grow: float = 0.0) -> Primitive:
    """The root of a tooth; `grow` mm wider for its socket."""
    way = 1.0 if row == "upper" else -1.0
    z = CROWN_Z[row]
    wide = 3.4 if y > -66.0 else 2.4
    a, b = (x * k, y * k, (z + 3.0 * way) * k), (x * k, (y + 1.5) * k, (z + 14.0 * way) * k)
    return capsule(a, b, wide * k + grow, 1.0 * k + grow)


def teeth(hu: torch.Tensor, grid: Grid, spine: Spine, patient: Patient) -> None:
    """Paint both rows of teeth into `hu`, in place: dentine roots (the jaws leave sockets for them), enamel crowns."""
    k = patient.scale
    if _started(grid, spine.skull, (-36.0, -96.0, -36.0), (36.0, -36.0, 8.0), k) is None:
        return
    for row, z in CROWN_Z.items():
        for n, (x, y) in enumerate(TOOTH_PLACES + FRONT_TEETH):
            half = (4.8, 4.9) if 2 <= n <= 4 else (3.6, 3.3)
            for side in (-1, 1):
                middle = np.array((side * x, y, z)) * k
                field = Field(grid, spine.skull, middle - [6, 6, 18], middle + [6, 6, 18])
                if not field.d.numel():
                    continue
                root = field.evaluate(_root(side * x, y, row, k), ...)
                crown = field.evaluate(block(middle, (half[0] * k, half[1] * k, 4.0 * k), 3.0), ...)
                core = mix(torch.full_like(crown, DENTINE_HU), ENAMEL_HU, coverage(-crown - 1.4, 0.8))
                own = mix(hu[field.slices], DENTINE_HU, coverage(root, grid.voxel_mm))
                hu[field.slices] = mix(own, core, coverage(crown, grid.voxel_mm))


def mastoid_air(hu: torch.Tensor, grid: Grid, spine: Spine, patient: Patient) -> None:
    """Paint the air that fills the cells of both mastoids into `hu`, in place; bone goes over it later."""
    for side in (-1, 1):
        solid = mastoid(side, patient.scale)
        field = Field(grid, spine.skull, solid.low, solid.high)
        if field.d.numel():
            inside = coverage(field.evaluate(solid, ...) + 1.5, grid.voxel_mm)
            hu[field.slices] = mix(hu[field.slices], AIR_HU + 100.0, inside)


def _hyoid(grid: Grid, spine: Spine, patient: Patient) -> Iterator[Field]:
    """A flat U with greater horns, and small lesser horns, at the height of C3/C4."""
    k = patient.scale
    hyoid = _started(grid, spine.poses["C4"], (-27.0, -48.0, -2.0), (27.0, -8.0, 20.0), k)
    if hyoid is None:
        return
    for side in (-1, 1):
        body = _mirrored(side, [(0, -41.5, 6), (7, -40.5, 6.5), (12, -37, 7)])
        _rod(hyoid, body, (2.0, 2.0, 1.7), k, stretch=(1, 1, 2.0), fillet=1.0)
        horn = _mirrored(side, [(12, -37, 7), (17, -28, 8), (20, -20, 10), (20.5, -15, 11)])
        _rod(hyoid, horn, (1.7, 1.3, 1.2, 1.6), k, stretch=(1, 1, 1.5), fillet=1.0)
        _rod(hyoid, _mirrored(side, [(11, -37, 9), (12, -35, 14)]), (1.2, 0.8), k, fillet=1.0)
    yield hyoid


def _ribs(grid: Grid, spine: Spine, patient: Patient) -> Iterator[Field]:
    """Heads, necks and arcs of the first to third ribs; the first is broad and flat."""
    k = patient.scale
    for name, arc in RIBS.items():
        s = spine.sizes[name]
        hip = ((s.width / 2 + 3.0) / k, (s.depth / 2 - 1.5) / k, 4.0)
        tubercle = ((s.transverse + 3.0) / k, (s.depth / 2 + 9.5) / k, 1.0)
        path = [hip, tubercle, *arc]
        low, high = np.min(path, axis=0) - 7.0, np.max(path, axis=0) + 7.0
        flat = (1.5, 1.5, 0.9) if name == "T1" else (1.0, 1.0, 1.5)
        for side in (-1, 1):
            rib = _started(
                grid,
                spine.poses[name],
                (min(side * low[0], side * high[0]), low[1], low[2]),
                (max(side * low[0], side * high[0]), high[1], high[2]),
                k,
            )
            if rib is not None:
                _rod(rib, _mirrored(side, path), (3.2, 3.2, 3.2, 3.3, 3.4, 3.8)[: len(path)], k, flat)
                yield rib


def _shoulder(grid: Grid, spine: Spine, patient: Patient) -> Iterator[Field]:
    """Collar bones and the upper end of the breastbone, in the frame of T2."""
    k = patient.scale
    pose = Pose(spine.poses["T2"].centre, spine.skull.rotation)
    for side in (-1, 1):
        path = [(15, -57, -22), (27, -60, -18), (52, -58, -8), (80, -42, 0), (100, -24, 4)]
        low, high = np.min(path, axis=0) - 9.0, np.max(path, axis=0) + 9.0
        xs = sorted((side * low[0], side * high[0]))
        bone = _started(grid, pose, (xs[0], low[1], low[2]), (xs[1], high[1], high[2]), k)
        if bone is not None:
            _rod(bone, _mirrored(side, path), (8.5, 6.2, 5.2, 5.2, 5.5), k)
            yield bone
    sternum = _started(grid, pose, (-26.0, -72.0, -62.0), (26.0, -50.0, -22.0), k)
    if sternum is not None:
        sternum.add(block((0, -60.0 * k, -46.0 * k), (22.0 * k, 5.5 * k, 20.0 * k), 4.0), 2.0)
        yield sternum
