"""A vision transformer on the whole study: every token is a small box of frames, rows and columns.

Axes (the same in the whole package)
------------------------------------
* study tensor `b f c h w`: f frames head -> feet, c channels (CT slices and the mask), h rows, w columns
* tokens `b n e`: n boxes in the order (frame, row, column), e features each

Source: Dosovitskiy et al. 2021, arXiv 2010.11929 (patches as tokens).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from cspine_utils.anatomy import TARGETS
from cspine_utils.models.base import StudyClassifier, check_counts, known, pair, refused
from cspine_utils.models.blocks import Block, Blocks, keeping_weights
from cspine_utils.models.heads import HEADS, Read, owners
from cspine_utils.models.stems import POSITIONS, STEMS, ConvStem, sincos_positions
from cspine_utils.stacks import labels_of

#: Size of the sines beside token vectors of size 1: larger ones drown what the box shows.
_SINCOS_SIZE = 0.3


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
    drop_path : stochastic depth, in [0, 1): the last block's share; it rises evenly from 0 in the first block
    stem : "linear", one layer on all numbers of a box, or "conv", see `stems.ConvStem`; "conv" takes the last channel
        for the mask of the vertebrae, as `stacks.normalise` gives it
    position : "learned", one vector a token, or "sincos", which fit any grid (`stems.sincos_positions`)
    head : "mean", "cls", "targets" or "mask", see `heads`; "mask" takes the last channel for the mask, too, and its
        blocks read only the tokens that hold some of C1-C7, a sixth of a neck's
    targets : number of logits, in the order of `anatomy.TARGETS`

    Attributes
    ----------
    input_shape : `(f, c, h, w)` of one study
    grid : tokens along frames, rows and columns
    config : the constructor's arguments, so that `ViT3D(**model.config)` has the same form
    checkpoint_activations : True computes blocks twice instead of keeping what is inside them (`Blocks`)

    The head's weight starts at zero: before training every study gets the same logits, and after
    `set_base_rates` that answer is exactly the base-rate constant, from which training starts.

    Raises
    ------
    ModelError : for sizes that do not divide, and in `forward` for an input of another shape
    """

    PRESETS = {
        "laptop": {},
        "evidence": {"size": (96, 96), "frame_patch": 5, "patch": 8, "dim": 128, "stem": "conv", "position": "sincos",
                     "head": "mask"},
        "gpu": {"size": (224, 224), "frame_patch": 5, "dim": 384, "depth": 8, "heads": 6, "dropout": 0.1},
    }  # fmt: skip

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
        drop_path: float = 0.0,
        stem: str = "linear",
        position: str = "learned",
        head: str = "mean",
        targets: int = len(TARGETS),
    ):
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        config["size"] = height, width = _checked_size(config)
        super().__init__((frames, channels, height, width), config)
        self.outputs, self.checkpoint_activations = targets, False
        self.grid = (frames // frame_patch, height // patch, width // patch)

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
            self.position = nn.Parameter(0.02 * torch.randn(1, math.prod(self.grid), dim))
        else:
            self.register_buffer("position", _SINCOS_SIZE * sincos_positions(self.grid, dim)[None], persistent=False)
        self.dropout = nn.Dropout(dropout)
        shares = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        form = {"dim": dim, "heads": heads, "mlp_ratio": mlp_ratio, "dropout": dropout}
        self.blocks = Blocks(*(Block(**form, drop_path=share) for share in shares))
        self.head = HEADS[head](dim=dim, targets=targets, heads=heads)

        cut = {"patchify": "cut into boxes"} if stem == "linear" else {}
        reads = "one linear layer a box" if stem == "linear" else "strided convolutions"
        self.STAGES = cut | {"embed": reads, "blocks": "transformer blocks", "head": self.head.words}
        self.encoder = "linear patches" if stem == "linear" else "strided convolutions"

    def read(self, x: Tensor) -> Read:
        """What the blocks get: tokens with their positions, as many as the head chooses."""
        self.check_input(x)
        tokens = self.embed(self.patchify(x)) + self.positions(self.grid_of(x))  # (b, n, e)
        return self.head.choose(tokens, self.owners(x) if self.head.reads_mask else None)

    def grid_of(self, x: Tensor) -> tuple[int, int, int]:
        """Tokens along frames, rows and columns of x: `grid`, unless x has another size (position "sincos")."""
        _, frames, _, height, width = x.shape
        patch = self.config["patch"]
        return frames // self.config["frame_patch"], height // patch, width // patch

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """What is added to the tokens of a grid, `(1, n, e)`."""
        if grid == self.grid:
            return self.position
        return _SINCOS_SIZE * sincos_positions(grid, self.config["dim"])[None].to(self.position)

    def check_input(self, x: Tensor) -> None:
        """Raise ModelError unless x has the weights' type and `input_shape`; computed positions fit any size that the
        patches divide."""
        if self.config["position"] == "sincos" and isinstance(x, Tensor) and x.ndim == 5:
            frames, channels, height, width = x.shape[1:]
            frame_patch, patch = self.config["frame_patch"], self.config["patch"]
            divides = not (frames % frame_patch or height % patch or width % patch) and min(x.shape) > 0
            if divides and channels == self.input_shape[1] and x.dtype == self.position.dtype:
                return
        super().check_input(x)

    def encode(self, x: Tensor) -> Read:
        """What the blocks make of it: study tensors `(b, f, c, h, w)` -> `Read`, tokens `(b, m, e)`, not yet pooled."""
        read = self.read(x)
        mask = None if read.keep is None else read.keep[:, None, None]  # (b, 1, 1, m)
        again = self.checkpoint_activations and torch.is_grad_enabled()
        return read._replace(tokens=self.blocks(self.dropout(read.tokens), mask, again=again))

    def forward(self, x: Tensor) -> Tensor:
        """Study tensors `(b, f, c, h, w)` -> logits `(b, targets)`."""
        return self.head(self.encode(x))

    def evidence(self, x: Tensor) -> Tensor:
        """Logits of the targets, then of every token: `(b, f, c, h, w)` -> `(b, targets + n)`; head "mask" alone.

        A token without any vertebra was not looked at; its logit is that of no evidence.
        """
        if not self.head.reads_mask:
            found = f"head={self.config['head']!r}, which has no evidence a token"
            raise refused("ViT3D.evidence", "head", found=found, expected='head="mask"')
        return self.head.everywhere(self.encode(x), math.prod(self.grid_of(x)))

    def attention_maps(self, x: Tensor) -> Tensor:
        """How much each token (row) takes from each other (column), in every block: `(depth, b, heads, m, m)`.

        m are the tokens that the head chooses (`read(x).place` says which), its own `extra` ones first. Takes the
        memory that the fused kernel saves.
        """
        with self.whole_attention() as kept, torch.no_grad():
            self.encode(x)
        return torch.stack(kept)

    @contextmanager
    def whole_attention(self) -> Iterator[list[Tensor]]:
        """Inside, a forward pass computes all attention weights and appends each block's `(b, heads, m, m)`."""
        before, self.checkpoint_activations = self.checkpoint_activations, False  # blocks run again would append again
        try:
            with keeping_weights(self.blocks) as kept:
                yield kept
        finally:
            self.checkpoint_activations = before

    def owners(self, x: Tensor) -> Tensor:
        """The level that each token belongs to, by the mask channel: `(b, n)`, 0-7, see `heads.owners`."""
        return owners(labels_of(x[:, :, -1]), frame_patch=self.config["frame_patch"], patch=self.config["patch"])

    def start_from(self, logits: Tensor) -> None:
        self.head.start_from(logits)


def _divisors(n: int) -> str:
    """The numbers that divide n, without 1 and n themselves unless there are no others."""
    return ", ".join(map(str, [d for d in range(2, n) if n % d == 0] or [1, n]))


def _checked_size(config: dict) -> tuple[int, int]:
    """(h, w), if every argument can be and every patch and head divides its whole; else ModelError."""
    for name, table in (("stem", STEMS), ("position", POSITIONS), ("head", HEADS)):
        known(f"ViT3D({name})", config[name], table)
    mlp_ratio, dim, patch = config["mlp_ratio"], config["dim"], config["patch"]
    size = pair(config["size"])
    words = ("mlp_ratio", "stem", "position", "head")
    check_counts("ViT3D", **{k: v for k, v in config.items() if k not in words} | {"size": size})
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
    if config["stem"] == "conv" and not ConvStem.fits(patch):
        fitting = [p for p in range(4, min(size) + 1) if ConvStem.fits(p) and not size[0] % p and not size[1] % p]
        expected = f"a power of two from 4 on that divides {size[0]} rows and {size[1]} columns: "
        expected += ", ".join(map(str, fitting)) if fitting else 'there is none, so take stem="linear"'
        raise refused("ViT3D", "patch", found=f'patch={patch} with stem="conv"', expected=expected)
    for part, reader in (("stem", "conv"), ("head", "mask")):
        if config[part] == reader and config["channels"] < 2:
            found, expected = f'channels=1 with {part}="{reader}"', "2 channels or more, the last one the mask"
            raise refused("ViT3D", "channels", found=found, expected=expected)
    if config["head"] == "mask" and config["targets"] != len(TARGETS):
        found, expected = f'targets={config["targets"]} with head="mask"', f"the {len(TARGETS)} of anatomy.TARGETS"
        raise refused("ViT3D", "targets", found=found, expected=expected)
    return size
