"""Label maps as solid bones: what an anatomist's photograph would show, with pointers to the parts.

The view is parallel (no perspective), so millimetres stay millimetres. Every label is softened by itself and drawn
where it is half bone, half not; its slope there is the direction that the surface faces. Two lamps, the shade of
nearby bone and a darkened outline do the rest.

Directions are those of the patient, in DICOM's LPS mm: x to the left, y to the back, z to the head. A view is named
by where its viewer stands: `azimuth_deg` 0 = in front of the patient, 90 = at the patient's left, 180 = behind;
`elevation_deg` 90 = above the head, -90 = below the feet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from scipy.special import ndtr

from cspine_utils.anatomy import LEVELS
from cspine_utils.phantom.vertebrae import layout
from cspine_utils.volume import lps_to_ras

#: Where the viewer stands: (azimuth, elevation) in degrees. From above and from below the patient's front is up.
STANDPOINTS = {
    "front": (0, 0), "left": (90, 0), "back": (180, 0), "right": (270, 0), "above": (180, 90), "below": (0, -90),
}  # fmt: skip

BONE_COLOUR = "#E9DCC3"

#: Lamps in the viewer's frame (right, up, toward the viewer) with their strength: one over the left shoulder, one weak.
LAMPS = (((-0.45, 0.60, 0.66), 0.76), ((0.75, -0.10, 0.65), 0.26))
_AMBIENT, _STEP_MM, _HALF = 0.33, 0.4, 0.5


@dataclass(frozen=True, eq=False)
class Solid:
    """Softened labels on cubes of equal edge.

    Attributes
    ----------
    field : float32 `(d, h, w)`, share of bone: 1 inside, 0 outside, 0.5 on the surface
    labels : uint8 `(d, h, w)`, label of the bone that is nearest, 0 far from all
    affine : 4x4, voxel (d, h, w) -> LPS mm
    edge_mm : edge of a voxel
    """

    field: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    edge_mm: float


@dataclass(frozen=True, eq=False)
class Plane:
    """A cut through the bones: what lies on the side that `normal` points to is taken away. LPS mm."""

    point: tuple[float, float, float]
    normal: tuple[float, float, float]

    def inside_mm(self, lps: torch.Tensor) -> torch.Tensor:
        """How far points `(..., 3)` lie on the side that is kept, mm; negative where the bone is taken away."""
        normal = torch.tensor(self.normal, dtype=torch.float32)
        return (torch.tensor(self.point, dtype=torch.float32) - lps) @ (normal / normal.norm())


@dataclass(frozen=True, eq=False)
class View:
    """A picture of a solid and how points of the patient get onto it.

    Attributes
    ----------
    picture : float `(rows, columns, 3)`, RGB 0-1
    labels : uint8 `(rows, columns)`, label that is seen, 0 = background
    depth_mm : float `(rows, columns)`, how far toward the viewer the seen point lies; -inf on the background
    pixel_mm : edge of a pixel
    axes : 3x3, rows are the directions right, up and toward the viewer in LPS
    corner_mm : (right, up) coordinates of the centre of pixel (row 0, column 0)
    """

    picture: np.ndarray
    labels: np.ndarray
    depth_mm: np.ndarray
    pixel_mm: float
    axes: np.ndarray
    corner_mm: tuple[float, float]

    def project(self, lps) -> np.ndarray:
        """LPS mm `(..., 3)` -> (column, row) in pixels `(..., 2)`."""
        right, up, _ = np.moveaxis(np.asarray(lps, float) @ self.axes.T, -1, 0)
        return np.stack([right - self.corner_mm[0], self.corner_mm[1] - up], axis=-1) / self.pixel_mm

    def shows(self, lps, within_mm: float = 9.0) -> np.ndarray:
        """True for points `(..., 3)` that no bone hides: what is seen there lies at most `within_mm` before them."""
        at = np.round(self.project(lps)).astype(int)
        last = np.array(self.labels.shape[::-1]) - 1
        column, row = np.moveaxis(at.clip(0, last), -1, 0)
        inside = ((at >= 0) & (at <= last)).all(axis=-1)
        return inside & (self.depth_mm[row, column] <= np.asarray(lps, float) @ self.axes[2] + within_mm)

    def side_letters(self) -> dict[str, str]:
        """Letters for the left, right, top and bottom side of the picture, e.g. R, L, H, F from the front."""
        right, up = (_letter(axis) for axis in self.axes[:2])
        left, down = (_letter(-axis) for axis in self.axes[:2])
        return {"left": left, "right": right, "top": up, "bottom": down}


def _letter(direction: np.ndarray) -> str:
    axis = int(np.abs(direction).argmax())
    return ("RL", "AP", "FH")[axis][int(direction[axis] > 0)]


def soften(mask: np.ndarray, affine: np.ndarray, *, labels=None, edge_mm=0.5, blur_mm=0.65) -> Solid:
    """Turn a label map into smooth solids.

    Parameters
    ----------
    mask : integer `(d, h, w)`, 0 = nothing
    affine : 4x4, voxel (d, h, w) -> RAS+ mm, without shear
    labels : which labels to keep; None keeps all
    edge_mm : edge of the new voxels
    blur_mm : standard deviation of the softening; never below 0.85 voxels of the mask, which would show its steps
    """
    kept = [i for i in np.unique(mask) if i and (labels is None or i in labels)]
    if not kept:
        raise ValueError(f"the mask holds none of the labels {labels}: nothing to show")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    places = np.argwhere(np.isin(mask, kept))
    margin = np.ceil(3.0 / spacing)
    low, high = places.min(axis=0) - margin, places.max(axis=0) + margin
    shape = np.ceil((high - low) * spacing / edge_mm).astype(int) + 1
    field, nearest = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for label in kept:
        inside = mask == label
        spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
        own = [slice(s[0], s[-1] + 1) for s in spans]
        box, soft = [], inside[tuple(own)].astype(np.float32)
        for axis in range(3):
            first = max(int((own[axis].start - margin[axis] - low[axis]) * spacing[axis] / edge_mm), 0)
            last = int((own[axis].stop + margin[axis] - low[axis]) * spacing[axis] / edge_mm)
            box.append(slice(first, min(last, shape[axis])))
            at = low[axis] + np.arange(box[-1].start, box[-1].stop) * edge_mm / spacing[axis] - own[axis].start
            soft = _blurred_at(soft, axis, at, max(blur_mm / spacing[axis], 0.85))
        box = tuple(box)
        nearest[box][soft > field[box]] = label
        np.maximum(field[box], soft, out=field[box])
    to_lps = lps_to_ras(affine)  # the same two signs lead back
    to_lps = to_lps @ np.diag([*(edge_mm / spacing), 1.0]) + np.outer(to_lps @ [*low, 0.0], [0, 0, 0, 1])
    return Solid(field, nearest, to_lps, float(edge_mm))


def _blurred_at(values: np.ndarray, axis: int, at: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur along one axis, read at the places `at`; `at` and `sigma` in voxels of that axis, 0 beyond it."""
    edges = (np.arange(values.shape[axis] + 1)[None] - 0.5 - at[:, None]) / sigma
    weights = np.diff(ndtr(edges), axis=1).astype(np.float32)
    return np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)


