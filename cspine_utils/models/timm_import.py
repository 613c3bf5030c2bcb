"""What must happen before timm is imported, so that it works beside a CPU build of torch, and quietly in a notebook.

timm and segmentation-models-pytorch import torchvision. Package registries carry torchvision for CUDA builds of
torch; beside a CPU build of torch its compiled operators do not load, and the import then stops with "operator
torchvision::nms does not exist", because it describes two operators that nobody declared. Declaring their schemas is
enough: nothing in this course calls them. Where the operators do load, nothing is declared here.

timm also imports tqdm's notebook bar, which warns on stderr where ipywidgets is missing. This course uses plain bars.
"""

from __future__ import annotations

import warnings

import torch
from tqdm import TqdmWarning

_SCHEMAS = ("nms", "qnms")


def import_torchvision() -> torch.library.Library | None:
    """Import torchvision; returns the declarations that this needed (they live as long as the object), or None."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return None
    declared = torch.library.Library("torchvision", "DEF")
    for name in _SCHEMAS:
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

    return declared


with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)
    import tqdm.auto  # noqa: F401

DECLARED = import_torchvision()
