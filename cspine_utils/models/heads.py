"""From tokens to the eight logits: four ways to listen to the tokens.

A head first chooses what the blocks read (`choose`: all tokens, one more, or those of vertebrae alone), and turns what
the blocks made of them into logits `(b, targets)`. `listens` tells how much each token counts for each target, and
`start_from` sets the biases so that an untrained model gives the same wanted logits to every study: every weight that
reads tokens starts at zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from cspine_utils.anatomy import CERVICAL_IDS, LEVELS
from cspine_utils.models.base import noisy_or

#: One in so many tokens of vertebrae holds a fracture; the logit of a token starts there.
_TOKEN_LOGIT = -4.0


class Read(NamedTuple):
    """What the blocks read of a batch of studies.

    Attributes
    ----------
    tokens : `(b, m, e)`
    keep : bool `(b, m)`, False for filling that nobody looks at; None, there is no filling
    place : int64 `(b, m)`, number of each token in the grid of n; None, all n in order, after the head's `extra` ones
    owner : int64 `(b, m)`, 1-7 the level that a token belongs to, 0 nobody's; None, nobody asked
    """

    tokens: Tensor
    keep: Tensor | None = None
    place: Tensor | None = None
    owner: Tensor | None = None


class Head(nn.Module, ABC):
    """Base class of the heads.

    Attributes
    ----------
    extra : tokens of the head's own in front of those of the study
    reads_mask : whether `choose` wants to know whose each token is
    words : what it does, for a drawing
    """

    extra: int = 0
    reads_mask: bool = False
    words: str

    def choose(self, tokens: Tensor, owner: Tensor | None = None) -> Read:
        """What the blocks shall read of tokens `(b, n, e)` with owners `(b, n)`."""
        return Read(tokens)

    @abstractmethod
    def forward(self, read: Read) -> Tensor:
        """Tokens after the blocks -> logits `(b, targets)`."""

    @abstractmethod
    def listens(self, read: Read) -> Tensor:
        """Share of each token in what a target hears: `(b, targets, m)`, rows of ones in sum."""

    def start_from(self, logits: Tensor) -> None:
        """Set the biases so that, the weights being zero, every study gets these `(targets,)` logits."""
        self.bias.copy_(logits)


class MeanHead(Head):
    """The mean of all tokens, normalised, and one linear layer: every box of the neck counts the same."""

    words = "mean of the tokens, one logit a target"

    def __init__(self, *, dim: int, targets: int, heads: int = 1):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.weight, self.bias = nn.Parameter(torch.zeros(targets, dim)), nn.Parameter(torch.zeros(targets))

    def forward(self, read: Read) -> Tensor:
        return F.linear(self.norm(read.tokens.mean(dim=1)), self.weight, self.bias)

    def listens(self, read: Read) -> Tensor:
        b, m, _ = read.tokens.shape
        return read.tokens.new_full((b, len(self.bias), m), 1 / m)


class ClassHead(MeanHead):
    """One more token that belongs to no box, the class token, gathers from all others; its vector gives the logits.

    Source: Devlin et al. 2019, arXiv 1810.04805; for pictures Dosovitskiy et al. 2021, arXiv 2010.11929.
    """

    extra = 1
    words = "class token, one logit a target"

    def __init__(self, *, dim: int, targets: int, heads: int = 1):
        super().__init__(dim=dim, targets=targets)
        self.token = nn.Parameter(0.02 * torch.randn(dim))

    def choose(self, tokens: Tensor, owner: Tensor | None = None) -> Read:
        first = repeat(self.token, "e -> b 1 e", b=len(tokens))
        return Read(torch.cat([first.to(tokens.dtype), tokens], dim=1))

    def forward(self, read: Read) -> Tensor:
        return super().forward(Read(read.tokens[:, :1]))

    def listens(self, read: Read) -> Tensor:
        shares = torch.zeros_like(super().listens(read))
        shares[..., 0] = 1
        return shares


class TargetsHead(Head):
    """One learned question a target, put to all tokens (cross-attention): each target may look elsewhere.

    Source: Carion et al. 2020, arXiv 2005.12872 (object queries), with one layer and no attention among queries.
    """

    words = "a learned query a target"

    def __init__(self, *, dim: int, targets: int, heads: int = 1):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(dim)
        self.query = nn.Parameter(0.02 * torch.randn(targets, dim))
        self.to_kv = nn.Linear(dim, 2 * dim)
        self.out_norm = nn.LayerNorm(dim)
        self.weight, self.bias = nn.Parameter(torch.zeros(targets, dim)), nn.Parameter(torch.zeros(targets))

    def _ask(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q `(b, heads, targets, dh)`, k and v `(b, heads, m, dh)`."""
        kv = self.to_kv(self.norm(tokens))
        k, v = rearrange(kv, "b m (kv heads dh) -> kv b heads m dh", kv=2, heads=self.heads)
        return repeat(self.query.to(k.dtype), "t (heads dh) -> b heads t dh", b=len(k), heads=self.heads), k, v

    def forward(self, read: Read) -> Tensor:
        heard = rearrange(F.scaled_dot_product_attention(*self._ask(read.tokens)), "b heads t dh -> b t (heads dh)")
        return (self.out_norm(heard) * self.weight).sum(dim=-1) + self.bias

    def listens(self, read: Read) -> Tensor:
        q, k, _ = self._ask(read.tokens)
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)


