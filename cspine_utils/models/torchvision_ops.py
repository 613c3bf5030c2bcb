"""Make `import torchvision` work beside a torch build whose compiled operators it does not match.

timm and segmentation-models-pytorch import torchvision. Package registries carry torchvision for CUDA builds of
torch; beside a CPU build of torch its compiled operators do not load, and the import then stops with "operator
torchvision::nms does not exist", because it describes two operators that nobody declared. Declaring their schemas is
enough: nothing in this course calls them. Where the operators do load, nothing is declared here.
"""

from __future__ import annotations

import torch

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


DECLARED = import_torchvision()
