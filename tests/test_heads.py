"""The heads: what each listens to, number for number, and what must not reach it."""

import pytest
import torch
from torch import nn

from cspine_utils.models.heads import HEADS, ClassHead, MaskHead, MeanHead, Read, TargetsHead, as_boxes, owners
from cspine_utils.models.vit3d import ViT3D
from cspine_utils.stacks import MASK_SCALE

SMALL = dict(frames=4, channels=3, size=(8, 12), frame_patch=2, patch=4, dim=12, depth=2, heads=3, head="mask")
#: Owners of tokens: study 0 has C1, C3 and C7, study 1 has C2 alone and fewer tokens.
OWNER = torch.tensor([[0, 1, 3, 3, 0, 7, 3, 1, 0], [2, 0, 0, 2, 0, 0, 0, 2, 0]])


def tokens(seed=0, b=2, n=9, e=12):
    return torch.randn(b, n, e, generator=torch.Generator().manual_seed(seed))


def mask_head(seed=0) -> MaskHead:
    torch.manual_seed(seed)
    head = MaskHead(dim=12)
    with torch.no_grad():
        head.evidence.weight.normal_()
        head.gain.copy_(torch.linspace(0.5, 1.5, 7))
        head.bias.copy_(torch.linspace(-3, 1, 8))
    return head


def model(seed=0, **changes) -> ViT3D:
    torch.manual_seed(seed)
    made = ViT3D(**{**SMALL, **changes}).eval()
    nn.init.normal_(made.head.evidence.weight)
    return made


def study(labels, seed=1):
    """Noise in two channels, the labels `(b, f, h, w)` as `stacks.normalise` gives them in the last."""
    x = torch.randn(len(labels), 4, 3, 8, 12, generator=torch.Generator().manual_seed(seed))
    x[:, :, -1] = (labels / 7 - MASK_SCALE[0]) / MASK_SCALE[1]
    return x


def labels_of_boxes(numbers):
    """Labels `(4, 8, 12)` in which the whole box of token n has label `numbers[n]`."""
    return (
        torch.tensor(numbers).reshape(2, 2, 3).repeat_interleave(2, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    )


FULL = labels_of_boxes([1, 1, 2, 0, 3, 3, 4, 0, 5, 6, 6, 7])
FEW = labels_of_boxes([0, 2, 0, 0, 2, 0, 0, 5, 0, 0, 0, 0])
BLANK = torch.zeros(4, 8, 12, dtype=torch.long)


def test_mean_and_class_token_by_hand():
    torch.manual_seed(0)
    x = tokens()
    for head, heard in (
        (MeanHead(dim=12, targets=5), lambda read: read.tokens.mean(dim=1)),
        (ClassHead(dim=12, targets=5), lambda read: read.tokens[:, 0]),
    ):
        nn.init.normal_(head.weight)
        nn.init.normal_(head.bias)
        read = head.choose(x)
        assert read.tokens.shape[1] == 9 + head.extra
        assert torch.equal(read.tokens[:, head.extra :], x)
        vector = heard(read)
        vector = (vector - vector.mean(-1, keepdim=True)) / (vector.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(head(read), vector @ head.weight.T + head.bias)


def test_the_class_token_is_one_for_all_studies():
    head = ClassHead(dim=12, targets=5)
    first = head.choose(tokens()).tokens[:, 0]
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], head.token)


def test_queries_of_targets_equal_torchs_own_cross_attention():
    torch.manual_seed(0)
    head, x = TargetsHead(dim=12, targets=5, heads=3), tokens()
    nn.init.normal_(head.query)
    nn.init.normal_(head.weight)
    nn.init.normal_(head.bias)
    peer = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([torch.eye(12), head.to_kv.weight]))
        peer.in_proj_bias.copy_(torch.cat([torch.zeros(12), head.to_kv.bias]))
        peer.out_proj.weight.copy_(torch.eye(12))
        peer.out_proj.bias.zero_()
    read = head.norm(x)
    heard, weights = peer(head.query.expand(2, -1, -1), read, read)
    torch.testing.assert_close(head.listens(Read(x)), weights)
    heard = nn.functional.layer_norm(heard, (12,))
    expected = torch.einsum("bte,te->bt", heard, head.weight) + head.bias
    torch.testing.assert_close(head(Read(x)), expected, atol=1e-5, rtol=1e-5)
    assert expected.std(dim=1).min() > 0.1


