"""Maps of where a model looked: computed by other ways, at the right place, and judged by a fair game."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cspine_utils import explain
from cspine_utils.errors import ModelError, ParameterError
from cspine_utils.models.blocks import Attention
from cspine_utils.models.vit3d import ViT3D
from cspine_utils.stacks import MASK_SCALE

# A grid of 2 x 2 x 3 tokens of 2 x 4 x 4 voxels.
SMALL = dict(frames=4, channels=3, size=(8, 12), frame_patch=2, patch=4, dim=12, depth=2, heads=3)
HEADS = ("mean", "cls", "targets", "mask")
#: Whose each of the twelve tokens is: study 0 has more tokens of vertebrae than study 1, so that 1 gets filling.
OWNERS = [[1, 1, 3, 0, 3, 3, 0, 5, 5, 5, 6, 0], [0, 3, 0, 0, 3, 0, 0, 3, 0, 0, 0, 7]]


def in_boxes(numbers):
    """`(..., 12)` -> every voxel of token n has `numbers[n]`, `(..., 4, 8, 12)`."""
    numbers = torch.as_tensor(numbers).reshape(*torch.as_tensor(numbers).shape[:-1], 2, 2, 3)
    for axis, side in ((-3, 2), (-2, 4), (-1, 4)):
        numbers = numbers.repeat_interleave(side, dim=axis)
    return numbers


def study():
    x = torch.randn(2, 4, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    x[:, :, -1] = (in_boxes(OWNERS) / 7 - MASK_SCALE[0]) / MASK_SCALE[1]
    return x


def model(head, seed=0, **changes):
    torch.manual_seed(seed)
    made = ViT3D(**{**SMALL, **changes}, head=head).eval()
    for name, p in made.named_parameters():
        if p.ndim > 1 and "position" not in name:
            nn.init.normal_(p, std=0.4)
    return made


def per_token(voxels):
    """The value of each token, if every voxel of its box has it."""
    tokens = voxels[:, ::2, ::4, ::4].flatten(1)
    assert torch.equal(in_boxes(tokens), voxels)
    return tokens


@pytest.mark.parametrize("head", HEADS)
def test_rollout_written_out(head):
    """Along all paths: from the token that the head hears, step by step back through the blocks."""
    net, x = model(head), study()
    maps, read = net.attention_maps(x), net.encode(x)
    found = per_token(explain.rollout(net, x, "C3"))
    for b in range(2):
        place = range(12) if read.place is None else read.place[b].tolist()
        expected = torch.zeros(12)
        heard = net.head.listens(read)[b, 2]
        for weights in (maps[1, b].mean(dim=0), maps[0, b].mean(dim=0)):  # the last block first
            brought = [sum(heard[i] * weights[i, j] for i in range(len(heard))) for j in range(len(heard))]
            heard = 0.5 * heard + 0.5 * torch.stack(brought)
        for i, n in enumerate(place):
            if read.keep is None or read.keep[b, i]:
                expected[n] = heard[i + net.head.extra]
        torch.testing.assert_close(found[b], expected, atol=1e-6, rtol=1e-4)
    total = found.sum(dim=1)
    if head == "cls":
        assert ((total > 0.3) & (total < 1)).all(), "the rest is the class token's own"
    else:
        torch.testing.assert_close(total, torch.ones(2))


@pytest.mark.parametrize("head", HEADS)
def test_gradient_attention_by_nudging_every_weight(head, monkeypatch):
    """One block: 1 + what each attention weight, moved a little by hand, does to the logit."""
    net, x = model(head, depth=1).double(), study()[:1].double()
    read, (maps,) = net.encode(x), net.attention_maps(x)
    m, step, original = read.tokens.shape[1], 1e-5, Attention.weights
    relevance = torch.eye(m, dtype=torch.float64)
    for i in range(m):
        for j in range(m):
            slopes = []
            for h in range(3):
                change = torch.zeros(1, 3, m, m, dtype=torch.float64)
                change[0, h, i, j] = step
                nudged = staticmethod(lambda q, k, mask=None, change=change: original(q, k, mask) + change)
                monkeypatch.setattr(Attention, "weights", nudged)
                with net.whole_attention(), torch.no_grad():
                    up = net(x)[0, 2]
                change.neg_()
                with net.whole_attention(), torch.no_grad():
                    slopes.append(float((up - net(x)[0, 2]) / (2 * step)))
            monkeypatch.setattr(Attention, "weights", staticmethod(original))
            helped = [max(0.0, slope * float(maps[0, h, i, j])) for h, slope in enumerate(slopes)]
            relevance[i, j] += sum(helped) / 3
    expected = (net.head.listens(read)[0, 2] @ relevance)[net.head.extra :]
    found = per_token(explain.gradient_attention(net, x, "C3").double())[0]
    found = found if read.place is None else found[read.place[0]]
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-5)
    assert expected.std() > 1e-4


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("way", [explain.rollout, explain.gradient_attention])
def test_a_study_alone_has_the_map_that_it_has_in_a_batch(way, head):
    net, x = model(head), study()
    both = way(net, x, "patient_overall")
    assert both.shape == (2, 4, 8, 12) and torch.isfinite(both).all() and both.min() >= 0
    for b in range(2):
        torch.testing.assert_close(way(net, x[b : b + 1], "patient_overall")[0], both[b], atol=1e-6, rtol=1e-4)
    if head == "mask":
        assert not both[in_boxes(OWNERS) == 0].any(), "nobody read there"


@pytest.mark.parametrize("way", [explain.rollout, explain.gradient_attention])
def test_maps_have_the_size_of_the_study_that_was_read(way):
    """A model with computed positions reads larger studies, too."""
    net, larger = model("mask", position="sincos"), model("mask", position="sincos", frames=6, size=(12, 8))
    larger.load_state_dict(net.state_dict())
    x = torch.cat([study(), study()[:, :2]], dim=1).transpose(3, 4)[:, :, :, :, :8].contiguous()
    assert x.shape == (2, 6, 3, 12, 8)
    torch.testing.assert_close(way(net, x, "C3"), way(larger, x, "C3"))
    torch.testing.assert_close(explain.token_evidence(net, x), explain.token_evidence(larger, x))
    assert explain.token_evidence(net, x).shape == (2, 6, 12, 8)


def test_maps_leave_the_model_as_it_was_and_need_no_gradients_of_weights():
    net, x = model("mask"), study()
    expected = explain.gradient_attention(net, x, "C5")
    net.checkpoint_activations = True
    net.requires_grad_(False)
    torch.testing.assert_close(explain.gradient_attention(net, x, "C5"), expected)
    assert net.checkpoint_activations and all(p.grad is None for p in net.parameters())
    assert not any(m.kept for m in net.modules() if isinstance(m, Attention)) and not x.requires_grad


def seeing(sign: float) -> ViT3D:
    """A model whose tokens say how bright their box is in channel 0 (sign -1: how dark); its blocks do nothing."""
    torch.manual_seed(0)
    net = ViT3D(**SMALL, head="mask", position="sincos").eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if not name.startswith("head"):
                p.zero_()
        net.position.zero_()
        net.embed.weight.reshape(12, -1, 3)[0, :, 0] = 1.0
        net.embed.bias[1], net.embed.bias[2] = 40.0, -40.0
        net.head.evidence.weight[0, 0] = sign
    return net


def shown_fracture():
    """A study of which C5, three tokens, has one bright box: (x, altered, labels)."""
    x, labels = study()[:1], in_boxes(OWNERS)[0]
    altered = torch.zeros(4, 8, 12, dtype=torch.bool)
    altered[2:, 6:, :1] = True  # in the corner of token 9, 4 voxels from the other two
    x[0, :, 0] = 0.01 * x[0, :, 0]
    x[0, :, 0][altered] = 3.0
    return x, altered, labels


def judge(values, altered, labels, level="C5", tolerance_mm=0.0, spacing_mm=(1.0, 1.0, 1.0), seed=0):
    generator = torch.Generator().manual_seed(seed)
    how = {"spacing_mm": spacing_mm, "tolerance_mm": tolerance_mm, "generator": generator}
    return explain.point(values, altered, labels, level, **how)


WAYS = {
    "evidence": lambda net, x: explain.token_evidence(net, x),
    "rollout": lambda net, x: explain.rollout(net, x, "C5"),
    "gradients": lambda net, x: explain.gradient_attention(net, x, "C5"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_model_that_sees_the_fracture_points_at_it_and_one_that_avoids_it_does_not(way):
    x, altered, labels = shown_fracture()
    for sign, expected in ((1.0, True), (-1.0, False)):
        values = way(seeing(sign), x)[0]
        assert torch.equal(values, in_boxes(per_token(values[None]))[0])
        pointed = judge(values, altered, labels, tolerance_mm=3.7)
        assert pointed.hit == expected and pointed.level == "C5" and labels[pointed.voxel] == 5


def test_the_voxel_pointed_at_is_the_strongest_within_the_vertebra():
    labels = np.zeros((4, 6, 9), int)
    labels[1:3, 2:5, 3:8] = 4
    altered = np.zeros(labels.shape, bool)
    altered[2, 4, 6] = True
    values = np.zeros(labels.shape)
    values[0, 0, 0], values[1, 2, 6] = 9.0, 1.0  # the overall maximum lies outside
    pointed = judge(values, altered, labels, "C4", spacing_mm=(2.0, 0.5, 0.7))
    assert pointed.voxel == (1, 2, 6) and not pointed.hit
    assert pointed.distance_mm == pytest.approx(math.hypot(2.0, 2 * 0.5))
    assert judge(values, altered, labels, "C4", tolerance_mm=2.3, spacing_mm=(2.0, 0.5, 0.7)).hit
    assert not judge(values, altered, labels, "C4", tolerance_mm=2.2, spacing_mm=(2.0, 0.5, 0.7)).hit
    # The middle is (1 or 2, 3, 5): 0.5 mm and 0.7 mm beside the altered voxel, or a frame away as well.
    assert judge(values, altered, labels, "C4", tolerance_mm=2.2, spacing_mm=(2.0, 0.5, 0.7)).centre_hit
    assert not judge(values, altered, labels, "C4", tolerance_mm=0.8, spacing_mm=(2.0, 0.5, 0.7)).centre_hit


def test_chance_by_trying_every_voxel():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (5, 6, 7))
    altered = (generator.random(labels.shape) < 0.05) & (labels == 2)
    spacing = (1.5, 0.8, 1.1)
    hits = []
    for voxel in np.argwhere(labels == 2):
        away = [np.sqrt((((voxel - other) * spacing) ** 2).sum()) for other in np.argwhere(altered)]
        hits.append(min(away) <= 1.6)
    pointed = judge(np.zeros(labels.shape), altered, labels, "C2", tolerance_mm=1.6, spacing_mm=spacing)
    assert 0.1 < np.mean(hits) < 0.9 and pointed.chance == pytest.approx(np.mean(hits))


def test_a_map_without_preference_hits_as_often_as_chance():
    _, altered, labels = shown_fracture()
    flat = torch.ones(labels.shape)
    found = [judge(flat, altered, labels, tolerance_mm=1.0, seed=seed) for seed in range(400)]
    rate, chance = np.mean([p.hit for p in found]), found[0].chance
    assert abs(rate - chance) < 4 * math.sqrt(chance * (1 - chance) / 400) and 0.1 < chance < 0.9
    assert found[0] == judge(flat, altered, labels, tolerance_mm=1.0, seed=0), "the generator decides"


def test_the_fracture_of_a_neighbour_is_no_hit():
    labels = np.zeros((3, 4, 12), int)
    labels[:, :, :5], labels[:, :, 7:] = 3, 6
    altered = np.zeros(labels.shape, bool)
    altered[1, 2, 8], altered[1, 2, 0] = True, True  # one in each
    values = np.zeros(labels.shape)
    values[1, 2, 4] = 1.0
    assert judge(values, altered, labels, "C3").distance_mm == 4.0, "not 4 to the right, but 4 to the left"
    altered[1, 2, 8], altered[1, 2, 5] = False, True  # in the gap, nearer to C3
    assert judge(values, altered, labels, "C3").distance_mm == 1.0
    with pytest.raises(ParameterError, match="no altered voxel at C6"):
        judge(values, altered, labels, "C6")


def test_the_game_counts_and_gives_wilsons_interval():
    one = explain.Pointing("C2", (0, 0, 0), 0.0, hit=True, centre_hit=False, chance=0.25)
    other = explain.Pointing("C5", (0, 0, 0), 9.0, hit=False, centre_hit=True, chance=0.05)
    table = explain.pointing_game([one] * 7 + [other] * 3)
    assert table.loc["map", ["hits", "vertebrae", "rate"]].tolist() == [7, 10, 0.7]
    assert table.loc["centre of the vertebra", "rate"] == 0.3
    assert table.loc["chance", "rate"] == pytest.approx((7 * 0.25 + 3 * 0.05) / 10)
    z, p, n = 1.959964, 0.7, 10
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert table.loc["map", ["low", "high"]].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ParameterError, match="pointing_game"):
        explain.pointing_game([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, a, n: (v[1:], a, n, "C5"), r"\(3, 8, 12\), altered \(4, 8, 12\).*one shape"),
        (lambda v, a, n: (v, a, n, "C8"), "'C8'; expected one of C1"),
        (lambda v, a, n: (v, a, n, "C4"), "no voxel of C4"),
        (lambda v, a, n: (v, a & False, n, "C5"), "no altered voxel at C5"),
        (lambda v, a, n: (v * math.nan, a, n, "C5"), "not finite"),
    ],
)
def test_what_cannot_be_judged_is_refused(change, message):
    _, altered, labels = shown_fracture()
    with pytest.raises(ParameterError, match=message):
        judge(*change(torch.ones(labels.shape), altered, labels))


def test_a_model_that_drops_things_and_unknown_targets_are_refused():
    for way in (explain.rollout, explain.gradient_attention):
        with pytest.raises(ParameterError, match=r"training mode.*model.eval\(\)"):
            way(model("mean").train(), study(), "C3")
        with pytest.raises(ParameterError, match="'patient'.*patient_overall"):
            way(model("mean"), study(), "patient")
    with pytest.raises(ModelError, match="no evidence a token"):
        explain.token_evidence(model("cls"), study())
