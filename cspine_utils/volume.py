"""A CT volume, and how one voxel grid maps onto another.

Conventions (the same in the whole package)
-------------------------------------------
* Arrays are `(d, h, w)`: d = slices head -> feet, h = rows anterior -> posterior,
  w = columns patient right -> left, whatever order the files came in.
* An affine is 4x4 and takes a voxel index `(d, h, w, 1)` to RAS+ millimetres
  (x to the patient's right, y to the front, z to the head), as in nibabel.
* HU are int16, lengths are `_mm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np

#: Axis codes of every Volume: d runs to Inferior, h to Posterior, w to Left.
AXIS_CODES = ("I", "P", "L")


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie in the patient, without what is in them.

    Attributes
    ----------
    shape : number of voxels along (d, h, w)
    affine : float64 4x4, voxel `(d, h, w)` -> RAS+ mm
    """

    shape: tuple[int, int, int]
    affine: np.ndarray


@dataclass(frozen=True, eq=False)
class Volume:
    """CT intensities with their place in the patient.

    Attributes
    ----------
    hu : int16 `(d, h, w)`, Hounsfield units
    affine : float64 4x4, voxel `(d, h, w)` -> RAS+ mm
    file_names : the file of each slice, in slice order (head -> feet); empty if not read from files
    study_uid : the StudyInstanceUID, or ""
    left_out : what else lay in the folder: file name -> why it is not part of the volume
    """

    hu: np.ndarray
    affine: np.ndarray
    file_names: tuple[str, ...] = ()
    study_uid: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.hu.shape

    @property
    def grid(self) -> Grid:
        return Grid(self.hu.shape, self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along (d, h, w), in mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    def position_mm(self, index) -> np.ndarray:
        """RAS+ mm of voxel indices `(..., 3)` in the order (d, h, w)."""
        return nib.affines.apply_affine(self.affine, np.asarray(index, dtype=float))


def lps_to_ras(affine_lps: np.ndarray) -> np.ndarray:
    """DICOM counts mm to the patient's Left and Posterior, NIfTI to Right and Anterior."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps


def grid_map(source_affine: np.ndarray, target_affine: np.ndarray) -> np.ndarray:
    """The 4x4 that takes a voxel index of the source grid to a voxel index of the target grid."""
    return np.linalg.inv(target_affine) @ source_affine


def axis_permutation(mapping: np.ndarray, tolerance: float = 1e-2):
    """Read a grid map as a reordering of axes, or return None.

    Parameters
    ----------
    mapping : 4x4 from `grid_map`
    tolerance : how far each entry may be from 0 or +-1

    Returns
    -------
    None if the grids differ by more than permuted and reversed axes, otherwise
    `(order, reversed_axes)`: `np.flip(source.transpose(order), reversed_axes)` lies on the target's axes.
    The offset (column 3) is not judged here.
    """
    linear = mapping[:3, :3]
    nearest = np.round(linear)
    is_permutation = (np.abs(nearest).sum(axis=0) == 1).all() and (np.abs(nearest).sum(axis=1) == 1).all()
    if not is_permutation or np.abs(linear - nearest).max() > tolerance:
        return None
    order = tuple(int(np.argmax(np.abs(row))) for row in nearest)
    reversed_axes = tuple(axis for axis, source in enumerate(order) if nearest[axis, source] < 0)
    return order, reversed_axes


def describe_grid(shape, affine: np.ndarray) -> str:
    """One line on a voxel grid, for messages: shape, spacing, axis codes, first voxel's place."""
    spacing = " x ".join(f"{s:.3f}" for s in np.linalg.norm(affine[:3, :3], axis=0))
    origin = ", ".join(f"{v:.2f}" for v in affine[:3, 3])
    codes = "".join(code or "?" for code in nib.aff2axcodes(affine)) if np.isfinite(affine).all() else "undefined"
    size = " x ".join(str(n) for n in shape)
    return f"grid {size}, spacing {spacing} mm, axes {codes}, first voxel at RAS ({origin}) mm"