def axes_of(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """3x3, rows: the directions right, up and toward the viewer, in LPS."""
    a, e = np.deg2rad([azimuth_deg, elevation_deg])
    toward = np.array([np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)])
    up = np.array([-np.sin(a) * np.sin(e), np.cos(a) * np.sin(e), np.cos(e)])
    return np.stack([np.cross(up, toward), up, toward])


def look(
    solid: Solid,
    azimuth_deg: float,
    elevation_deg: float,
    *,
    colours: dict[int, str] | None = None,
    background: str = "white",
    pixel_mm: float = 0.4,
    remove: Plane | None = None,
) -> View:
    """The solid as seen from one side.

    Parameters
    ----------
    solid : from `soften`
    azimuth_deg, elevation_deg : where the viewer stands, see the head of this file and `STANDPOINTS`
    colours : label -> colour; labels without one look like bone
    background : a colour
    pixel_mm : edge of a pixel
    remove : what lies beyond this plane is cut away; the cut faces are paler
    """
    axes = axes_of(azimuth_deg, elevation_deg)
    with torch.no_grad():
        scene = _Scene(solid, remove)
        start, stop, corner, shape = _reach(solid, axes, pixel_mm / 2, remove)
        points, seen = _march(scene, axes, start, stop, corner, pixel_mm / 2)
        normals = scene.normals(points)
        shade = _lit(normals, axes) * scene.open_sky(points, normals)[:, None]
        cut = scene.cut(points)
        labels = scene.label(points - 0.6 * normals)
        rgb = _albedo(labels, cut, colours or {}) * shade
        facing = (normals @ torch.from_numpy(axes[2]).float()).clamp(0, 1)
        outline = (1 - facing)[:, None] ** 3
        dark = sum(to_rgb(background)) < 1.5
        rgb = rgb + 0.35 * outline if dark else rgb * (1 - 0.45 * outline)

    picture = np.broadcast_to(np.array(to_rgb(background)), (*shape, 3)).copy()
    seen_labels, depth = np.zeros(shape, np.uint8), np.full(shape, -np.inf)
    rows, columns = seen.numpy().T
    picture[rows, columns] = rgb.clamp(0, 1).numpy()
    seen_labels[rows, columns] = labels.numpy()
    depth[rows, columns] = points.numpy() @ axes[2]
    smooth = picture.reshape(shape[0] // 2, 2, shape[1] // 2, 2, 3).mean(axis=(1, 3))  # soft outlines
    corner = (corner[0] + pixel_mm / 4, corner[1] - pixel_mm / 4)
    return View(smooth, seen_labels[::2, ::2], depth[::2, ::2], pixel_mm, axes, corner)


class _Scene:
    """The solid, read at points `(n, 3)` of the patient (LPS mm)."""

    def __init__(self, solid: Solid, remove: Plane | None):
        self.solid, self.remove = solid, remove
        self.field = torch.from_numpy(solid.field)
        self.to_index = torch.from_numpy(np.linalg.inv(solid.affine)).float()
        coarse = F.avg_pool3d(self.field[None, None], 4, ceil_mode=True, count_include_pad=False)
        if remove is not None:
            index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in coarse.shape[2:]), indexing="ij"), dim=-1)
            lps = (index * 4 + 1.5) @ torch.from_numpy(solid.affine[:3, :3].T).float() + torch.from_numpy(
                solid.affine[:3, 3]
            ).float()
            coarse = coarse * (remove.inside_mm(lps) > 0)
        # share of bone around a point, in cubes of 3, 5 and 7 coarse voxels
        self.around = [F.avg_pool3d(coarse, n, stride=1, padding=n // 2) for n in (3, 5, 7)]

    def _index(self, lps: torch.Tensor) -> torch.Tensor:
        return lps @ self.to_index[:3, :3].T + self.to_index[:3, 3]

    def _read(self, field: torch.Tensor, lps: torch.Tensor) -> torch.Tensor:
        size = torch.tensor(self.field.shape, dtype=torch.float32)
        at = ((2 * self._index(lps) + 1) / size - 1).flip(-1)  # grid_sample wants (w, h, d) from -1 to 1
        return F.grid_sample(field, at[None, :, None, None], align_corners=False)[0, 0, :, 0, 0]

    def bone(self, lps: torch.Tensor) -> torch.Tensor:
        """Share of bone, `(n,)`; it falls to nothing within a voxel of the cut."""
        share = self._read(self.field[None, None], lps)
        return share if self.remove is None else torch.minimum(share, _HALF + self.remove.inside_mm(lps))

    def cut(self, lps: torch.Tensor) -> torch.Tensor:
        """True where a point lies on the cut face, `(n,)`."""
        if self.remove is None:
            return torch.zeros(len(lps), dtype=torch.bool)
        return self.remove.inside_mm(lps) < 0.15

    def normals(self, lps: torch.Tensor, reach_mm: float = 1.1) -> torch.Tensor:
        """Unit vectors that point out of the bone, `(n, 3)`."""
        slope = torch.stack([self.bone(lps + reach_mm * e) - self.bone(lps - reach_mm * e) for e in torch.eye(3)], -1)
        return -F.normalize(slope, dim=-1)

    def open_sky(self, lps: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
        """1 where nothing stands in front of the surface, less in hollows and behind other bone, `(n,)`."""
        near, wide, far = (
            self._read(share, lps + cubes * self.solid.edge_mm * normals)
            for share, cubes in zip(self.around, (6, 10, 16), strict=True)
        )
        return 1 - 0.8 * (0.9 * near + 0.9 * wide + 0.7 * far).clamp(0, 1)

    def label(self, lps: torch.Tensor) -> torch.Tensor:
        """Label of the nearest voxel, `(n,)`."""
        last = torch.tensor(self.field.shape) - 1
        at = torch.minimum(self._index(lps).round().long().clamp(min=0), last)
        return torch.from_numpy(self.solid.labels)[tuple(at.T)]


def _reach(solid: Solid, axes: np.ndarray, pixel_mm: float, remove: Plane | None):
    """Between which depths bone can be met behind each pixel: `(start, stop, corner_mm, shape)`, shape of even numbers.

    `start` and `stop` are `(rows, columns)` tensors of coordinates toward the viewer in mm; start < stop where there is
    nothing. Every second voxel that holds some bone is thrown on a coarse picture, which is then widened.
    """
    places = np.argwhere(solid.field[::2, ::2, ::2] > 0.15) * 2
    lps = places @ solid.affine[:3, :3].T + solid.affine[:3, 3]
    if remove is not None:
        lps = lps[remove.inside_mm(torch.from_numpy(lps).float()).numpy() > -1.5]
    right, up, toward = axes @ lps.T
    coarse = 4 * solid.edge_mm
    corner = (right.min() - 3.0, up.max() + 3.0)
    shape = (int((corner[1] - up.min() + 3.0) / coarse) + 1, int((right.max() + 3.0 - corner[0]) / coarse) + 1)
    row, column = ((corner[1] - up) / coarse).astype(int), ((right - corner[0]) / coarse).astype(int)
    cell = torch.from_numpy(row * shape[1] + column)
    far_away = torch.full((shape[0] * shape[1],), -1e6)
    nearest, farthest = (
        far_away.scatter_reduce(0, cell, torch.from_numpy(sign * toward).float(), "amax").reshape(1, 1, *shape)
        for sign in (1, -1)
    )
    start, stop = (F.max_pool2d(depth, 3, stride=1, padding=1)[0, 0] for depth in (nearest, farthest))
    size = tuple(int(n * coarse / pixel_mm) // 2 * 2 for n in shape)
    pick = [(torch.arange(n) * pixel_mm / coarse).long() for n in size]
    start, stop = (depth[pick[0]][:, pick[1]] for depth in (start + 1.5, -stop - 1.5))
    return start, stop, (float(corner[0]), float(corner[1])), size


def _march(scene: _Scene, axes: np.ndarray, start: torch.Tensor, stop: torch.Tensor, corner, pixel_mm: float):
    """Follow each line of sight to where it enters bone: points `(n, 3)`, LPS mm, and pixels (row, column) `(n, 2)`."""
    frame = torch.from_numpy(axes).float()
    pixels = torch.nonzero(start > stop)
    depth, end = start[start > stop], stop[start > stop]
    column, row = corner[0] + pixel_mm * pixels[:, 1:], corner[1] - pixel_mm * pixels[:, :1]
    base = column * frame[0] + row * frame[1]
    before = torch.zeros(len(depth))
    points, seen = [], []
    while len(depth):
        share = scene.bone(base + depth[:, None] * frame[2])
        hit = share >= _HALF
        back = _STEP_MM * ((share - _HALF) / (share - before).clamp(min=1e-6)).clamp(0, 1)
        points.append((base + (depth + back)[:, None] * frame[2])[hit])
        seen.append(pixels[hit])
        on = ~hit & (depth > end)
        base, pixels, before, end, depth = base[on], pixels[on], share[on], end[on], depth[on] - _STEP_MM
    return torch.cat(points), torch.cat(seen)


def _lit(normals: torch.Tensor, axes: np.ndarray) -> torch.Tensor:
    """Light that each surface sends back, `(n, 1)`: all-round light and the two lamps."""
    frame = torch.from_numpy(axes).float()
    light = torch.full((len(normals),), _AMBIENT)
    for direction, strength in LAMPS:
        light = light + strength * (normals @ F.normalize(torch.tensor(direction) @ frame, dim=0)).clamp(min=0)
    return light[:, None]


def _albedo(labels: torch.Tensor, cut: torch.Tensor, colours: dict[int, str]) -> torch.Tensor:
    """Colour of each point before light falls on it, `(n, 3)`; cut faces are mixed with white."""
    table = np.array([to_rgb(colours.get(i, BONE_COLOUR)) for i in range(256)], np.float32)
    own = torch.from_numpy(table)[labels.long()]
    return torch.where(cut[:, None], 0.45 * own + 0.55, own)


def vertebra_parts(level: str, size) -> dict[str, np.ndarray]:
    """Where the parts of a vertebra of the phantom lie: name -> `(n, 3)` local mm, one row a side (left first).

    `size` is the `Size` of the level; local x to the left, y to the back, z to the head, from the centre of the body
    (C1: from the middle of the dens). Holes (canal, foramen) are given by their middle.
    """
    at = layout(level, size)
    root, tip = (np.array(p) for p in at.spinous)
    middle = {"vertebral canal": (0, at.arch_y - size.canal_depth / 2, 0)}
    pairs = {
        "transverse process": np.array(at.transverse) - [1.5, 0.5, 0],
        "transverse foramen": (*at.foramen, 0),
        "lamina": np.mean(at.lamina, axis=0) + [0.5, 0.8, 0],
        "pedicle": at.pedicle,
        "articular pillar": at.pillar,
    }
    if level == "C1":
        pairs = {"lateral mass": at.pillar} | {name: pairs[name] for name in list(pairs)[:2]}
        middle |= {"anterior arch": (0, -11, 0), "posterior arch": root}
    else:
        middle |= {"body": (0, -size.depth / 6, 0), "spinous process": root + 0.6 * (tip - root)}
    if level == "C2":
        middle["dens"] = (0, -0.5, size.height / 2 + 10)
        pairs["facet for C1"] = (14, 1.5, 7)
        del pairs["articular pillar"]
    elif level in ("C3", "C4", "C5", "C6"):
        pairs["uncinate process"] = (size.width / 2 - 2, 0.25 * size.depth, size.height / 2 + 1.5)
    both = {name: [p, np.array(p) * [-1, 1, 1]] for name, p in pairs.items()}
    return {name: np.array(p, float) for name, p in ({n: [p] for n, p in middle.items()} | both).items()}


def neck_parts(plan) -> dict[str, dict[str, np.ndarray]]:
    """The named parts of C1-C7 of a `phantom.StudyPlan`: level -> part -> LPS mm `(n, 3)`, as scanned."""
    spine = plan.spine
    return {
        level: {
            name: plan.grid.scanned(spine.poses[level].to_patient(local))
            for name, local in vertebra_parts(level, spine.sizes[level]).items()
        }
        for level in LEVELS
    }
