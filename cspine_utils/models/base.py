"""What all study classifiers share: one input shape, one form of output, one way to start at the constant.

Axes: a batch of study tensors is `b f c h w` (studies, frames head -> feet, channels, rows, columns), the answer
`(b, 8)` logits in the order of `anatomy.TARGETS`.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cspine_utils.anatomy import TARGETS
from cspine_utils.errors import ModelError, ParameterError


class StudyClassifier(nn.Module, ABC):
    """Base class: study tensors `(b, f, c, h, w)` -> logits `(b, 8)`.

    A subclass calls `super().__init__(input_shape, config)`, writes `forward`, and `start_from`, which sets the
    biases of its last layer; without `start_from` it cannot be made.

    Attributes
    ----------
    input_shape : `(f, c, h, w)` of one study
    config : the constructor's arguments, so that `type(model)(**model.config)` has the same form
    encoder : name of the part that reads the images, for tables
    weights_from : "from scratch", or the file that pre-trained weights came from
    PRESETS : preset name -> constructor arguments
    STAGES : attribute name -> words, the parts that a drawing of the model shows, in the order in which they run
    """

    PRESETS: dict[str, dict] = {}
    STAGES: dict[str, str] = {}
    encoder: str
    weights_from: str = "from scratch"
    outputs: int = len(TARGETS)

    def __init__(self, input_shape: tuple[int, int, int, int], config: dict):
        super().__init__()
        self.input_shape, self.config = tuple(input_shape), config

    @abstractmethod
    def start_from(self, logits: Tensor) -> None:
        """Set the last layer's biases so that, its weights being zero, every study gets these `(8,)` logits."""

    def set_base_rates(self, rates) -> None:
        """Set the biases so that an untrained model predicts `rates` for every study.

        Parameters
        ----------
        rates : `(8,)` probabilities in the order of `anatomy.TARGETS`, each strictly between 0 and 1

        Raises
        ------
        ParameterError : for another length, or a rate of 0 or 1, whose logit is infinite
        """
        rates = torch.as_tensor(rates, dtype=torch.float64).detach().cpu()
        if rates.shape != (self.outputs,) or not ((rates > 0) & (rates < 1)).all():
            raise ParameterError(
                f"{type(self).__name__}.set_base_rates(rates)",
                found=f"{rates.tolist()}",
                expected=f"{self.outputs} probabilities strictly between 0 and 1",
                remedy="compute them with metrics.base_rates(y, smoothing=0.5), which never gives 0 or 1",
            )
        with torch.no_grad():
            self.start_from(torch.logit(rates))

    def check_input(self, x: Tensor) -> None:
        """Raise ModelError unless x is a tensor `(b, *input_shape)` of the weights' type."""
        frames, channels, *_ = self.input_shape
        dtype = next(self.parameters()).dtype
        if not isinstance(x, Tensor):
            found, remedy = type(x).__name__, "make it a tensor with torch.from_numpy"
        elif tuple(x.shape[1:]) != self.input_shape or x.dtype != dtype:
            found = f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
            remedy = "resample the stack to the model's input_shape, or build the model for the stack's shape"
            if x.dtype != dtype:
                remedy = "bring stack and model to one type, e.g. with x.float()"
            elif frames != channels and tuple(x.shape[1:3]) == (channels, frames):
                remedy = "channels come before frames here: use x.transpose(1, 2)"
        else:
            return
        raise ModelError(
            f"{type(self).__name__}.forward(x)",
            found=found,
            expected=f"{str(dtype).removeprefix('torch.')} (b, {', '.join(map(str, self.input_shape))}), "
            "the axes b f c h w",
            remedy=remedy,
        )


def noisy_or(logits: Tensor) -> Tensor:
    """Logit of "at least one" of independent events: `1 - prod(1 - sigmoid(logits))` over the last axis, as a logit.

    With s = sum(softplus(logits)), the probability of none is exp(-s), so the logit is log(exp(s) - 1). Written so,
    neither a product of tiny numbers nor 1 minus almost 1 is ever formed.
    """
    s = nn.functional.softplus(logits).sum(dim=-1)
    s = s.clamp_min(torch.finfo(s.dtype).tiny)
    return torch.where(s > 20, s, torch.log(torch.expm1(s.clamp_max(20))))


def pair(size) -> tuple[int, int]:
    """`(h, w)` from a pair, or from one number for both."""
    return tuple(size) if isinstance(size, tuple | list) else (size, size)


def known(what: str, name, table):
    """The entry of `table` by that name (of a tuple, the name itself); ModelError with the nearest name otherwise."""
    if isinstance(name, str) and name in table:
        return table[name] if isinstance(table, Mapping) else name
    close = difflib.get_close_matches(str(name), table, n=1)
    raise ModelError(
        what,
        found=repr(name),
        expected="one of " + ", ".join(table),
        remedy=f"did you mean {close[0]!r}?" if close else "choose one of these.",
    )


def check_counts(owner: str, *, size, dropout=0.0, drop_path=0.0, **counts) -> None:
    """Raise ModelError unless every count is a positive integer, size is two of them and both dropouts are shares."""
    if len(size) != 2:
        raise refused(owner, "size", found=str(size), expected="(h, w) or one number for both")
    for name, value in {**counts, "size (rows)": size[0], "size (columns)": size[1]}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise refused(owner, name, found=repr(value), expected="a positive integer")
    for name, share in (("dropout", dropout), ("drop_path", drop_path)):
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise refused(owner, name, found=repr(share), expected="a share in [0, 1)")


def refused(owner: str, name: str, *, found: str, expected: str) -> ModelError:
    """The error for an argument that a model cannot be built with."""
    return ModelError(
        f"{owner}({name})", found=found, expected=expected, remedy=f"choose such a {name.split()[0]} for {owner}"
    )
