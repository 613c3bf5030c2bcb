"""Networks that give every voxel one of eight classes: 0 = no cervical vertebra, 1-7 = C1-C7.

* `UNet2D`: EfficientNetV2 (or another timm encoder) + U-Net, segmentation-models-pytorch. It reads neighbouring
  slices as channels, `(b, n, h, w)`, and labels the middle one, `(b, 8, h, w)`.
* `UNet3D`: MONAI's 3D U-Net on patches, `(b, 1, d, h, w)` -> `(b, 8, d, h, w)`.

Both work on a grid of their own, `spacing_mm` a voxel; `segment` brings volumes there and labels back.

Sources: Ronneberger et al. 2015, arXiv 1505.04597 (U-Net); Cicek et al. 2016, arXiv 1606.06650 (3D); the two
libraries named above, which this course uses as they are.
"""

from __future__ import annotations

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from cspine_utils.errors import ModelError
from cspine_utils.models.base import check_counts, refused
from cspine_utils.objectives import CLASSES

#: Grids of a U-Net must be halved this many times.
_HALVINGS_2D, _HALVINGS_3D = 5, 4


class Segmenter(nn.Module):
    """Base class: scaled HU on a grid -> logits of eight classes on the same grid.

    Attributes
    ----------
    config : the constructor's arguments
    spacing_mm : size of a voxel of the grid, the same along all axes
    patch : what one step sees, `(h, w)` or `(d, h, w)`, in voxels
    multiple : every side of a patch is a multiple of this
    neighbours : slices that one input shows (1 for volumes)
    plane : the plane of the slices, or None for volumes
    encoder : name of the part that reads the images, for tables
    """

    PRESETS: dict[str, dict] = {}
    STAGES: dict[str, str] = {}
    plane: str | None = None
    neighbours: int = 1

    def __init__(self, config: dict, *, multiple: int, axes: int):
        super().__init__()
        name = type(self).__name__
        self.config, self.multiple = config, multiple
        if not isinstance(config["patch"], tuple | list):
            raise refused(name, "patch", found=repr(config["patch"]), expected=f"{axes} sides in voxels")
        self.spacing_mm, self.patch = config["spacing_mm"], tuple(config["patch"])
        is_number = isinstance(self.spacing_mm, int | float) and not isinstance(self.spacing_mm, bool)
        if not is_number or not 0 < self.spacing_mm < float("inf"):
            raise refused(name, "spacing_mm", found=repr(self.spacing_mm), expected="millimetres, above 0")
        if len(self.patch) != axes or any(not isinstance(n, int) or n < 1 or n % multiple for n in self.patch):
            expected = f"{axes} sides in voxels, each a multiple of {multiple}"
            raise refused(name, "patch", found=repr(config["patch"]), expected=expected)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(n, h, w)` or `(1, d, h, w)` of one patch."""
        return (self.neighbours, *self.patch)

    def check_input(self, x: Tensor) -> None:
        """Raise ModelError unless x is `(b, neighbours, *grid)` with sides that can be halved often enough."""
        grid = tuple(x.shape[2:])
        if x.ndim != len(self.patch) + 2 or x.shape[1] != self.neighbours or any(n % self.multiple for n in grid):
            sides = ", ".join("dhw"[-len(self.patch) :])
            raise ModelError(
                f"{type(self).__name__}.forward(x)",
                found=f"shape {tuple(x.shape)}",
                expected=f"(b, {self.neighbours}, {sides}), sides in multiples of {self.multiple}",
                remedy="let segment.predict_mask cut and pad the volume",
            )


class UNet2D(Segmenter):
    """Timm encoder + U-Net on neighbouring slices: `(b, neighbours, h, w)` -> `(b, 8, h, w)` for the middle slice.

    Parameters
    ----------
    encoder : timm's name of a network
    decoder : channels of the decoder's five steps, coarse to fine
    plane : "sagittal" or "axial": which slices are neighbours
    neighbours : odd number of slices
    spacing_mm, patch : see `Segmenter`; sides of the patch are multiples of 32
    """

    PRESETS = {
        "laptop": {},
        "gpu": {
            "encoder": "tf_efficientnetv2_s",
            "decoder": (256, 128, 64, 32, 16),
            "spacing_mm": 1.0,
            "patch": (256, 256),
        },
    }
    STAGES = {"net.encoder": "encoder", "net.decoder": "decoder", "net.segmentation_head": "one logit a class"}

    def __init__(
        self,
        *,
        encoder: str = "tf_efficientnetv2_b0",
        decoder: tuple[int, ...] = (64, 48, 32, 24, 16),
        plane: str = "sagittal",
        neighbours: int = 5,
        spacing_mm: float = 2.0,
        patch: tuple[int, int] = (96, 96),
    ):
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(config, multiple=2**_HALVINGS_2D, axes=2)
        if plane not in ("sagittal", "axial"):
            raise refused("UNet2D", "plane", found=repr(plane), expected="'sagittal' or 'axial'")
        check_counts("UNet2D", size=self.patch, neighbours=neighbours)
        if neighbours % 2 == 0:
            raise refused("UNet2D", "neighbours", found=str(neighbours), expected="an odd number of slices")
        if not _positive(decoder, _HALVINGS_2D):
            raise refused("UNet2D", "decoder", found=repr(decoder), expected=f"{_HALVINGS_2D} positive integers")
        if not isinstance(encoder, str) or not timm.is_model(encoder):
            raise refused("UNet2D", "encoder", found=repr(encoder), expected="a network of timm")
        self.encoder, self.plane, self.neighbours = encoder, plane, neighbours
        self.net = smp.Unet(
            f"tu-{encoder}",
            encoder_weights=None,
            encoder_depth=_HALVINGS_2D,
            decoder_channels=tuple(decoder),
            in_channels=neighbours,
            classes=CLASSES,
        ).to(memory_format=torch.channels_last)  # faster on a CPU, see slice_models

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self.net(x.contiguous(memory_format=torch.channels_last))


class UNet3D(Segmenter):
    """MONAI's residual 3D U-Net on patches: `(b, 1, d, h, w)` -> `(b, 8, d, h, w)`.

    Parameters
    ----------
    channels : of the five depths, fine to coarse
    spacing_mm, patch : see `Segmenter`; sides of the patch are multiples of 16
    """

    PRESETS = {
        "laptop": {},
        "gpu": {"channels": (32, 64, 128, 256, 320), "spacing_mm": 1.0, "patch": (128, 128, 128)},
    }
    STAGES = {"net": "3D U-Net: down, up, and across"}
    encoder = "3D convolutions"

    def __init__(
        self,
        *,
        channels: tuple[int, ...] = (12, 24, 48, 64, 96),
        spacing_mm: float = 3.0,
        patch: tuple[int, int, int] = (48, 32, 32),
    ):
        from monai.networks.nets import UNet  # here: MONAI takes seconds to import, and only this class needs it

        config = {name: value for name, value in locals().items() if name in ("channels", "spacing_mm", "patch")}
        super().__init__(config, multiple=2**_HALVINGS_3D, axes=3)
        if not _positive(channels, _HALVINGS_3D + 1):
            expected = f"{_HALVINGS_3D + 1} positive integers"
            raise refused("UNet3D", "channels", found=repr(channels), expected=expected)
        strides = (2,) * _HALVINGS_3D
        self.net = UNet(
            spatial_dims=3, in_channels=1, out_channels=CLASSES, channels=channels, strides=strides, num_res_units=2
        ).to(memory_format=torch.channels_last_3d)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self.net(x.contiguous(memory_format=torch.channels_last_3d))


def _positive(values, count: int) -> bool:
    whole = isinstance(values, tuple | list) and all(isinstance(n, int) and n > 0 for n in values)
    return whole and len(values) == count
