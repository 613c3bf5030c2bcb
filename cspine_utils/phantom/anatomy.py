"""The vertebrae of a synthetic neck: seven cervical ones, T1 and T2.

Sizes are adult means in mm. C3-C7 bodies follow osteometric series (404-bone collection for widths; 164 C3-C6 bones
for endplates; Katz 1975 for heights), C1 two atlas series (Patel & Gupta; Rekha 2016), C2 dens morphometry
(Acharya 2021 and PMC3687901), canal depths Kim & Song 1975, disc heights a 1,000-adult CT series (PMC11225399).
What those series do not give (pillar and lamina shape, thoracic sizes) are textbook values.
The frames are those of `sdf`: local x to the left, y to the back, z to the head, origin at the body's centre
(C1: on the axis of the dens).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .sdf import Field, Grid, Pose, Primitive, block, capsule, clear, plate, rotation, smooth_max, smoothstep

BONES = ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "T1", "T2")

#: Joint space that is left between neighbouring bones, mm (facet joints show 2-3 mm on CT; textbook value).
JOINT_MM = 1.6


@dataclass(frozen=True)
class Size:
    """One vertebra in mm: body width, depth, height; disc below it; canal depth and width; spinous and transverse
    process length; spinous fall (mm per mm); slope of the facet joints against the horizontal (tangent)."""

    width: float
    depth: float
    height: float
    disc: float
    canal_depth: float
    canal_width: float
    spinous: float
    transverse: float
    spinous_fall: float
    facet_slope: float

    def scaled(self, factor: float) -> Size:
        """The same vertebra in a larger or smaller person (angles stay)."""
        lengths = (
            self.width,
            self.depth,
            self.height,
            self.disc,
            self.canal_depth,
            self.canal_width,
            self.spinous,
            self.transverse,
        )
        return Size(*(factor * v for v in lengths), self.spinous_fall, self.facet_slope)


SIZES: dict[str, Size] = {
    "C1": Size(38.0, 11.0, 16.0, 0.0, 30.0, 27.0, 3.0, 36.0, 0.0, 0.3),
    "C2": Size(21.0, 16.0, 20.0, 4.6, 16.5, 23.0, 16.0, 25.0, 0.30, 0.9),
    "C3": Size(23.5, 16.0, 13.2, 5.0, 14.6, 24.0, 12.0, 25.5, 0.35, 0.9),
    "C4": Size(24.2, 16.2, 12.8, 5.2, 14.4, 24.4, 12.5, 26.0, 0.38, 0.95),
    "C5": Size(25.2, 16.6, 12.6, 5.5, 14.6, 25.0, 15.0, 27.0, 0.42, 1.0),
    "C6": Size(26.4, 17.2, 13.0, 5.6, 14.8, 25.2, 20.0, 28.0, 0.45, 1.15),
    "C7": Size(28.0, 17.4, 14.4, 5.2, 14.8, 24.0, 27.0, 33.0, 0.50, 1.3),
    "T1": Size(29.5, 17.8, 16.2, 4.6, 15.0, 21.0, 29.0, 36.0, 0.60, 1.6),
    "T2": Size(28.5, 18.4, 17.4, 4.2, 15.0, 18.5, 28.0, 34.0, 0.75, 1.8),
}


@dataclass(frozen=True)
class Patient:
    """What differs between people; drawn once per study from its own random stream.

    Attributes
    ----------
    scale : size relative to the adult mean
    cobb_deg, slope_deg : C2-C7 lordosis (negative = kyphosis) and forward tilt of C7, lying on the table
    bend_deg, twist_deg, head_twist_deg : side bend and axial turn of the neck, extra turn of head and C1
    trabecular_hu, cortical_hu : bone density
    neck : width and depth of the neck relative to the mean
    jitter : `(9, 6)` relative changes per vertebra (width, depth, height, disc, canal, spinous)
    bifid : which of C2-C6 have a forked spinous tip
    """

    scale: float
    cobb_deg: float
    slope_deg: float
    bend_deg: float
    twist_deg: float
    head_twist_deg: float
    trabecular_hu: float
    cortical_hu: float
    neck: tuple[float, float]
    jitter: np.ndarray
    bifid: tuple[bool, ...]


def draw_patient(rng: np.random.Generator) -> Patient:
    """Sample a person. Lordosis N(11, 9) deg (Guo 2018: a third of healthy adults are not lordotic), bifid tips after
    Cho 2012 (> 70 % at C2-C5, about a third at C6), trabecular bone 150-430 HU falling with age; the rest textbook."""
    return Patient(
        scale=float(np.clip(rng.normal(1.0, 0.045), 0.9, 1.1)),
        cobb_deg=float(np.clip(rng.normal(11.0, 9.0), -8.0, 28.0)),
        slope_deg=float(np.clip(rng.normal(12.0, 4.0), 3.0, 20.0)),
        bend_deg=float(rng.normal(0.0, 1.8)),
        twist_deg=float(rng.normal(0.0, 2.5)),
        head_twist_deg=float(np.clip(rng.normal(0.0, 4.0), -9.0, 9.0)),
        trabecular_hu=float(rng.uniform(170.0, 400.0)),
        cortical_hu=float(rng.uniform(1150.0, 1500.0)),
        neck=(float(rng.normal(1.0, 0.06)), float(rng.normal(1.0, 0.06))),
        jitter=1.0 + np.clip(rng.normal(0.0, 0.035, (len(BONES), 6)), -0.09, 0.09),
        bifid=tuple(bool(b) for b in rng.random(5) < (0.8, 0.8, 0.75, 0.75, 0.35)),
    )


@dataclass(frozen=True)
class Spine:
    """Sizes and poses of the nine bones, in patient frame (mm); `skull` is the pose of the head."""

    sizes: dict[str, Size]
    poses: dict[str, Pose]
    skull: Pose

    def canal(self, name: str) -> np.ndarray:
        """LPS centre of the spinal canal at the mid-height of a vertebra."""
        size = self.sizes[name]
        back = 8.0 if name == "C1" else size.depth / 2 + size.canal_depth / 2
        return self.poses[name].to_patient([0.0, back, 0.0])


def build_spine(patient: Patient) -> Spine:
    """Stack the vertebrae from C7 upwards and downwards along the drawn curve; C7's centre is the frame's origin."""
    sizes = {}
    for name, jitter in zip(BONES, patient.jitter, strict=True):
        s = SIZES[name].scaled(patient.scale)
        w, d, h, disc, canal, spinous = jitter
        sizes[name] = Size(
            s.width * w,
            s.depth * d,
            s.height * h,
            s.disc * disc,
            s.canal_depth * canal,
            s.canal_width * canal,
            s.spinous * spinous,
            s.transverse * w,
            s.spinous_fall,
            s.facet_slope,
        )
    tilt = {"T2": patient.slope_deg + 1.0, "T1": patient.slope_deg + 2.0}
    for step, name in enumerate(BONES[6:0:-1]):  # C7 .. C2
        tilt[name] = patient.slope_deg - patient.cobb_deg * step / 5
    turn = {name: rotation(tilt[name], patient.bend_deg, patient.twist_deg) for name in tilt}
    centre = {"C7": np.zeros(3)}
    for below, above in zip(BONES[6:1:-1], BONES[5:0:-1], strict=True):
        centre[above] = centre[below] + _pitch(sizes, above, turn[above], below, turn[below])
    for above, below in (("C7", "T1"), ("T1", "T2")):
        centre[below] = centre[above] - _pitch(sizes, above, turn[above], below, turn[below])
    poses = {name: Pose(centre[name], turn[name]) for name in turn}
    head = rotation(tilt["C2"] * 0.5, patient.bend_deg, patient.twist_deg + patient.head_twist_deg)
    poses["C1"] = Pose(poses["C2"].to_patient([0.0, -1.0, patient.scale * 18.0]), head)
    skull = Pose(poses["C1"].centre, rotation(0.0, patient.bend_deg, patient.twist_deg + patient.head_twist_deg))
    return Spine(sizes, {name: poses[name] for name in BONES}, skull)


def _pitch(sizes, above, turn_above, below, turn_below) -> np.ndarray:
    disc = sizes[above].disc
    return turn_above[:, 2] * (sizes[above].height + disc) / 2 + turn_below[:, 2] * (sizes[below].height + disc) / 2


def body(size: Size, uncinate: float, lip: float) -> Primitive:
    """A vertebral body: kidney-shaped section, waist, uncinate processes on top, a lip at the lower front edge."""
    w, d, h = size.width / 2, size.depth / 2, size.height / 2

    def distance(x, y, z):
        side = x.abs()
        bowed = y - 0.010 * x * x + 0.6
        waist = 0.9 * (1.0 - (z / h) ** 2).clamp(min=0.0)
        qx, qy = side - (w - waist - 5.0), bowed.abs() - (d - 0.6 * waist - 5.0)
        flat = torch.sqrt(qx.clamp(min=0.0) ** 2 + qy.clamp(min=0.0) ** 2) + torch.maximum(qx, qy).clamp(max=0.0) - 5.0
        lateral = smoothstep((side / w - 0.48) / 0.46)
        top = h + uncinate * lateral * smoothstep((y / d + 0.9) / 0.8) - 0.8 * (1.0 - lateral)
        bottom = -h - lip * smoothstep((-y / d - 0.1) / 0.8) * (1.0 - lateral) + 2.2 * lateral + 0.6 * (1.0 - lateral)
        return smooth_max(flat, torch.maximum(z - top, bottom - z), 2.0) * 0.9

    return Primitive(distance, (-w - 1, -d - 2, -h - lip - 1), (w + 1, d + 3, h + uncinate + 1))


def canal(size: Size, centre_y: float, half_height: float) -> Primitive:
    """The spinal canal as a solid to carve: a rounded triangle, broad in front."""
    a, w = size.canal_depth / 2, size.canal_width / 2

    def distance(x, y, z):
        back = ((y - centre_y) / (2 * a) + 0.5).clamp(0.0, 1.0)
        qx, qy = x.abs() - (w * (1.0 - 0.42 * back * back) - 4.0), (y - centre_y).abs() - (a - 4.0)
        flat = torch.sqrt(qx.clamp(min=0.0) ** 2 + qy.clamp(min=0.0) ** 2) + torch.maximum(qx, qy).clamp(max=0.0) - 4.0
        return torch.maximum(flat * 0.9, z.abs() - half_height)

    return Primitive(distance, (-w, centre_y - a, -half_height), (w, centre_y + a, half_height))


def _arch(field: Field, s: Size, pillar_half: float, pillar_x: float, spinous_tip: float, bifid: bool) -> None:
    """Pillars, pedicles, laminae and spinous process, then the canal: common to C2-T2."""
    back = s.depth / 2 + s.canal_depth  # the spinolaminar line
    pillar_y = s.depth / 2 + 5.0
    low = -0.16 * s.height  # the arch sits a little below the body's centre
    for side in (-1, 1):
        x = side * pillar_x
        field.add(block((x, pillar_y, low), (5.9, 5.8, pillar_half), 2.0, slope_y=s.facet_slope), 1.5)
        field.add(
            capsule(
                (side * (s.width / 2 - 3), s.depth / 2 - 3.5, 1.0),
                (x - side, pillar_y - 1.5, 0.5),
                2.7,
                stretch=(1, 1, 1.35),
            ),
            2.0,
        )
        field.add(
            plate(
                (x - side * 1.5, pillar_y + 3.0, low - 1.0),
                (side * 1.2, back + 1.6, low - 2.0),
                0.40 * s.height + 0.6,
                1.9,
                shingle=0.35,
            ),
            2.0,
        )
    tip_z = low - 2.5 - s.spinous * s.spinous_fall
    end = (0.0, back + s.spinous, tip_z)
    field.add(capsule((0, back + 1.5, low - 2.5), end, 2.6, spinous_tip, stretch=(0.85, 1.0, 1.45)), 2.5)
    if bifid:
        for side in (-1, 1):
            field.add(capsule((0, end[1] - 3.0, tip_z), (side * 4.2, end[1] + 2.5, tip_z - 1.0), 2.3, 1.9), 1.5)
    else:
        field.add(capsule(end, (0.0, end[1] + 1.0, tip_z - 1.0), spinous_tip + 0.7), 1.5)
    field.carve(canal(s, s.depth / 2 + s.canal_depth / 2 + 0.3, s.height + 4), 1.5)


def _lateral_processes(field: Field, s: Size, pillar_x: float) -> None:
    """Transverse processes of C2-C7: front and back root, the bar between them, the hole for the vertebral artery."""
    hole_x, hole_y = s.width / 2 + 4.6, s.depth / 2 - 6.0
    for side in (-1, 1):
        front = (side * (s.transverse - 6.5), hole_y - 4.6, -1.5)
        rear = (side * s.transverse, hole_y + 5.5, -2.5)
        field.add(capsule((side * (s.width / 2 - 2.5), hole_y - 3.4, 0.5), front, 1.9, 2.2), 1.5)
        field.add(capsule((side * (pillar_x - 1), hole_y + 5.5, 0.0), rear, 2.5, 2.3), 1.5)
        field.add(capsule(front, rear, 2.0, 2.1), 1.5)
        field.carve(capsule((side * hole_x, hole_y, -12.0), (side * hole_x, hole_y, 12.0), 2.8), 0.8)


def _subaxial(field: Field, name: str, s: Size, pitch: float, bifid: bool) -> None:
    thoracic = name.startswith("T")
    pillar_x = s.canal_width / 2 + (3.0 if thoracic else 5.6)
    field.add(body(s, 1.0 if thoracic else 4.6, 0.8 if thoracic else 1.6), 0.0)
    if name in ("C3", "C4", "C5", "C6"):
        _lateral_processes(field, s, pillar_x)
    elif name == "C7":  # no front tubercle, long rear root, a small hole
        for side in (-1, 1):
            hole_x, hole_y = side * (s.width / 2 + 4.2), s.depth / 2 - 4.5
            tip = (side * s.transverse, hole_y + 4.5, -1.0)
            field.add(capsule((side * pillar_x, hole_y + 5.0, 0.0), tip, 3.0, 2.6), 1.5)
            field.add(
                capsule(
                    (side * (s.width / 2 - 2), hole_y - 2.6, 0.5),
                    (side * (s.transverse - 8), hole_y + 2.5, 0.0),
                    1.5,
                    1.7,
                ),
                1.5,
            )
            field.carve(capsule((hole_x, hole_y + 0.6, -12.0), (hole_x, hole_y + 0.6, 12.0), 1.9), 0.8)
    else:
        for side in (-1, 1):
            field.add(
                capsule(
                    (side * pillar_x, s.depth / 2 + 4.0, 0.0), (side * s.transverse, s.depth / 2 + 11.0, 2.0), 3.6, 3.2
                ),
                2.0,
            )
    _arch(field, s, pitch / 2 - 0.2, pillar_x, 2.3 if not thoracic else 2.6, bifid)


def _axis(field: Field, s: Size, scale: float, bifid: bool) -> None:
    """C2: body with the dens on top, sloping shoulders for C1, and a strong arch."""
    pillar_x = s.canal_width / 2 + 5.0
    field.add(body(s, 0.0, 2.2), 0.0)
    waist, top = s.height / 2 + 3.0, scale * 25.5
    field.add(capsule((0, -0.5, 2.0), (0, -0.5, waist), 6.2, 4.7), 3.0)
    field.add(capsule((0, -0.5, waist), (0, -1.0, top - 5.2), 4.6, 5.2), 1.5)
    for side in (-1, 1):
        field.add(block((side * 14.0, 1.5, 4.5), (7.8, 7.6, 3.4), 2.0, slope_x=0.42), 2.5)
        field.add(capsule((side * 13.5, 4.0, 2.0), (side * pillar_x, s.depth / 2 + 4.5, -4.0), 4.6, 4.8), 2.5)
    _lateral_processes(
        field,
        Size(
            s.width + 2,
            *[
                getattr(s, f)
                for f in (
                    "depth",
                    "height",
                    "disc",
                    "canal_depth",
                    "canal_width",
                    "spinous",
                    "transverse",
                    "spinous_fall",
                    "facet_slope",
                )
            ],
        ),
        pillar_x,
    )
    lower = Size(
        s.width,
        s.depth,
        14.0,
        s.disc,
        s.canal_depth,
        s.canal_width,
        s.spinous,
        s.transverse,
        s.spinous_fall,
        s.facet_slope,
    )
    _arch(field, lower, 6.2, pillar_x, 3.0, bifid)


def _atlas(field: Field, s: Size, scale: float) -> None:
    """C1: a ring of two lateral masses, front and rear arch, wide transverse processes."""
    k = scale
    arc = [(15.5, -5.0, 0.0), (9.0, -9.0, 0.0), (0.0, -10.3, 0.0)]
    rear = [(17.5, 9.5, 1.0), (16.5, 16.0, 2.0), (10.5, 22.5, 2.2), (0.0, 25.5, 2.0)]
    for side in (-1, 1):

        def at(p, side=side):
            return (side * p[0] * k, p[1] * k, p[2] * k)

        field.add(block(at((18.2, 1.5, 0.0)), (5.9 * k, 9.5 * k, 7.6 * k), 4.0, skew=0.38), 2.0)
        for a, b in zip(arc, arc[1:], strict=False):
            field.add(capsule(at(a), at(b), 2.5 * k, stretch=(1, 1, 1.7)), 1.5)
        radii = (3.2, 2.1, 2.5, 3.0)  # the groove of the vertebral artery thins the arch behind the lateral mass
        for (a, b), ra, rb in zip(zip(rear, rear[1:], strict=False), radii, radii[1:], strict=False):
            field.add(capsule(at(a), at(b), ra * k, rb * k, stretch=(1, 1, 1.45)), 1.5)
        field.add(capsule(at((21.0, -2.5, -1.0)), at((33.0, 3.0, -2.0)), 2.4 * k, 2.8 * k), 1.5)
        field.add(capsule(at((21.0, 8.0, -1.0)), at((33.5, 6.0, -2.0)), 2.4 * k, 3.0 * k), 1.5)
        hole = at((27.0, 3.0, 0.0))
        field.carve(capsule((hole[0], hole[1], -12.0), (hole[0], hole[1], 12.0), 3.1 * k), 0.8)
    field.add(capsule((0, -11.5 * k, -0.5), (0, -12.8 * k, -1.0), 2.4 * k, 2.0 * k), 1.5)
    field.add(capsule((0, 25.5 * k, 2.0), (0, 28.0 * k, 1.5), 2.8 * k, 2.2 * k), 1.5)


def build_vertebrae(grid: Grid, spine: Spine, patient: Patient) -> dict[str, Field]:
    """The distance fields of C1-T2 on their own parts of the grid, with joint spaces carved between neighbours."""
    fields = {}
    for i, name in enumerate(BONES):
        s, pose = spine.sizes[name], spine.poses[name]
        reach = s.depth / 2 + s.canal_depth + s.spinous + 6.0
        fall = s.spinous * s.spinous_fall + s.height / 2 + 12.0
        top = s.height / 2 + (20.0 if name == "C2" else 11.0)
        side = s.transverse + 5.0
        field = Field(grid, pose, (-side, -s.depth / 2 - 12.0, -fall), (side, reach, top))
        if name == "C1":
            _atlas(field, s, patient.scale)
        elif name == "C2":
            _axis(field, s, patient.scale, patient.bifid[0])
        else:
            above = spine.sizes[BONES[i - 1]]
            _subaxial(field, name, s, s.height + (above.disc + s.disc) / 2, name in BONES[1:6] and patient.bifid[i - 1])
        fields[name] = field
    for upper, lower in zip(BONES, BONES[1:], strict=False):
        clear(fields[upper], fields[lower], JOINT_MM)
    for upper, lower in zip(BONES, BONES[2:], strict=False):  # long spinous processes can pass a whole level
        clear(fields[upper], fields[lower], JOINT_MM)
    return fields