def test_mask_head_by_hand():
    """Log-mean-exp over the tokens of each vertebra, in plain numbers."""
    head, x = mask_head(), tokens()
    read = head.choose(x, OWNER)
    evidence = (head.norm(x) @ head.evidence.weight.T)[..., 0].tolist()
    logits = head(read)
    for i in range(2):
        none = 1.0
        for level in range(7):
            own = [torch.tensor(evidence[i][n]).exp() for n in range(9) if OWNER[i, n] == level + 1]
            pooled = torch.stack(own).mean().log() if own else torch.tensor(0.0)
            expected = head.gain[level] * pooled + head.bias[level]
            torch.testing.assert_close(logits[i, level], expected, atol=1e-5, rtol=1e-5)
            none *= 1 - expected.sigmoid()
        torch.testing.assert_close(logits[i, 7], torch.logit(1 - none) + head.bias[7], atol=1e-4, rtol=1e-4)


def test_only_tokens_of_vertebrae_are_read_in_their_order():
    read = mask_head().choose(tokens(), OWNER)
    assert read.place.tolist()[0] == [1, 2, 3, 5, 6, 7] and read.place.tolist()[1][:3] == [0, 3, 7]
    assert read.keep.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert read.owner.tolist() == [[1, 3, 3, 7, 3, 1], [2, 2, 2, 0, 0, 0]]
    assert torch.equal(read.tokens[0], tokens()[0, [1, 2, 3, 5, 6, 7]])
    assert torch.equal(read.tokens[1, :3], tokens()[1, [0, 3, 7]])


def test_tokens_of_one_vertebra_reach_its_level_and_the_patient_alone():
    head, x = mask_head(), tokens()
    changed = x.clone()
    changed[0, [2, 3, 6]] = tokens(seed=9)[0, :3]  # C3 of study 0
    moved = (head(head.choose(x, OWNER)) - head(head.choose(changed, OWNER))).abs() > 1e-4
    assert moved.tolist() == [[False, False, True, False, False, False, False, True], [False] * 8]


def test_a_level_without_tokens_keeps_its_bias():
    head = mask_head()
    logits = head(head.choose(tokens(), OWNER))
    for study_number, absent in ((0, [1, 3, 4, 5]), (1, [0, 2, 3, 4, 5, 6])):
        assert torch.equal(logits[study_number, absent], head.bias[absent])
        rest = [k for k in range(7) if k not in absent]
        assert (logits[study_number, rest] - head.bias[rest]).abs().min() > 1e-3


def test_a_blank_mask_makes_every_level_listen_to_all_tokens():
    head, x = mask_head(), tokens()
    read = head.choose(x, OWNER * torch.tensor([[0], [1]]))
    assert read.keep[0].all() and read.place[0].tolist() == list(range(9))
    pooled = head.of_tokens(read)[0].logsumexp(0) - torch.tensor(9.0).log()
    logits = head(read)
    torch.testing.assert_close(logits[0, :7], head.gain * pooled + head.bias[:7])
    torch.testing.assert_close(logits[1], head(head.choose(x[1:], OWNER[1:]))[0])


@pytest.mark.parametrize("with_blank", [False, True])
def test_a_study_alone_answers_as_in_a_batch(with_blank):
    """Filling changes nothing: neither the logits, nor the evidence of tokens, nor the gradients of the input."""
    net = model()
    x = study(torch.stack([FULL, FEW, BLANK if with_blank else FEW.flip(2)])).requires_grad_()
    together = net.evidence(x)
    together.square().sum().backward()
    for i in range(3):
        one = x[i : i + 1].detach().requires_grad_()
        alone = net.evidence(one)
        alone.square().sum().backward()
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.grad[0], x.grad[i], atol=1e-5, rtol=1e-4)
    assert one.grad.abs().max() > 1e-3


def test_evidence_lies_at_the_place_of_its_token():
    net = model()
    x = study(FEW[None])
    found = net.evidence(x)[0, 8:]
    wanted = FEW.reshape(2, 2, 2, 4, 3, 4).amax(dim=(1, 3, 5)).flatten() > 0  # by another way: (f pf h ph w pw)
    assert wanted.nonzero().flatten().tolist() == [1, 4, 7]
    assert torch.equal(found[~wanted], net.head.token_bias.expand(9))
    read = net.encode(x)
    torch.testing.assert_close(found[wanted], net.head.of_tokens(read)[0] + net.head.token_bias)
    torch.testing.assert_close(net.evidence(x)[:, :8], net(x))


