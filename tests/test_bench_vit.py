"""The bench of training steps: are its contestants of one form, and are its limits judged by what was measured?"""

import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "bench"))

import bench_io
import bench_vit

TINY = replace(bench_vit.FORMS["small"], frames=8, size=32, dim=48, heads=3, depth=2)


def test_the_forms_are_those_of_the_bars():
    assert {name: form.tokens for name, form in bench_vit.FORMS.items()} == {"small": 392, "large": 5292}
    assert {"vit_3d", "MONAI ViT", bench_vit.OURS} <= set(bench_vit.installed())


@pytest.mark.parametrize("name", bench_vit.installed())
def test_every_contestant_has_the_same_form_and_learns(name):
    """The same number of weights but for norms, biases and a class token, which are vectors."""
    step = bench_vit.Step(name, TINY, "cpu", bf16=False)
    before = [p.detach().clone() for p in step.model.parameters()]
    logits = step()
    assert logits.shape == (2, 8) and torch.isfinite(logits).all()
    assert any(not torch.equal(p, q) for p, q in zip(step.model.parameters(), before, strict=True))
    matrices = [p.numel() for p in step.model.parameters() if p.ndim > 1 and p.shape[0] != 1]
    ours = [p.numel() for p in bench_vit.ours(TINY).parameters() if p.ndim > 1 and p.shape[0] != 1]
    assert sum(matrices) == sum(ours)


@pytest.mark.parametrize(("seconds", "peak", "met"), [(0.3, 20, [True, True]), (0.6, 30, [False, False])])
def test_limits_are_judged_by_the_ratios(seconds, peak, met):
    form = bench_vit.FORMS["large"]
    found = bench_io.Contest("x", 1, seconds={bench_vit.OURS: [seconds, 2 * seconds], "vit_3d": [1.0, 2.0]})
    rows = bench_vit.limits(form, found, {bench_vit.OURS: peak, "vit_3d": 100})
    assert [row[3] == "met" for row in rows] == met and rows[0][1] == f"{seconds:.2f}"
    assert bench_vit.limits(form, replace(found, seconds={bench_vit.OURS: [1.0]}), {}) == []
