"""The shape of the vertebrae C1-T3: where their parts lie, and the distance fields built from rounded primitives.

`layout` says where pedicle, pillar, lamina and processes of a vertebra are; bones, fractures, look-alikes and labels in
figures all take their places from it, so that a fracture of the lamina meets the lamina. Sizes come from `patient`.
Shapes of pillars, laminae and processes are textbook values.
Frames as in `sdf`: local x to the left, y to the back, z to the head, origin at the body's centre
(C1: axis of the dens).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .grid import Grid, smoothstep
from .patient import BONES, Patient, Size, Spine
from .sdf import Field, Primitive, box_of, capsule, clear, lump, plate, smooth_max

#: Joint space that is left between neighbouring bones, mm (facet joints show 2-3 mm on CT; textbook value).
JOINT_MM = 1.6


@dataclass(frozen=True)
class Layout:
    """Points of one vertebra in its local frame, mm, on the left side (mirror x for the right).

    Attributes
    ----------
    pedicle, pillar : middle of the pedicle; middle of the articular pillar (C1: lateral mass)
    pillar_half : half height of the pillar
    lamina : where the lamina leaves the pillar, and where it ends at the midline
    spinous : root and tip of the spinous process (C1: rear tubercle)
    transverse : tip of the transverse process (rear tubercle)
    foramen : (x, y) of the hole for the vertebral artery
    arch_y : y of the inner side of the arch at the midline (spinolaminar line)
    """

    pedicle: tuple[float, float, float]
    pillar: tuple[float, float, float]
    pillar_half: float
    lamina: tuple[tuple[float, float, float], tuple[float, float, float]]
    spinous: tuple[tuple[float, float, float], tuple[float, float, float]]
    transverse: tuple[float, float, float]
    foramen: tuple[float, float]
    arch_y: float


def layout(name: str, s: Size) -> Layout:
    """Where the parts of vertebra `name` of size `s` lie."""
    if name == "C1":
        k, rear = s.width / 38.0, _c1_rear(s)
        return Layout(
            pedicle=(0.0, 0.0, 0.0),
            pillar=(18.4 * k, 1.0, 0.0),
            pillar_half=8.2 * k,
            lamina=((17.0 * k, 10.0 * k, 1.0), (0.0, rear, 2.0)),
            spinous=((0.0, rear, 2.0), (0.0, rear + 3.5 * k, 1.5)),
            transverse=(34.0 * k, 5.5 * k, -2.5),
            foramen=(26.6 * k, 2.4 * k),
            arch_y=rear - 2.4 * k,
        )
    thoracic = name.startswith("T")
    half_width, back = s.width / 2, s.depth / 2
    arch = back + s.canal_depth
    low = -0.16 * s.height  # the arch sits a little below the body's centre
    pillar_x = s.canal_width / 2 + (4.0 if thoracic else 7.3)
    pillar = (pillar_x, back + 4.6, low)
    radius = s.foramen / 2
    foramen = (half_width + radius + 0.9, back - (4.0 if name == "C7" else 5.4))
    transverse = {
        "C2": (s.transverse, foramen[1] + radius + 2.2, -6.0),
        "C7": (s.transverse, foramen[1] + 5.5, -1.0),
    }.get(name, (s.transverse, back + 11.0, 2.0) if thoracic else (s.transverse, foramen[1] + radius + 2.7, -4.6))
    root_z = low - 2.5
    return Layout(
        pedicle=((half_width - 2.0 + pillar_x) / 2, back - 0.6, 0.8),
        pillar=pillar,
        pillar_half=0.5 * s.height + 3.0,
        lamina=((pillar_x - 1.6, pillar[1] + 3.4, low - 1.0), (1.2, arch + 1.6, low - 2.0)),
        spinous=((0.0, arch + 1.5, root_z), (0.0, arch + s.spinous, root_z - s.spinous * s.spinous_fall)),
        transverse=transverse,
        foramen=foramen,
        arch_y=arch,
    )


def _c1_rear(s: Size) -> float:
    """y of the middle of C1's rear arch at the midline: behind dens, joint and canal."""
    return s.canal_depth - 7.4 + 2.6


