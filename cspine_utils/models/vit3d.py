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
from cspine_utils.models.base import StudyClassifier, check_counts, pair, refused
from cspine_utils.models.heads import MaskHead, owners
from cspine_utils.models.stems import ConvStem, sincos_positions
from cspine_utils.stacks import labels_of


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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens `(b, n, e)` -> `(b, n, e)`; `mask` bool `(b, 1, 1, n)`, False for tokens that nobody may look at."""
        q, k, v = rearrange(self.to_qkv(x), "b n (qkv heads dh) -> qkv b heads n dh", qkv=3, heads=self.heads)
        # The fused kernel never stores the n x n weights: at 4,000 tokens they would be most of the memory.
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        return self.to_out(rearrange(mixed, "b heads n dh -> b n (heads dh)"))


class Block(nn.Module):
    """Attention between tokens, then a small network on each token; both are added to what came in.

    Parameters as in `Attention`; `mlp_ratio` is the width of the small network's inner layer, in units of `dim`.
    """

    STAGES = {
        "attention_norm": "normalise each token",
        "attention": "tokens look at each other",
        "mlp_norm": "normalise each token",
        "mlp": "each token by itself",
    }
    RESIDUALS = (("attention_norm", "attention"), ("mlp_norm", "mlp"))

    def __init__(self, *, dim: int, heads: int, mlp_ratio: float, dropout: float = 0.0):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim=dim, heads=heads, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (b, n, e) -> (b, n, e)
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x))


class ViT3D(StudyClassifier):
    """A 3D vision transformer: study tensor `(b, f, c, h, w)` -> logits `(b, targets)`.

    Parameters
    ----------
    frames, channels : f and c of the study tensor
    size : rows and columns of a frame, `(h, w)` or one number for both
    frame_patch, patch : frames, and rows and columns, of one token's box; they must divide `frames` and `size`
    dim, depth, heads : features a token, number of blocks, attention heads (they must divide `dim`)
    mlp_ratio : width of each block's inner layer, in units of `dim`
    dropout : share dropped in training, in [0, 1)
    stem : "linear", one layer on all numbers of a box, or "conv", see `stems.ConvStem`
    position : "learned", one vector a token, or "sincos", which fit any grid (`stems.sincos_positions`)
    head : "mean" of the tokens, or "mask", see `heads.MaskHead`: tokens pooled by the mask of each vertebra. With "mask"
        the blocks read only the tokens that hold some of C1-C7, a sixth of a neck's.
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

    PRESETS = {
        "laptop": {},
        "seeing": {"size": (96, 96), "frame_patch": 5, "patch": 8, "dim": 128, "stem": "conv", "position": "sincos",
                   "head": "mask"},
        "gpu": {"size": (224, 224), "frame_patch": 5, "dim": 384, "depth": 8, "heads": 6, "dropout": 0.1},
    }  # fmt: skip
    STAGES = {
        "patchify": "cut into boxes",
        "embed": "one linear layer a box",
        "blocks": "transformer blocks",
        "norm": "mean of the tokens",
        "head": "one logit a target",
    }
    encoder = "linear patches"

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
        stem: str = "linear",
        position: str = "learned",
        head: str = "mean",
        targets: int = len(TARGETS),
    ):
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        config["size"] = height, width = _checked_size(config)
        super().__init__((frames, channels, height, width), config)
        self.outputs = targets
        grid = (frames // frame_patch, height // patch, width // patch)

        # No normalisation of the patch or its embedding: HU is an absolute scale, and it would make air and bone
        # look alike. (Tried: with a LayerNorm here eight studies took several times as long to learn by heart.)
        self.patchify, self.embed = nn.Identity(), None
        if stem == "linear":
            self.patchify = Rearrange(
                "b (f pf) c (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=frame_patch, ph=patch, pw=patch
            )
            self.embed = nn.Linear(frame_patch * patch * patch * channels, dim)
        else:
            self.embed = ConvStem(channels=channels, frame_patch=frame_patch, patch=patch, dim=dim)
        if position == "learned":
            self.position = nn.Parameter(0.02 * torch.randn(1, math.prod(grid), dim))
        else:
            self.register_buffer("position", sincos_positions(grid, dim)[None], persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(Block(dim=dim, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth))
        )
        if head == "mask":
            self.norm, self.head = nn.Identity(), MaskHead(dim)
        else:
            self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, targets)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def tokens(self, x: Tensor) -> Tensor:
        """What the blocks make of each box: study tensors `(b, f, c, h, w)` -> `(b, n, e)`, not yet pooled."""
        self.check_input(x)
        x = self.embed(self.patchify(x))  # (b, n, e)
        return self.blocks(self.dropout(x + self.position))

    def forward(self, x: Tensor) -> Tensor:
        """Study tensors `(b, f, c, h, w)` -> logits `(b, targets)`."""
        if self.config["head"] == "mask":
            return self.evidence(x)[:, : self.outputs]
        pooled = self.tokens(x).mean(dim=1)  # (b, e)
        return self.head(self.norm(pooled))

    def evidence(self, x: Tensor) -> Tensor:
        """Logits of the targets, then of every token: `(b, f, c, h, w)` -> `(b, targets + n)`; head "mask" alone.

        A token without any vertebra was not looked at; its logit is that of no evidence.
        """
        self.check_input(x)
        owner = self.owners(x)  # (b, n)
        read, chosen = _most(owner > 0)
        places = chosen[..., None].expand(-1, -1, self.config["dim"])  # (b, m, e)
        x = (self.embed(self.patchify(x)) + self.position).gather(1, places)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, read[:, None, None])
        logits, found = self.head(x, torch.where(read, owner.gather(1, chosen), 0))
        everywhere = self.head.token_bias.float().expand(owner.shape).scatter(1, chosen, found)
        return torch.cat([logits, everywhere], dim=1)

    def owners(self, x: Tensor) -> Tensor:
        """The level that each token belongs to, by the mask channel: `(b, n)`, 0-7, see `heads.owners`."""
        return owners(labels_of(x[:, :, -1]), frame_patch=self.config["frame_patch"], patch=self.config["patch"])

    def start_from(self, logits: Tensor) -> None:
        if self.config["head"] == "mask":
            self.head.start_from(logits)
        else:
            self.head.bias.copy_(logits)


