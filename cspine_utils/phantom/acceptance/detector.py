"""Can a small network learn to see the fractures, and are the presets ordered by difficulty?

One 3D CNN of about 0.2 million weights looks at crops of one vertebra (HU and the vertebra's mask). It is taught as the
first trial found best for minutes on one CPU thread: every crop beside its intact twin in the same
batch, a target for each token (does it hold altered voxels?), and an image score that is the log-sum-exp of the token
scores, so that evidence stays where it is. It is trained on all presets together and tested on patients whom it has
not seen, preset by preset: what differs between the results is then the data alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from cspine_utils.anatomy import LABEL_IDS, LEVELS

from ..fractures import DIFFICULTIES
from ..rendering import render_vertebra_pair
from ..study import draw_plan
from ..truth import Rendered
from .report import Row

#: Voxels of a crop, voxels of a token (all three must divide), pixels across of the studies that crops are cut from:
#: with 136 the voxels are 1.2-1.3 mm wide.
SHAPE, TOKEN, STUDY_SIZE = (32, 48, 48), 4, 136

#: A token is a target if it holds this many altered voxels.
TOKEN_VOXELS = 4

#: Wanted AUROC within levels on unseen patients: an easy set must be learnable in minutes, a standard one neither
#: trivial nor hopeless (above .97 would be too easy, below .62 too hard), a hard one not impossible.
WANTED = {"easy": (0.75, 1.0), "standard": (0.62, 0.97), "hard": (0.50, 0.95)}

#: A network that sees masks alone may tell by moved pieces (the label follows the bone), but not by a gap.
MASK_LIMIT = 0.60


@dataclass(frozen=True, eq=False)
class Pairs:
    """Crops of broken vertebrae and of their intact twins.

    Attributes
    ----------
    x : float16 `(n, 2, 2, d, h, w)`: pair, broken or twin, channel (HU / 500 within -300..1500, own mask)
    altered : bool `(n, d, h, w)` of the broken one
    levels, difficulty, patient : of each pair, `(n,)`
    """

    x: torch.Tensor
    altered: torch.Tensor
    levels: np.ndarray
    difficulty: np.ndarray
    patient: np.ndarray


def channels(study: Rendered, level: str) -> np.ndarray:
    """A crop as the network sees it, float16 `(2, d, h, w)`."""
    hu = np.clip(study.hu.astype(np.float32), -300, 1500) / 500
    return np.stack([hu, study.labels == LABEL_IDS[level]]).astype(np.float16)


def draw_pairs(difficulty: str, count: int, seed: int, *, first: int = 0, progress: bool = True) -> Pairs:
    """Render `count` pairs, one a patient, levels in turn; patients are numbered from `first`."""
    xs, masks, levels = [], [], []
    for i in tqdm(range(count), desc=f"crops, {difficulty}", unit="pair", disable=not progress):
        level = LEVELS[i % len(LEVELS)]
        plan = draw_plan(seed, first + i, size=STUDY_SIZE, difficulty=difficulty, levels=(level,))
        box = tuple(n * mm for n, mm in zip(SHAPE, plan.grid.spacing_mm, strict=True))
        broken, twin = render_vertebra_pair(plan, level, box_mm=box)
        xs.append(np.stack([channels(study, level) for study in (broken, twin)]))
        masks.append(broken.altered)
        levels.append(level)
    number = np.arange(first, first + count)
    x, altered = torch.from_numpy(np.stack(xs)), torch.from_numpy(np.stack(masks))
    return Pairs(x, altered, np.array(levels), np.full(count, difficulty), number)


def joined(sets: list[Pairs]) -> Pairs:
    """Several sets as one."""
    return Pairs(
        torch.cat([s.x for s in sets]),
        torch.cat([s.altered for s in sets]),
        *(np.concatenate([getattr(s, name) for s in sets]) for name in ("levels", "difficulty", "patient")),
    )


class Detector(nn.Module):
    """`(b, 2, d, h, w)` -> token logits `(b, d/4, h/4, w/4)`; six 3D convolutions, two of stride 2."""

    def __init__(self, width: int = 16):
        super().__init__()
        plan = [(2, width, 2), (width, 2 * width, 1), (2 * width, 3 * width, 2), (3 * width, 3 * width, 1)]
        layers = []
        for a, b, stride in [*plan, (3 * width, 3 * width, 1)]:
            layers += [nn.Conv3d(a, b, 3, stride, 1, bias=False), nn.GroupNorm(4, b), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv3d(3 * width, 1, 1)
        nn.init.constant_(self.head.bias, -4.0)  # few tokens are broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)).squeeze(1)


def image_score(tokens: torch.Tensor) -> torch.Tensor:
    """One score a crop: the log-sum-exp of its token logits `(b, ...)` -> `(b,)`."""
    return torch.logsumexp(tokens.flatten(1), dim=1)


def token_targets(altered: torch.Tensor) -> torch.Tensor:
    """`(b, d, h, w)` bool -> `(b, d/4, h/4, w/4)` float: does the token hold altered voxels?"""
    share = F.avg_pool3d(altered[:, None].float(), TOKEN)[:, 0]
    return (share * TOKEN**3 >= TOKEN_VOXELS - 0.5).float()


def loss_of(tokens: torch.Tensor, targets: torch.Tensor, broken: torch.Tensor) -> torch.Tensor:
    """Image cross-entropy and five times the token cross-entropy, broken tokens five times as heavy."""
    heavy = torch.tensor(5.0)
    return F.binary_cross_entropy_with_logits(image_score(tokens), broken) + 5.0 * F.binary_cross_entropy_with_logits(
        tokens, targets, pos_weight=heavy
    )


def _batches(pairs: Pairs, size: int, rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, ...]]:
    """Endless batches of `size` pairs (2 `size` crops), mirrored, moved by up to two voxels, brightened at random."""
    while True:
        order = rng.permutation(len(pairs.x))
        for start in range(0, len(order) - size + 1, size):
            chosen = torch.from_numpy(order[start : start + size])
            x = pairs.x[chosen].float()  # (size, 2, 2, d, h, w)
            altered = torch.stack([pairs.altered[chosen], torch.zeros_like(pairs.altered[chosen])], 1)
            if rng.random() < 0.5:
                x, altered = x.flip(-1), altered.flip(-1)
            move = [int(m) for m in rng.integers(-2, 3, 3)]
            x, altered = (t.roll(move, dims=(-3, -2, -1)) for t in (x, altered))
            x[:, :, 0] = x[:, :, 0] * float(rng.uniform(0.93, 1.07)) + float(rng.uniform(-0.05, 0.05))
            broken = torch.tensor([1.0, 0.0]).repeat(size)
            yield x.flatten(0, 1), token_targets(altered.flatten(0, 1)), broken


def train(pairs: Pairs, *, steps: int, rng: np.random.Generator, progress: bool = True) -> Detector:
    """Train for so many steps of six pairs; the learning rate falls linearly. Same seed, same network on one thread."""
    torch.manual_seed(int(rng.integers(2**31)))
    model = Detector()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    with tqdm(total=steps, desc="detector", unit="step", disable=not progress) as bar:
        for step, (x, targets, broken) in zip(range(steps), _batches(pairs, 6, rng), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * (1.0 - 0.95 * step / steps)
            optimiser.zero_grad()
            loss = loss_of(model(x), targets, broken)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
    return model.eval()


@torch.no_grad()
def scores(model: Detector, pairs: Pairs) -> np.ndarray:
    """Scores of broken and twin, `(n, 2)`: mean over the crop and its mirror image."""
    found = []
    for start in range(0, len(pairs.x), 8):
        x = pairs.x[start : start + 8].float().flatten(0, 1)
        found.append((image_score(model(x)) + image_score(model(x.flip(-1)))).reshape(-1, 2) / 2)
    return torch.cat(found).numpy()


def level_auroc(score: np.ndarray, levels: np.ndarray, patient: np.ndarray) -> float:
    """Mean over levels of the AUROC of broken `(n, 0)` against intact `(n, 1)` vertebrae of that level.

    A vertebra is never held against its own twin: on a new patient there is none.
    """
    values = []
    for level in np.unique(levels):
        own = levels == level
        gap = score[own, 0][:, None] - score[own, 1]
        other = patient[own][:, None] != patient[own]
        if other.any():
            values.append((np.sign(gap)[other].mean() + 1) / 2)
    return float(np.mean(values))


def bootstrapped(score, levels, patient, rng: np.random.Generator, draws: int = 400) -> tuple[float, float]:
    """95 % interval of `level_auroc`, patients drawn again within each level."""
    groups = [np.flatnonzero(levels == k) for k in np.unique(levels)]
    values = []
    for _ in range(draws):
        chosen = np.concatenate([rng.choice(g, len(g)) for g in groups])
        values.append(level_auroc(score[chosen], levels[chosen], patient[chosen]))
    return tuple(float(v) for v in np.quantile(values, [0.025, 0.975]))


def without_hu(pairs: Pairs) -> Pairs:
    """The same crops with the mask alone: what the label map knows."""
    return replace(pairs, x=pairs.x * torch.tensor([0.0, 1.0], dtype=pairs.x.dtype).reshape(1, 1, 2, 1, 1, 1))


def detector_rows(
    *, seed: int, train_pairs: int = 630, test_pairs: int = 105, steps: int = 700, mask_steps: int = 240,
    progress: bool = True, difficulties: tuple[str, ...] = tuple(DIFFICULTIES),
) -> list[Row]:  # fmt: skip
    """Train on all presets, test each on `test_pairs` unseen patients; about 12 minutes on one thread.

    A second network is trained for `mask_steps` steps on the masks alone: a label map must not tell what is broken.
    """
    rng = np.random.default_rng((seed, 6))
    share = train_pairs // len(difficulties)

    def draw(first: int, count: int) -> list[Pairs]:
        sets = enumerate(difficulties)
        return [draw_pairs(d, count, seed, first=first + 10_000 * i, progress=progress) for i, d in sets]

    taught, tests = joined(draw(100_000, share)), draw(200_000, test_pairs)
    model = train(taught, steps=steps, rng=rng, progress=progress)
    rows, found = [], {}
    for name, test in zip(difficulties, tests, strict=True):
        score = scores(model, test)
        found[name], note = _judged(score, test, rng)
        what = f"{name}: AUROC within levels, unseen patients"
        rows.append(Row("detector", what, found[name], *WANTED[name], 2 * test_pairs, note))
        own = float((score[:, 0] > score[:, 1]).mean())
        rows.append(Row("detector", f"{name}: broken above its own twin", own, 0.5, 1.0, test_pairs, judged=False))
    for easier, harder in zip(difficulties, difficulties[1:], strict=False):
        gap = found[easier] - found[harder]
        rows.append(Row("detector", f"AUROC {easier} - {harder}", gap, 0.0, None, 2 * test_pairs))
    if mask_steps:
        blind, test = train(without_hu(taught), steps=mask_steps, rng=rng, progress=progress), joined(tests)
        value, note = _judged(scores(blind, without_hu(test)), test, rng)
        rows.append(Row("detector", "masks alone: AUROC within levels", value, None, MASK_LIMIT, 2 * len(test.x), note))
    return rows


def _judged(score: np.ndarray, test: Pairs, rng: np.random.Generator) -> tuple[float, str]:
    """`level_auroc` with its interval as a note."""
    low, high = bootstrapped(score, test.levels, test.patient, rng)
    return level_auroc(score, test.levels, test.patient), f"95 % {low:.3f} .. {high:.3f}"