def _body(s: Size, uncinate: float, lip: float) -> Primitive:
    """A vertebral body: kidney-shaped section, waist, uncinate processes on top, a lip at the lower front edge."""
    w, d, h = s.width / 2, s.depth / 2, s.height / 2

    def distance(x, y, z):
        side = x.abs()
        bowed = y - 0.010 * x * x + 0.6
        waist = 1.8 * (1.0 - (z / h) ** 2).clamp(min=0.0)
        qx, qy = side - (w + 0.2 - waist - 5.0), bowed.abs() - (d + 0.1 - 0.6 * waist - 5.0)
        flat = torch.sqrt(qx.clamp(min=0.0) ** 2 + qy.clamp(min=0.0) ** 2) + torch.maximum(qx, qy).clamp(max=0.0) - 5.0
        lateral = smoothstep((side / w - 0.48) / 0.46)
        front = smoothstep((-y / d - 0.1) / 0.8)
        top = h + uncinate * lateral * smoothstep((y / d + 0.9) / 0.8) - 0.7 * (1.0 - lateral)
        bottom = -h - lip * front * (1.0 - lateral) + 1.8 * lateral + 0.5 * (1.0 - lateral)
        return smooth_max(flat, torch.maximum(z - top, bottom - z), 2.2) * 0.9

    return Primitive(distance, (-w - 1, -d - 2, -h - lip - 1), (w + 1, d + 3, h + uncinate + 1))


def _canal(s: Size, centre_y: float, half_height: float) -> Primitive:
    """The spinal canal as a solid to carve: a rounded triangle, broad in front."""
    a, w = s.canal_depth / 2, s.canal_width / 2

    def distance(x, y, z):
        back = ((y - centre_y) / (2 * a) + 0.5).clamp(0.0, 1.0)
        qx, qy = x.abs() - (w * (1.0 - 0.42 * back * back) - 4.0), (y - centre_y).abs() - (a - 4.0)
        flat = torch.sqrt(qx.clamp(min=0.0) ** 2 + qy.clamp(min=0.0) ** 2) + torch.maximum(qx, qy).clamp(max=0.0) - 4.0
        return torch.maximum(flat * 0.9, z.abs() - half_height)

    return Primitive(distance, (-w, centre_y - a, -half_height), (w, centre_y + a, half_height))


def _both(point, side: int) -> tuple[float, float, float]:
    return side * point[0], point[1], point[2]


def _arch(field: Field, s: Size, at: Layout, pillar_half: float, spinous_tip: float, bifid: bool) -> None:
    """Pillars, pedicles, laminae and spinous process, then the canal: common to C2-T3."""
    for side in (-1, 1):
        pillar = lump(_both(at.pillar, side), (6.9, 6.0, pillar_half), 4.0, slope_y=s.facet_slope, waist=0.8)
        field.add(pillar, 1.5)
        start = (side * (s.width / 2 - 3.0), s.depth / 2 - 3.5, 1.0)
        end = (side * (at.pillar[0] - 1.0), at.pillar[1] - 1.5, 0.5)
        field.add(capsule(start, end, 2.6, stretch=(1, 1, 1.35)), 2.0)
        field.add(plate(_both(at.lamina[0], side), _both(at.lamina[1], side), 0.42 * s.height + 0.8, 1.8, 0.38), 2.0)
    root, tip = at.spinous
    field.add(capsule(root, tip, 2.5, spinous_tip, stretch=(0.85, 1.0, 1.45)), 2.5)
    if bifid:
        for side in (-1, 1):
            fork = (side * 4.4, tip[1] + 2.2, tip[2] - 1.6)
            field.add(capsule((0, tip[1] - 3.5, tip[2] + 0.6), fork, 2.2, 1.8), 1.5)
    else:
        field.add(capsule(tip, (0.0, tip[1] + 1.0, tip[2] - 1.0), spinous_tip + 0.7), 1.5)
    field.carve(_canal(s, s.depth / 2 + s.canal_depth / 2, s.height + 4), 1.5)


def _transverse(field: Field, name: str, s: Size, at: Layout) -> None:
    """Transverse processes of C2-C6: two roots around the hole of the vertebral artery, two tubercles, a gutter."""
    (hole_x, hole_y), r = at.foramen, s.foramen / 2
    big = 0.6 if name == "C6" else 0.0  # the carotid tubercle
    for side in (-1, 1):
        front = (side * (hole_x + r + 1.7), hole_y - r - 1.9, -3.4)
        rear = _both(at.transverse, side)
        field.add(capsule((side * (s.width / 2 - 2.5), hole_y - r - 1.4, 0.2), front, 1.7, 2.1 + big), 1.5)
        field.add(capsule((side * (at.pillar[0] - 1.0), hole_y + r + 2.5, -0.5), rear, 2.5, 2.3), 1.5)
        field.add(capsule((front[0], front[1], -4.2), (rear[0] - side * 2.0, rear[1], rear[2] - 0.4), 1.7, 1.8), 1.2)
        field.carve(capsule((side * hole_x, hole_y, -12.0), (side * hole_x, hole_y, 12.0), s.foramen / 2), 0.5)


