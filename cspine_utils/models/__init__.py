"""The course's models, by name.

Classifiers take a batch of study tensors `b f c h w` and give logits `(b, 8)` in the order of `anatomy.TARGETS`:

    model = models.create("cnn_lstm", preset="laptop", size=64)
    model.input_shape  # (105, 6, 64, 64)

Segmenters give every voxel a class: `models.create_segmenter("unet2d")`.

Adding a model touches one file (a subclass of `base.StudyClassifier` or `segmentation.Segmenter`) and one line of the
tables below.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING

from cspine_utils.errors import ModelError

# Before anything imports timm: beside a CPU build of torch it would fail on torchvision's missing operators.
from cspine_utils.models import timm_import as timm_import
from cspine_utils.models.base import StudyClassifier, known

if TYPE_CHECKING:  # the classifiers need no segmentation library, and importing one takes time
    from cspine_utils.models.segmentation import Segmenter

#: name -> (module, class)
_CLASSIFIERS = {
    "vit3d": ("vit3d", "ViT3D"),
    "cnn_lstm": ("slice_models", "CNNLSTM"),
    "cnn_transformer": ("slice_models", "CNNTransformer"),
    "slice_cnn": ("slice_models", "SliceCNN"),
}
_SEGMENTERS = {"unet2d": ("segmentation", "UNet2D"), "unet3d": ("segmentation", "UNet3D")}
NAMES: tuple[str, ...] = tuple(_CLASSIFIERS)
SEGMENTERS: tuple[str, ...] = tuple(_SEGMENTERS)


def create(name: str, *, preset: str = "laptop", **config) -> StudyClassifier:
    """A new classifier.

    Parameters
    ----------
    name : one of `NAMES`
    preset : "laptop" (a study takes a fraction of a second on a CPU), "gpu" (the size of the published solutions),
        or another of the class's `PRESETS`
    config : arguments of the class that replace the preset's, e.g. size=64, backbone="tf_efficientnetv2_l"

    Raises
    ------
    ModelError : unknown name, preset or argument, or sizes that cannot be
    """
    return _create("models.create", _CLASSIFIERS, name, preset, config)


def create_segmenter(name: str, *, preset: str = "laptop", **config) -> Segmenter:
    """A new segmenter, one of `SEGMENTERS`; parameters and errors as in `create`."""
    return _create("models.create_segmenter", _SEGMENTERS, name, preset, config)


def _create(caller: str, table: dict, name: str, preset: str, config: dict):
    module, cls = known(f"{caller}(name)", name, table)
    kind = getattr(importlib.import_module(f"cspine_utils.models.{module}"), cls)
    arguments = known(f"{caller}(preset)", preset, kind.PRESETS) | config
    accepted = inspect.signature(kind).parameters
    for argument in config:
        known(f"{caller}: argument of {cls}", argument, accepted)
    try:
        return kind(**arguments)
    except (TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        # timm, smp and MONAI each have their own errors for what they cannot build.
        raise ModelError(
            f"{caller}({name!r})",
            found=f"{', '.join(f'{k}={v!r}' for k, v in config.items())}: {' '.join(str(error).split())[:200]}",
            expected=f"arguments that {cls} can be built with",
            remedy=f"see help({module}.{cls})",
        ) from error
