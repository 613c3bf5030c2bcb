"""From tokens to the eight logits.

A head maps tokens `(b, n, e)` to logits `(b, targets)`, and `start_from` sets its biases so that an untrained model gives
the same wanted logits to every study: every weight that reads tokens starts at zero.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from cspine_utils.anatomy import CERVICAL_IDS, LEVELS
from cspine_utils.models.base import noisy_or

#: One in so many tokens of vertebrae holds a fracture; the logit of a token starts there.
_TOKEN_LOGIT = -4.0


class MaskHead(nn.Module):
    """Every token says how much it looks like a fracture; level k listens to the tokens of vertebra k.

    A token's evidence is one number. A level's logit is the log-mean-exp of the evidence of its own tokens, so that one
    strong token is heard among sixty, plus a bias; the patient's is the noisy-or of the levels plus a correction. Which
    tokens are whose is told by the mask (`owners`). A level without tokens keeps its bias. Without any mask all tokens
    belong to all levels.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.evidence = nn.Linear(dim, 1, bias=False)
        self.token_bias = nn.Parameter(torch.tensor(_TOKEN_LOGIT))
        self.gain = nn.Parameter(torch.ones(len(LEVELS)))
        self.bias = nn.Parameter(torch.zeros(len(LEVELS) + 1))
        nn.init.zeros_(self.evidence.weight)

    def forward(self, tokens: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `(b, n, e)`, owner `(b, n)` with 0-7 -> logits `(b, 8)`, token logits `(b, n)`."""
        evidence = self.evidence(self.norm(tokens)).squeeze(-1).float()  # (b, n)
        own = owner[:, None] == torch.tensor(list(CERVICAL_IDS), device=owner.device)[:, None]  # (b, 7, n)
        own = own | ~own.any(dim=(1, 2), keepdim=True)
        count = own.sum(dim=-1)
        heard = evidence[:, None].masked_fill(~own, -torch.inf)
        heard = torch.where(count[..., None] > 0, heard, 0.0)  # an empty level: keeps -inf out of the gradient
        pooled = heard.logsumexp(dim=-1) - heard.isfinite().sum(dim=-1).log()
        levels = self.gain * torch.where(count > 0, pooled, 0.0) + self.bias[:-1]
        patient = noisy_or(levels) + self.bias[-1]
        return torch.cat([levels, patient[:, None]], dim=1), evidence + self.token_bias

    def start_from(self, logits: Tensor) -> None:
        self.bias[:-1] = logits[:-1].to(self.bias.dtype)
        self.bias[-1] = (logits[-1] - noisy_or(logits[:-1])).to(self.bias.dtype)


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