def _transverse_c7(field: Field, s: Size, at: Layout) -> None:
    """C7: no front tubercle, a long rear root, a small hole."""
    hole_x, hole_y = at.foramen
    for side in (-1, 1):
        field.add(capsule((side * at.pillar[0], hole_y + 5.4, 0.0), _both(at.transverse, side), 3.0, 2.6), 1.5)
        thin = (side * (s.width / 2 - 2.0), hole_y - 2.6, 0.5), (side * (s.transverse - 8.0), hole_y + 2.5, 0.0)
        field.add(capsule(*thin, 1.5, 1.7), 1.5)
        field.carve(
            capsule((side * hole_x, hole_y + 0.6, -12.0), (side * hole_x, hole_y + 0.6, 12.0), s.foramen / 2), 0.5
        )


def _subaxial(field: Field, name: str, s: Size, pitch: float, bifid: bool) -> None:
    at, thoracic = layout(name, s), name.startswith("T")
    field.add(_body(s, 1.0 if thoracic else 4.4, 0.8 if thoracic else 1.4), 0.0)
    if name == "C7":
        _transverse_c7(field, s, at)
    elif thoracic:
        for side in (-1, 1):
            root = (side * at.pillar[0], s.depth / 2 + 4.0, 0.0)
            field.add(capsule(root, _both(at.transverse, side), 3.6, 3.2), 2.0)
    else:
        _transverse(field, name, s, at)
    _arch(field, s, at, pitch / 2 + 1.2, 2.6 if thoracic else 2.2, bifid)


def _axis(field: Field, s: Size, scale: float, bifid: bool) -> None:
    """C2: body with the dens on top, sloping shoulders for C1, and a strong arch."""
    at, k = layout("C2", s), scale
    field.add(_body(s, 0.0, 2.2), 0.0)
    waist, top = s.height / 2 + 3.5 * k, s.height / 2 + 16.8 * k
    field.add(capsule((0, -0.5, 2.0), (0, -0.5, waist), 6.2 * k, 4.5 * k), 3.0)
    field.add(capsule((0, -0.5, waist), (0, -1.0, top - 5.0 * k), 4.4 * k, 5.0 * k, stretch=(1.0, 1.06, 1.0)), 1.5)
    for side in (-1, 1):
        shoulder = lump((side * 14.2 * k, 0.8, 4.0), (8.6 * k, 8.6 * k, 4.2), 2.8, slope_x=0.46)
        field.add(shoulder, 2.5)
        field.add(capsule((side * 13.0 * k, 3.5, 1.5), (side * at.pillar[0], s.depth / 2 + 4.0, -4.5), 4.4, 4.6), 2.5)
    _transverse(field, "C2", replace(s, width=s.width + 2.0), at)
    _arch(field, replace(s, height=14.0), at, 6.0, 3.0, bifid)


def _lateral_mass(centre, half, flare: float, skew: float) -> Primitive:
    """C1's lateral mass: a rounded wedge, taller at its outer side, with a hollow upper facet; `skew` leads it back."""
    cx, cy, cz = centre
    hx, hy, hz = half
    way, radius = (1.0 if cx > 0 else -1.0), 4.4

    def distance(x, y, z):
        out_x = way * (x - cx) - skew * (y - cy)
        hollow = 1.3 * (1.0 - (out_x / hx) ** 2 - ((y - cy) / hy) ** 2).clamp(min=0.0)
        tall = hz + flare * out_x
        qx, qy = out_x.abs() - (hx - radius), (y - cy).abs() - (hy - radius)
        qz = torch.maximum(z - cz - tall + hollow, cz - z - 0.9 * tall) + radius
        far = torch.sqrt(qx.clamp(min=0.0) ** 2 + qy.clamp(min=0.0) ** 2 + qz.clamp(min=0.0) ** 2)
        return (far + torch.maximum(qx, torch.maximum(qy, qz)).clamp(max=0.0) - radius) * 0.88

    reach = (hx + abs(skew) * hy, hy, hz + flare * hx)
    return Primitive(
        distance,
        tuple(c - g for c, g in zip(centre, reach, strict=True)),
        tuple(c + g for c, g in zip(centre, reach, strict=True)),
    )