class MaskHead(Head):
    """Every token says how much it looks like a fracture; level k listens to the tokens of vertebra k.

    A token's evidence is one number. A level's logit is the log-mean-exp of the evidence of its own tokens, so that one
    strong token is heard among sixty, plus a bias; the patient's is the noisy-or of the levels plus a correction. Which
    tokens are whose is told by the mask (`owners`). A level without tokens keeps its bias. Without any mask all tokens
    belong to all levels.

    The blocks read only the tokens of C1-C7, a sixth of a neck's. Studies with fewer of them than others of the batch
    are filled up with tokens that nobody looks at.
    """

    reads_mask = True
    words = "evidence of each token; a level listens to its vertebra"

    def __init__(self, *, dim: int, targets: int = len(LEVELS) + 1, heads: int = 1):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.evidence = nn.Linear(dim, 1, bias=False)
        self.token_bias = nn.Parameter(torch.tensor(_TOKEN_LOGIT))
        self.gain = nn.Parameter(torch.ones(len(LEVELS)))
        self.bias = nn.Parameter(torch.zeros(len(LEVELS) + 1))
        nn.init.zeros_(self.evidence.weight)

    def choose(self, tokens: Tensor, owner: Tensor | None = None) -> Read:
        keep, place = _most(owner > 0)
        chosen = tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[-1]))  # (b, m, e)
        return Read(chosen, keep, place, torch.where(keep, owner.gather(1, place), 0))

    def forward(self, read: Read) -> Tensor:
        # Cut from all logits, so that `token_bias` has a gradient of 0 rather than none: processes that train together
        # wait for the gradient of every parameter.
        return self.with_tokens(read)[:, : len(self.bias)]

    def with_tokens(self, read: Read) -> Tensor:
        """Logits of the targets, then of the tokens that were read: float32 `(b, 8 + m)`; filling means nothing."""
        evidence = self.of_tokens(read)
        return torch.cat([self._pool(evidence, read), evidence + self.token_bias], dim=1)

    def everywhere(self, read: Read, count: int) -> Tensor:
        """The same for all `count` tokens of the grid, `(b, 8 + n)`: where nobody looked, the logit of no evidence."""
        logits, seen = self.with_tokens(read).split([len(self.bias), read.place.shape[1]], dim=1)
        silence = self.token_bias.to(logits.dtype).expand(len(logits), count)
        seen = torch.where(read.keep, seen, silence[:, : seen.shape[1]])
        return torch.cat([logits, silence.scatter(1, read.place, seen)], dim=1)

    def of_tokens(self, read: Read) -> Tensor:
        """Evidence of each token that was read: `(b, m)`, float32 at least, 0 before training."""
        evidence = self.evidence(self.norm(read.tokens)).squeeze(-1)
        return evidence.to(torch.promote_types(evidence.dtype, torch.float32))

    def _pool(self, evidence: Tensor, read: Read) -> Tensor:
        """Evidence `(b, m)` -> logits `(b, 8)`."""
        own = _own(read)
        count = own.sum(dim=-1)  # (b, 7)
        heard = evidence[:, None].masked_fill(~own, -torch.inf)
        pooled = heard.logsumexp(dim=-1) - count.clamp_min(1).log()  # of an empty level -inf, which nobody hears
        levels = self.gain * torch.where(count > 0, pooled, 0.0) + self.bias[:-1]
        patient = noisy_or(levels) + self.bias[-1]
        return torch.cat([levels, patient[:, None]], dim=1)

    def listens(self, read: Read) -> Tensor:
        evidence, own = self.of_tokens(read), _own(read)
        levels = evidence[:, None].masked_fill(~own, -torch.inf).softmax(dim=-1).nan_to_num(0.0)  # (b, 7, m)
        # d noisy-or / d logit of a level is proportional to the level's probability.
        share = self._pool(evidence, read)[:, :-1].sigmoid() * own.any(dim=-1)
        patient = (share / share.sum(dim=1, keepdim=True))[:, None] @ levels
        return torch.cat([levels, patient], dim=1)

    def start_from(self, logits: Tensor) -> None:
        self.bias[:-1] = logits[:-1].to(self.bias.dtype)
        self.bias[-1] = (logits[-1] - noisy_or(logits[:-1])).to(self.bias.dtype)


