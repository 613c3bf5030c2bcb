"""A vision transformer on the whole study: every token is a small box of frames, rows and columns.

Axes (the same in the whole package)
------------------------------------
* study tensor `b f c h w`: f frames head -> feet, c channels (CT slices and the mask), h rows, w columns
* tokens `b n e`: n boxes in the order (frame, row, column), e features each
* heads `b heads n dh`, with `e = heads * dh`

Sources: Dosovitskiy et al. 2021, arXiv 2010.11929 (patches as tokens); Xiong et al. 2020, arXiv 2002.04745
(normalise before, not after, each half of a block).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from cspine_utils.anatomy import TARGETS
from cspine_utils.errors import ModelError, ParameterError


class Attention(nn.Module):
    """Every token looks at every token: softmax(q k^T / sqrt(dh)) v in each head, then one mixing layer.

    Parameters
    ----------
    dim : features a token, e
    heads : how many; each gets `dim / heads` features
    dropout : share of attention weights, and of outputs, dropped in training
    """

    def __init__(self, *, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:  # (b, n, e) -> (b, n, e)
        q, k, v = rearrange(self.to_qkv(x), "b n (qkv heads dh) -> qkv b heads n dh", qkv=3, heads=self.heads)
        # The fused kernel never stores the n x n weights: at 4,000 tokens they would be most of the memory.
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.to_out(rearrange(mixed, "b heads n dh -> b n (heads dh)"))


class Block(nn.Module):
    """Attention between tokens, then a small network on each token; both are added to what came in.

    Parameters as in `Attention`; `mlp_ratio` is the width of the small network's inner layer, in units of `dim`.
    """

    def __init__(self, *, dim: int, heads: int, mlp_ratio: float, dropout: float = 0.0):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim=dim, heads=heads, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, n, e) -> (b, n, e)
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class ViT3D(nn.Module):
    """A 3D vision transformer: study tensor `(b, f, c, h, w)` -> logits `(b, targets)`.

    Parameters
    ----------
    frames, channels : f and c of the study tensor
    size : rows and columns of a frame, `(h, w)` or one number for both
    frame_patch, patch : frames, and rows and columns, of one token's box; they must divide `frames` and `size`
    dim, depth, heads : features a token, number of blocks, attention heads (they must divide `dim`)
    mlp_ratio : width of each block's inner layer, in units of `dim`
    dropout : share dropped in training, in [0, 1)
    targets : number of logits, in the order of `anatomy.TARGETS`

    Attributes
    ----------
    input_shape : `(f, c, h, w)` of one study
    config : the constructor's arguments, so that `ViT3D(**model.config)` has the same form

    The head's weight starts at zero: before training every study gets the same logits, and after
    `set_base_rates` that answer is exactly the base-rate constant, from which training starts.

    Raises
    ------
    ModelError : for sizes that do not divide, and in `forward` for an input of another shape
    """

    def __init__(
        self,
        *,
        frames: int = 105,
        channels: int = 6,
        size: int | tuple[int, int] = (64, 64),
        frame_patch: int = 15,
        patch: int = 16,
        dim: int = 96,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 2,
        dropout: float = 0.0,
        targets: int = len(TARGETS),
    ):
        super().__init__()
        self.config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.config["size"] = tuple(size) if isinstance(size, tuple | list) else (size, size)
        _check_config(**self.config)
        height, width = self.config["size"]
        self.input_shape = (frames, channels, height, width)
        n = (frames // frame_patch) * (height // patch) * (width // patch)

        self.patchify = Rearrange(
            "b (f pf) c (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=frame_patch, ph=patch, pw=patch
        )
        # No normalisation of the patch or its embedding: HU is an absolute scale, and it would make air and bone
        # look alike. (Tried: with a LayerNorm here eight studies took several times as long to learn by heart.)
        self.embed = nn.Linear(frame_patch * patch * patch * channels, dim)
        self.position = nn.Parameter(0.02 * torch.randn(1, n, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim=dim, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, targets)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def tokens(self, x: Tensor) -> Tensor:
        """What the blocks make of each box: study tensors `(b, f, c, h, w)` -> `(b, n, e)`, not yet pooled."""
        self._check_input(x)
        x = self.embed(self.patchify(x))  # (b, n, e)
        x = self.dropout(x + self.position)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Study tensors `(b, f, c, h, w)` -> logits `(b, targets)`."""
        pooled = self.tokens(x).mean(dim=1)  # (b, e)
        return self.head(self.norm(pooled))

    def set_base_rates(self, rates) -> None:
        """Set the head's bias to logit(rates), so that an untrained model predicts `rates` for every study.

        Parameters
        ----------
        rates : `(targets,)` probabilities, each strictly between 0 and 1

        Raises
        ------
        ParameterError : for another length, or a rate of 0 or 1, whose logit is infinite
        """
        rates = torch.as_tensor(rates, dtype=torch.float64).detach().cpu()
        if rates.shape != self.head.bias.shape or not ((rates > 0) & (rates < 1)).all():
            raise ParameterError(
                "ViT3D.set_base_rates(rates)",
                found=f"{rates.tolist()}",
                expected=f"{len(self.head.bias)} probabilities strictly between 0 and 1",
                remedy="compute them with metrics.base_rates(y, smoothing=0.5), which never gives 0 or 1",
            )
        with torch.no_grad():
            self.head.bias.copy_(torch.logit(rates))

    def _check_input(self, x: Tensor) -> None:
        frames, channels, *_ = self.input_shape
        if not isinstance(x, Tensor):
            found, remedy = type(x).__name__, "make it a tensor with torch.from_numpy"
        elif tuple(x.shape[1:]) != self.input_shape or x.dtype != self.embed.weight.dtype:
            found = f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
            remedy = "resample the stack to the model's input_shape, or build the model for the stack's shape"
            if x.dtype != self.embed.weight.dtype:
                remedy = "bring stack and model to one type, e.g. with x.float()"
            elif frames != channels and tuple(x.shape[1:3]) == (channels, frames):
                remedy = "channels come before frames here: use x.transpose(1, 2)"
        else:
            return
        wanted = str(self.embed.weight.dtype).removeprefix("torch.")
        raise ModelError(
            "ViT3D.forward(x)",
            found=found,
            expected=f"{wanted} (b, {', '.join(map(str, self.input_shape))}), the axes b f c h w",
            remedy=remedy,
        )


