"""How much of everything a ladder takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """One size of the ladder.

    Attributes
    ----------
    crop_pairs, crop_choose, crop_judge : pairs to learn from, to choose the epoch by, to judge by
    crop_epochs, crop_batch, crop_rate : a batch is crops, twins side by side; the rate is the highest learning rate
    crop_rate_again : of a rung that begins with the weights of another one
    necks, necks_choose, necks_judge : whole studies, likewise
    necks_twins : so many of those that judge are also shown without their fractures
    neck_epochs, neck_batch, neck_rate : likewise, a batch is studies
    neck_rate_again : of a rung that begins with the weights of rungs of necks alone: it has less to learn and more to
        lose
    mask_necks, mask_epochs : of the segmenter that draws masks; 87 real studies have label maps
    lever_pairs, lever_epochs, lever_batch : of each recipe of `levers`, pairs out of those of the crops
    study_size : pixels across of the scans
    dim, depth : of the transformer
    precision : see `training.fit`
    """

    crop_pairs: int = 1400
    crop_choose: int = 70
    crop_judge: int = 140
    crop_epochs: int = 16
    crop_batch: int = 32
    crop_rate: float = 2e-3
    crop_rate_again: float = 1e-3
    necks: int = 280
    necks_choose: int = 40
    necks_judge: int = 200
    necks_twins: int = 60
    neck_epochs: int = 3
    neck_batch: int = 4
    neck_rate: float = 5e-4
    neck_rate_again: float = 1e-4
    mask_necks: int = 80
    mask_epochs: int = 30
    lever_pairs: int = 350
    lever_epochs: int = 8
    lever_batch: int = 16
    study_size: int = 160
    dim: int = 128
    depth: int = 4
    precision: str = "auto"


PROFILES = {
    "tiny": Profile(
        crop_pairs=14, crop_choose=7, crop_judge=14, crop_epochs=1, crop_batch=8, necks=6, necks_choose=4,
        necks_judge=8, necks_twins=8, neck_epochs=1, neck_batch=2, mask_necks=2, mask_epochs=1,
        lever_pairs=14, lever_epochs=1, lever_batch=8,
        study_size=64, dim=48, depth=1, precision="32-true",
    ),
    "laptop": Profile(),
}  # fmt: skip


def warmup(taught, batch: int) -> int:
    """Steps of half an epoch, at most 50."""
    return min(50, len(taught) // batch // 2)