HEADS: dict[str, type[Head]] = {"mean": MeanHead, "cls": ClassHead, "targets": TargetsHead, "mask": MaskHead}


def owners(labels: Tensor, *, frame_patch: int, patch: int, least: int = 4) -> Tensor:
    """Whose token is it? The level with most voxels in its box: labels `(b, f, h, w)` -> `(b, n)`, 0-7, 0 = nobody's.

    Boxes with fewer than `least` voxels of C1-C7 are nobody's.
    """
    boxes = as_boxes(labels, frame_patch=frame_patch, patch=patch)  # (b, n, voxels)
    counts = torch.stack([(boxes == label).sum(dim=-1) for label in CERVICAL_IDS], dim=-1)  # (b, n, 7)
    most, level = counts.max(dim=-1)
    return torch.where(most >= least, level + CERVICAL_IDS[0], 0)


def as_boxes(volume: Tensor, *, frame_patch: int, patch: int) -> Tensor:
    """Voxels of each token: `(b, f, h, w)` -> `(b, n, voxels)`."""
    return rearrange(volume, "b (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw)", pf=frame_patch, ph=patch, pw=patch)


def _own(read: Read) -> Tensor:
    """Which tokens a level listens to: bool `(b, 7, m)`; all of them where a study has none of any level."""
    own = read.owner[:, None] == torch.tensor(list(CERVICAL_IDS), device=read.owner.device)[:, None]
    return own | ~own.any(dim=(1, 2), keepdim=True)


def _most(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted tokens of each study, as many columns as the study with most of them has: `(b, n)` -> two `(b, m)`.

    First whether a column holds a wanted token, second the token's number. A study that wants none gets all, and so
    does then every study.
    """
    wanted = wanted | ~wanted.any(dim=1, keepdim=True)
    count = int(wanted.sum(dim=1).max())
    place = torch.argsort(~wanted, dim=1, stable=True)[:, :count]
    return wanted.gather(1, place), place