def _atlas(field: Field, s: Size) -> None:
    """C1: a ring of two lateral masses, front and rear arch, wide transverse processes."""
    k, rear_y, at = s.width / 38.0, _c1_rear(s), layout("C1", s)
    front = [(15.0 * k, -5.0, 0.0), (10.5 * k, -8.4, 0.0), (5.0 * k, -10.0, 0.0), (0.0, -10.4, 0.0)]
    rear = [(17.6 * k, 9.0, 0.8), (17.6 * k, 14.0, 1.8), (14.6 * k, 0.80 * rear_y, 2.2)]
    rear += [(8.0 * k, 0.95 * rear_y, 2.2), (0.0, rear_y, 2.0)]
    thick = (3.2, 2.1, 2.4, 2.6, 3.0)  # the groove of the vertebral artery thins the arch behind the lateral mass
    for side in (-1, 1):
        field.add(_lateral_mass(_both(at.pillar, side), (6.4 * k, 9.2 * k, 7.0 * k), 0.22, 0.34), 2.0)
        for a, b in zip(front, front[1:], strict=False):
            field.add(capsule(_both(a, side), _both(b, side), 2.3 * k, stretch=(1, 1, 1.85)), 2.5)
        for i, (a, b) in enumerate(zip(rear, rear[1:], strict=False)):
            field.add(capsule(_both(a, side), _both(b, side), thick[i] * k, thick[i + 1] * k, stretch=(1, 1, 1.5)), 2.5)
        tip = _both(at.transverse, side)
        field.add(
            capsule((side * 21.0 * k, -3.0, -1.0), (tip[0] - side * 2.0, tip[1] - 3.0, tip[2]), 2.2 * k, 2.6 * k), 1.5
        )
        field.add(capsule((side * 21.0 * k, 7.5, -1.0), tip, 2.3 * k, 2.9 * k), 1.5)
        x, y = side * at.foramen[0], at.foramen[1]
        field.carve(capsule((x, y, -12.0), (x, y, 12.0), s.foramen / 2), 0.5)
    field.add(capsule((0, -11.6, -0.5), (0, -12.8, -1.0), 2.4 * k, 2.0 * k), 1.5)
    field.add(capsule(*at.spinous, 2.8 * k, 2.2 * k), 1.5)


def reach(name: str, s: Size) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """A local box (mm) that holds the whole vertebra, broken or not."""
    side = s.transverse + 5.0
    fall = s.spinous * s.spinous_fall + s.height / 2 + 10.0
    top = s.height / 2 + (20.0 if name == "C2" else 11.0)
    if name == "C1":
        return (-38.0 * s.width / 38.0 - 4.0, -20.0, -14.0), (38.0 * s.width / 38.0 + 4.0, _c1_rear(s) + 12.0, 15.0)
    return (-side, -s.depth / 2 - 8.0, -fall), (side, s.depth / 2 + s.canal_depth + s.spinous + 9.0, top)


def build_vertebrae(grid: Grid, spine: Spine, patient: Patient, reshape=lambda name, field: None) -> dict[str, Field]:
    """The distance fields of the vertebrae that `grid` can show, with joint spaces carved between neighbours.

    Parameters
    ----------
    grid : a study's grid, or a part of it; a part shows exactly what the whole shows there
    reshape : called with each name and field before the joints are carved; adds or takes away bone
    """
    fields = {}
    for i, name in enumerate(BONES):
        s, pose = spine.sizes[name], spine.poses[name]
        box = reach(name, s)
        if any(part.stop <= part.start for part in box_of(grid, pose, *box)):
            continue
        field = fields[name] = Field(grid, pose, *box)
        if name == "C1":
            _atlas(field, s)
        elif name == "C2":
            _axis(field, s, patient.scale, patient.bifid[0])
        else:
            above = spine.sizes[BONES[i - 1]]
            pitch = s.height + (above.disc + s.disc) / 2
            _subaxial(field, name, s, pitch, name in BONES[1:6] and patient.bifid[i - 1])
        reshape(name, field)
    for step in (1, 2):  # long spinous processes can pass a whole level
        for upper, lower in zip(BONES, BONES[step:], strict=False):
            if upper in fields and lower in fields:
                clear(fields[upper], fields[lower], JOINT_MM)
    return fields