def _divisors(n: int) -> str:
    """The numbers that divide n, without 1 and n themselves unless there are no others."""
    return ", ".join(map(str, [d for d in range(2, n) if n % d == 0] or [1, n]))


def _check_config(*, size, mlp_ratio, dropout, **counts) -> None:
    """Raise ModelError unless every count is a positive integer and every patch and head divides its whole."""
    if len(size) != 2:
        raise _refused("size", found=str(size), expected="(h, w) or one number for both")
    for name, value in {**counts, "size (rows)": size[0], "size (columns)": size[1]}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _refused(name, found=repr(value), expected="a positive integer")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise _refused("dropout", found=repr(dropout), expected="a share in [0, 1)")
    if not isinstance(mlp_ratio, int | float) or not math.isfinite(mlp_ratio) or int(counts["dim"] * mlp_ratio) < 1:
        raise _refused("mlp_ratio", found=repr(mlp_ratio), expected="a number that leaves at least one inner feature")
    for part, whole, n in (
        ("frame_patch", "frames", counts["frames"]),
        ("patch", "rows", size[0]),
        ("patch", "columns", size[1]),
        ("heads", "dim", counts["dim"]),
    ):
        if n % counts[part]:
            found = f"{part}={counts[part]}, which does not divide {n} {whole}"
            raise _refused(part, found=found, expected=f"a divisor of {n}: {_divisors(n)}")


def _refused(name: str, *, found: str, expected: str) -> ModelError:
    return ModelError(
        f"ViT3D({name})", found=found, expected=expected, remedy=f"choose such a {name.split()[0]} for ViT3D"
    )