def _most(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted tokens of each study, as many columns as the study with most of them has: `(b, n)` -> two `(b, m)`.

    First whether a column holds a wanted token, second the token's number. A study that wants none gets all, and so
    does then every study.
    """
    wanted = wanted | ~wanted.any(dim=1, keepdim=True)
    count = int(wanted.sum(dim=1).max())
    chosen = torch.argsort(~wanted, dim=1, stable=True)[:, :count]
    return wanted.gather(1, chosen), chosen


def _divisors(n: int) -> str:
    """The numbers that divide n, without 1 and n themselves unless there are no others."""
    return ", ".join(map(str, [d for d in range(2, n) if n % d == 0] or [1, n]))


def _checked_size(config: dict) -> tuple[int, int]:
    """(h, w), if every count is a positive integer and every patch and head divides its whole; else ModelError."""
    mlp_ratio, dim = config["mlp_ratio"], config["dim"]
    size = pair(config["size"])
    check_counts("ViT3D", **{k: v for k, v in config.items() if k not in ("mlp_ratio", "stem", "position", "head")} | {"size": size})
    if not isinstance(mlp_ratio, int | float) or not math.isfinite(mlp_ratio) or int(dim * mlp_ratio) < 1:
        expected = "a number that leaves at least one inner feature"
        raise refused("ViT3D", "mlp_ratio", found=repr(mlp_ratio), expected=expected)
    for part, whole, n in (
        ("frame_patch", "frames", config["frames"]),
        ("patch", "rows", size[0]),
        ("patch", "columns", size[1]),
        ("heads", "dim", dim),
    ):
        if n % config[part]:
            found = f"{part}={config[part]}, which does not divide {n} {whole}"
            raise refused("ViT3D", part, found=found, expected=f"a divisor of {n}: {_divisors(n)}")
    return size
