"""What goes wrong in a training is told with its batch and what to try; what data cannot teach is noted."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import Studies, fit, model, saved

from cspine_utils.errors import StackError, TrainingError
from cspine_utils.models.vit3d import ViT3D
from cspine_utils.objectives import CLASSIFICATION
from cspine_utils.training import trouble


class Spoiled(ViT3D):
    """A model to which something happens at its n-th forward pass in training mode."""

    def __init__(self, at, happens):
        super().__init__(**model().config)
        self.left, self.happens = at, happens

    def forward(self, x):
        logits = super().forward(x)
        self.left -= self.training
        return self.happens(logits) if self.training and self.left == 0 else logits


# ---- numbers


def test_an_infinite_gradient_is_told_before_the_weights_move(tmp_path):
    """The square root of 0 has a finite value and an infinite slope. Epoch 1 has 3 batches; the 5th is in epoch 2."""
    net = Spoiled(5, lambda logits: logits + torch.sqrt(logits * 0))
    with pytest.raises(TrainingError, match=r"epoch 2, batch 2 of 3 .*gradient of norm nan.*learning rate") as caught:
        fit(tmp_path, net=net)
    assert "clipping cannot mend" in caught.value.remedy
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert saved(tmp_path, "last.pt")["history"][-1]["epoch"] == 1
    with pytest.raises(TrainingError) as caught:
        fit(tmp_path / "2", net=Spoiled(1, lambda logits: logits + torch.sqrt(logits * 0)), clip=None)
    assert "set clip=1.0" in caught.value.remedy


def test_a_loss_of_nan_from_finite_logits_is_told(tmp_path):
    broken = replace(CLASSIFICATION, name="broken", loss=lambda z, y: (z - z).sum() / (z - z).sum())
    with pytest.raises(TrainingError, match=r"evaluation, batch 1 of 3 .*a loss that is not finite, from finite"):
        fit(tmp_path, objective=broken)
    half = replace(CLASSIFICATION, report={"odd": lambda z, y: z.sum() * math.nan})
    with pytest.raises(TrainingError, match=r"evaluation, batch 1 of 3 .*not finite"):
        fit(tmp_path, objective=half)


# ---- memory


def too_much_torch(logits):
    return torch.empty(2**50)  # more than any machine can address


def too_much_numpy(logits):
    return np.empty(2**57, np.uint8)


def cuda_is_full(logits):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("happens", [too_much_torch, too_much_numpy, cuda_is_full])
def test_no_memory_left_is_told_with_smaller_settings(tmp_path, happens):
    with pytest.raises(TrainingError, match=r"epoch 1, batch 2 of 2 .*no memory left") as caught:
        fit(tmp_path, net=Spoiled(2, happens), batch_size=4)
    assert "batch_size=2 with accumulate doubled" in caught.value.remedy
    assert saved(tmp_path, "last.pt")["history"][-1]["epoch"] == 0
    with pytest.raises(TrainingError) as caught:
        fit(tmp_path / "2", net=Spoiled(1, happens), batch_size=1)
    assert "batch_size" not in caught.value.remedy and "bf16-mixed" in caught.value.remedy


def test_no_memory_for_a_study_is_told_as_well(tmp_path):
    class Huge(Studies):
        def __getitem__(self, i):
            return too_much_torch(None) if i == 2 else super().__getitem__(i)

    with pytest.raises(TrainingError, match=r"evaluation, batch 2 of 3 \(dataset items \[2, 3\]\): .*no memory left"):
        fit(tmp_path, train=Huge(5, 1))


def test_other_errors_of_a_model_stay_what_they_are(tmp_path):
    def wrong(logits):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="^mat1 and mat2"):
        fit(tmp_path, net=Spoiled(1, wrong))


# ---- studies


class Missing(Studies):
    """From the k-th reading on, study 3 cannot be read."""

    def __init__(self, n, seed, after, error):
        super().__init__(n, seed)
        self.left, self.error = after, error
        self.studies = [f"1.2.{i}" for i in range(n)]

    def __getitem__(self, i):
        self.left -= 1
        if i == 3 and self.left < 0:
            raise self.error
        return super().__getitem__(i)


ERRORS = [
    StackError("1.2.3.hu.npy", found="half a file", expected="a whole one", remedy="prepare it anew"),
    FileNotFoundError(2, "No such file", "1.2.3.hu.npy"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["damaged", "gone"])
def test_a_study_that_vanishes_is_named_with_its_batch(tmp_path, error):
    with pytest.raises(TrainingError, match=r"epoch 1, batch \d of 3 .*study 1\.2\.3, dataset\[3\]") as caught:
        fit(tmp_path, train=Missing(5, 1, 5, error))
    assert "hu.npy" in caught.value.found and "prepare this study anew" in caught.value.remedy
    assert caught.value.__cause__ is error
    assert saved(tmp_path, "last.pt")["history"][-1]["epoch"] == 0
    _, result = fit(tmp_path)  # repaired, the run goes on
    assert result.resumed_from == 0 and len(result.history) == 4
    with pytest.raises(TrainingError, match=r"evaluation, batch 2 of 2 .*study 1\.2\.3"):
        fit(tmp_path / "2", validation=Missing(4, 30, 0, error))


# ---- classes


def test_a_target_that_never_varies_is_noted_and_trained_on(tmp_path):
    data = Studies(24, 100)
    assert ((data.y.mean(dim=0) > 0) & (data.y.mean(dim=0) < 1)).all()
    _, result = fit(tmp_path / "whole", train=data, epochs=1)
    assert result.notes == ()
    data.y[:, 2], data.y[:, 7] = 0, 1
    _, result = fit(tmp_path / "poor", train=data, epochs=1)
    c3, patient = result.notes
    assert "none with C3 among 24" in c3 and "none without patient_overall among 24" in patient
    assert json.loads((tmp_path / "poor" / "history.json").read_text())["notes"] == [c3, patient]
    assert fit(tmp_path / "poor", train=data, epochs=1)[1].notes == result.notes  # read back, not counted anew


def test_targets_that_are_not_told_are_no_class():
    y = np.array([[0.0, np.nan, np.nan, 1, 0, 1, 0, 1], [1.0, 1.0, np.nan, 1, 0, 0, 1, 0]])
    notes = trouble.empty_classes(y, "here")
    assert [note.split("none ")[1].split(" among")[0] for note in notes] == [
        "without C2", "that tells C3", "without C4", "with C5",
    ]  # fmt: skip
