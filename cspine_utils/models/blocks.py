"""A transformer's parts: attention, a block, and blocks one after the other.

Tokens `b n e`, heads `b heads n dh` with `e = heads * dh`, as in `vit3d`.

Sources: Vaswani et al. 2017, arXiv 1706.03762 (attention); Xiong et al. 2020, arXiv 2002.04745 (normalise before, not
after, each half of a block); Huang et al. 2016, arXiv 1603.09382 (stochastic depth).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
        self.kept: list[Tensor] | None = None  # see `keeping_weights`

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens `(b, n, e)` -> `(b, n, e)`; `mask` bool `(b, 1, 1, n)`, False for tokens that nobody may look at."""
        q, k, v = rearrange(self.to_qkv(x), "b n (qkv heads dh) -> qkv b heads n dh", qkv=3, heads=self.heads)
        if self.kept is None:
            # The fused kernel never stores the n x n weights: at 4,000 tokens they would be most of the memory.
            share = self.dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=share)
        else:
            weights = self.weights(q, k, mask)
            self.kept.append(weights)
            mixed = F.dropout(weights, self.dropout, self.training) @ v
        return self.to_out(rearrange(mixed, "b heads n dh -> b n (heads dh)"))

    @staticmethod
    def weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each token (row) takes from each token (column): `(b, heads, n, n)`, rows of ones in sum."""
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(dim=-1)


@contextmanager
def keeping_weights(blocks: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every Attention of `blocks` computes its weights `(b, heads, n, n)` and appends them to the list."""
    layers = [module for module in blocks.modules() if isinstance(module, Attention)]
    kept: list[Tensor] = []
    for layer in layers:
        layer.kept = kept
    try:
        yield kept
    finally:
        for layer in layers:
            layer.kept = None


class DropPath(nn.Module):
    """Stochastic depth: in training the whole branch of a study is 0 in `share` of the cases, the others grow to match.

    `(b, ...)` -> the same; each study of a batch draws for itself. In evaluation nothing happens.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.share:
            return x
        stays = torch.rand(len(x), *(1,) * (x.ndim - 1), device=x.device) >= self.share
        return x * (stays / (1 - self.share)).to(x.dtype)


class Block(nn.Module):
    """Attention between tokens, then a small network on each token; both are added to what came in.

    Parameters as in `Attention`; `mlp_ratio` is the width of the small network's inner layer, in units of `dim`;
    `drop_path` the share of studies that pass a half by, see `DropPath`.
    """

    STAGES = {
        "attention_norm": "normalise each token",
        "attention": "tokens look at each other",
        "mlp_norm": "normalise each token",
        "mlp": "each token by itself",
    }
    RESIDUALS = (("attention_norm", "attention"), ("mlp_norm", "mlp"))

    def __init__(self, *, dim: int, heads: int, mlp_ratio: float, dropout: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim=dim, heads=heads, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (b, n, e) -> (b, n, e)
        x = x + self.drop_path(self.attention(self.attention_norm(x), mask))
        return x + self.drop_path(self.mlp(self.mlp_norm(x)))


class Blocks(nn.Sequential):
    """Blocks one after the other. With `again`, the backward pass computes what is inside a block a second time instead
    of keeping it: memory for one block in place of all, for about a third more time."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *, again: bool = False) -> Tensor:
        for block in self:
            x = checkpoint(block, x, mask, use_reentrant=False) if again else block(x, mask)
        return x
