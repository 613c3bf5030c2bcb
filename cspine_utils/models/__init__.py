"""The course's models, by name.

Classifiers take a batch of study tensors `b f c h w` and give logits `(b, 8)` in the order of `anatomy.TARGETS`:

    model = models.create("cnn_lstm", preset="laptop", size=64)
    model.input_shape  # (105, 6, 64, 64)

Adding one touches one file (a subclass of `base.StudyClassifier`) and one line of the table below.
"""

from __future__ import annotations

import difflib
import importlib
import inspect

from cspine_utils.errors import ModelError

# Before anything imports timm: beside a CPU build of torch it would fail on torchvision's missing operators.
from cspine_utils.models import torchvision_ops as torchvision_ops
from cspine_utils.models.base import StudyClassifier

#: name -> (module, class)
_CLASSIFIERS = {
    "vit3d": ("vit3d", "ViT3D"),
    "cnn_lstm": ("slice_models", "CNNLSTM"),
    "cnn_transformer": ("slice_models", "CNNTransformer"),
    "slice_cnn": ("slice_models", "SliceCNN"),
}
NAMES: tuple[str, ...] = tuple(_CLASSIFIERS)


def create(name: str, *, preset: str = "laptop", **config) -> StudyClassifier:
    """A new classifier.

    Parameters
    ----------
    name : one of `NAMES`
    preset : "laptop" (seconds a study-epoch on two CPU cores) or "gpu" (the size of the published solutions)
    config : arguments of the class that replace the preset's, e.g. size=64, backbone="tf_efficientnetv2_l"

    Raises
    ------
    ModelError : unknown name, preset or argument, or sizes that cannot be
    """
    module, cls = _known("name", name, _CLASSIFIERS)
    kind = getattr(importlib.import_module(f"cspine_utils.models.{module}"), cls)
    arguments = _known("preset", preset, kind.PRESETS) | config
    known = inspect.signature(kind).parameters
    for argument in config:
        _known(f"argument of {cls}", argument, known)
    return kind(**arguments)


def _known(what: str, name, table):
    if name in table:
        return table[name]
    close = difflib.get_close_matches(str(name), table, n=1)
    raise ModelError(
        f"models.create({what})",
        found=repr(name),
        expected="one of " + ", ".join(table),
        remedy=f"did you mean {close[0]!r}?" if close else "choose one of these.",
    )