def test_half_precision_gives_finite_gradients():
    net = model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net.evidence(study(torch.stack([FULL, FEW, BLANK])))
        read = net.encode(study(FEW[None]))
        assert net.head.evidence(read.tokens).dtype == torch.bfloat16  # what the linear layer itself gives
        assert net.head.of_tokens(read).dtype == found.dtype == torch.float32, "sums over tokens need its digits"
    found.square().mean().backward()
    for name, p in net.named_parameters():
        assert torch.isfinite(p.grad).all(), name
    assert net.embed.weight.grad.abs().max() > 0


def test_absent_levels_give_finite_gradients():
    head = mask_head()
    x = tokens().requires_grad_()
    head(head.choose(x, OWNER)).sum().backward()
    assert torch.isfinite(x.grad).all() and torch.equal(x.grad[OWNER == 0], torch.zeros_like(x.grad[OWNER == 0]))
    assert (x.grad[OWNER > 0].abs().amax(dim=1) > 0).all()


def test_owners_by_counting():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 10, (2, 4, 6, 10), generator=generator)  # 8 and 9 are thoracic
    labels[torch.rand(labels.shape, generator=generator) < 0.7] = 0
    labels[:, :2, :3, 5:] = 6
    found = owners(labels, frame_patch=2, patch=1, least=1).reshape(2, 2, 6, 10)
    for b, f, h, w in ((0, 0, 1, 6), (1, 1, 5, 3), (0, 1, 2, 9)):
        box = labels[b, 2 * f : 2 * f + 2, h, w].tolist()
        counts = [box.count(k) for k in range(1, 8)]
        assert found[b, f, h, w] == (counts.index(max(counts)) + 1 if max(counts) else 0)


def test_owners_of_boxes_with_several_levels_and_with_few_voxels():
    labels = torch.zeros(1, 2, 4, 8, dtype=torch.long)
    labels[0, 0, :2, :2], labels[0, 1, 0, :3] = 2, 5  # first box: four voxels of C2, three of C5
    labels[0, 1, 3, 5:] = 7  # second box: three of C7
    labels[0, :, 2:, 4:] = torch.where(labels[0, :, 2:, 4:] == 0, 9, labels[0, :, 2:, 4:])  # and many of T2
    assert owners(labels, frame_patch=2, patch=4).tolist() == [[2, 0]]
    assert owners(labels, frame_patch=2, patch=4, least=3).tolist() == [[2, 7]]


def test_boxes_are_those_of_the_linear_stem():
    net = ViT3D(**{**SMALL, "channels": 1, "head": "mean"})
    x = torch.arange(4 * 8 * 12.0).reshape(1, 4, 1, 8, 12)
    assert torch.equal(as_boxes(x[:, :, 0], frame_patch=2, patch=4), net.patchify(x))


@pytest.mark.parametrize("name", HEADS)
def test_what_a_head_listens_to_adds_up_to_one(name):
    torch.manual_seed(0)
    head = HEADS[name](dim=12, targets=8, heads=3)
    read = head.choose(tokens(), OWNER)
    shares = head.listens(read)
    assert shares.shape == (2, 8, read.tokens.shape[1]) and shares.min() >= 0
    absent = torch.tensor([[k not in row for k in range(1, 8)] + [False] for row in OWNER.tolist()])
    expected = torch.ones(2, 8) if name != "mask" else torch.where(absent, 0.0, 1.0)
    torch.testing.assert_close(shares.sum(dim=-1), expected)


def test_what_the_mask_head_listens_to_is_its_gradient():
    head = mask_head()
    with torch.no_grad():
        head.gain.fill_(1.0)
    read = head.choose(tokens(), OWNER)
    evidence = head.of_tokens(read).detach().requires_grad_()
    logits, shares = head._pool(evidence, read), head.listens(read)
    for k in range(8):
        (slope,) = torch.autograd.grad(logits[:, k].sum(), evidence, retain_graph=True)
        total = slope.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        torch.testing.assert_close(slope / total, shares[:, k], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_starts_as_the_constant(name):
    wanted = torch.tensor([-2.0, -1.5, -3, -2.5, -1, 0.5, -0.3, 0.8], dtype=torch.float64)
    head = HEADS[name](dim=12, targets=8, heads=3)
    with torch.no_grad():
        head.start_from(wanted)
    logits = head(head.choose(tokens(), OWNER))
    torch.testing.assert_close(logits, wanted.float().expand(2, 8), atol=1e-5, rtol=1e-5)
