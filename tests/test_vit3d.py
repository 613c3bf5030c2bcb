"""The 3D ViT: what it computes, not which shape it returns."""

import math

import pytest
import torch
from torch import nn

from cspine_utils import diagrams
from cspine_utils.errors import ModelError, ParameterError
from cspine_utils.models.blocks import Attention, Blocks, DropPath
from cspine_utils.models.vit3d import ViT3D
from cspine_utils.stacks import MASK_SCALE

# Every axis and every patch has another length, so that no two can be mixed up unseen.
SMALL = dict(frames=6, channels=5, size=(8, 12), frame_patch=3, patch=4, dim=24, depth=2, heads=3, mlp_ratio=2)


#: Every stem, every kind of position and every head, each at least once.
VARIANTS = {
    "mean": {},
    "cls": dict(stem="conv", position="sincos", head="cls"),
    "targets": dict(position="sincos", head="targets"),
    "mask": dict(stem="conv", position="sincos", head="mask"),
    "mask, linear": dict(head="mask"),
}


def small(seed=0, **changes):
    """A small model whose head is not zero, so that its answer depends on the input."""
    torch.manual_seed(seed)
    model = ViT3D(**{**SMALL, **changes}).eval()
    for weight in model.head.parameters():
        if weight.ndim > 1 and not weight.any():
            nn.init.normal_(weight)
    return model


def study(seed=1, b=2, shape=(6, 5, 8, 12)):
    """Noise, and in the last channel a mask in which most boxes belong to a vertebra, each study another one."""
    x = torch.randn(b, *shape, generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(b, shape[0], *shape[2:])
    for i in range(b):
        labels[i, :3, :5, 4 * i :], labels[i, 3:, :, 5:], labels[i, 2:, 4:, :4] = 1 + i, 3, 5
    x[:, :, -1] = (labels / 7 - MASK_SCALE[0]) / MASK_SCALE[1]
    return x


def patches_by_slicing(x, pf, p):
    """Tokens in the order (frame, row, column); inside one: frame, row, column, channel."""
    b, f, c, h, w = x.shape
    tokens = []
    for i in range(0, f, pf):
        for j in range(0, h, p):
            for k in range(0, w, p):
                box = x[:, i : i + pf, :, j : j + p, k : k + p]  # b pf c ph pw
                tokens.append(box.permute(0, 1, 3, 4, 2).reshape(b, -1))
    return torch.stack(tokens, dim=1)


def test_patchify_equals_slicing_by_hand():
    x = torch.arange(2 * 6 * 5 * 8 * 12, dtype=torch.float32).reshape(2, 6, 5, 8, 12)
    tokens = small().patchify(x)
    assert torch.equal(tokens, patches_by_slicing(x, 3, 4))
    # one number by hand: study 1, second row of boxes, first column; inside: frame 2, row 3, column 1, channel 4
    assert tokens[1, 3, ((2 * 4 + 3) * 4 + 1) * 5 + 4] == x[1, 2, 4, 7, 1]


def test_attention_equals_the_formula():
    torch.manual_seed(0)
    attention, x = Attention(dim=24, heads=3).eval(), torch.randn(2, 7, 24)
    weight, bias = attention.to_qkv.weight, attention.to_qkv.bias
    q, k, v = ((x @ weight[i : i + 24].T + bias[i : i + 24]).reshape(2, 7, 3, 8) for i in (0, 24, 48))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(8)
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    mixed = torch.einsum("bhij,bjhd->bihd", weights, v).reshape(2, 7, 24)
    expected = mixed @ attention.to_out[0].weight.T + attention.to_out[0].bias
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)


def test_forward_equals_torchs_own_encoder():
    model, x = small(), study()
    layers = []
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            24, 3, dim_feedforward=48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        pairs = {
            "self_attn.in_proj_weight": block.attention.to_qkv.weight,
            "self_attn.in_proj_bias": block.attention.to_qkv.bias,
            "self_attn.out_proj.weight": block.attention.to_out[0].weight,
            "self_attn.out_proj.bias": block.attention.to_out[0].bias,
            "linear1.weight": block.mlp[0].weight,
            "linear1.bias": block.mlp[0].bias,
            "linear2.weight": block.mlp[3].weight,
            "linear2.bias": block.mlp[3].bias,
            "norm1.weight": block.attention_norm.weight,
            "norm1.bias": block.attention_norm.bias,
            "norm2.weight": block.mlp_norm.weight,
            "norm2.bias": block.mlp_norm.bias,
        }
        layer.load_state_dict({name: value.detach() for name, value in pairs.items()})
        layers.append(layer)
    tokens = patches_by_slicing(x, 3, 4) @ model.embed.weight.T + model.embed.bias + model.position
    for layer in layers:
        tokens = layer(tokens)
    head = model.head
    pooled = nn.functional.layer_norm(tokens.mean(dim=1), (24,), head.norm.weight, head.norm.bias)
    expected = pooled @ head.weight.T + head.bias
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


def swap_two_patches(x):
    x = x.clone()
    x[:, :3, :, :4, :4], x[:, 3:, :, 4:, 8:] = x[:, 3:, :, 4:, 8:].clone(), x[:, :3, :, :4, :4].clone()
    return x


def zero(channel):
    def change(x):
        x = x.clone()
        x[:, :, channel] = 0
        return x

    return change


CHANGES = {
    "two patches swapped": swap_two_patches,
    "rows and columns swapped": lambda x: x.transpose(3, 4),
    "frames reversed": lambda x: x.flip(1),
    "rows reversed": lambda x: x.flip(3),
    "columns reversed": lambda x: x.flip(4),
    **{f"channel {c} blank": zero(c) for c in range(5)},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CHANGES)
def test_output_depends_on_where_things_are(name, variant):
    model, x = small(size=8, **VARIANTS[variant]), study(shape=(6, 5, 8, 8))
    if name == "two patches swapped":
        model, x = small(**VARIANTS[variant]), study()
    with torch.no_grad():
        assert (model(x) - model(CHANGES[name](x))).abs().max() > 1e-3


def test_without_positions_swapped_patches_go_unseen():
    """The fixture for the test above: it is the position embedding that tells the patches apart."""
    model, x = small(), study()
    nn.init.zeros_(model.position)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(swap_two_patches(x)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_studies_of_a_batch_do_not_mix(variant):
    model, x = small(**VARIANTS[variant]), study(b=3)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant):
    model = small(**VARIANTS[variant])
    answer = model.evidence(study()) if model.head.reads_mask else model(study())
    answer.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plain_answer_gives_every_parameter_a_gradient_if_only_zero(variant):
    """Processes that train together wait for all of them."""
    model = small(**VARIANTS[variant])
    model(study()).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_maps_are_what_the_fused_kernel_used(variant):
    model, x = small(**VARIANTS[variant], depth=3), study()
    maps = model.attention_maps(x)
    read = model.read(x)
    m = read.tokens.shape[1]
    assert maps.shape == (3, 2, 3, m, m) and m >= 8 + model.head.extra
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(3, 2, 3, m))
    if read.keep is not None:
        assert not read.keep.all() and (maps * ~read.keep[:, None, None]).max() == 0
    tokens = read.tokens
    for block, weights in zip(model.blocks, maps, strict=True):
        attention = block.attention
        value = attention.to_qkv(block.attention_norm(tokens))[..., 48:].reshape(2, m, 3, 8)
        mixed = torch.einsum("bhij,bjhd->bihd", weights, value).reshape(2, m, 24)
        tokens = tokens + attention.to_out(mixed)
        tokens = tokens + block.mlp(block.mlp_norm(tokens))
    torch.testing.assert_close(tokens, model.encode(x).tokens, atol=1e-5, rtol=1e-5)
    assert all(block.attention.kept is None for block in model.blocks)


@pytest.mark.parametrize("variant", ["mean", "mask"])
def test_checkpointed_activations_give_the_same_gradients(variant):
    """Also with everything random on: a block that runs again must draw what it drew before."""
    gradients = []
    for again in (False, True):
        model = small(**VARIANTS[variant], dropout=0.2, drop_path=0.3, depth=3).train()
        model.checkpoint_activations = again
        torch.manual_seed(4)
        model(study()).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_a_checkpointed_model_runs_its_blocks_twice_and_others_once():
    runs = []
    for again in (False, True):
        model, seen = small(), []
        model.blocks[0].attention_norm.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        model.checkpoint_activations = again
        model(study()).sum().backward()
        with torch.no_grad():
            model(study())
        runs.append(len(seen))
    assert runs == [2, 3]


def test_drop_path_drops_whole_studies_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.randn(4000, 2, 3)
    out = DropPath(0.3).train()(x)
    kept = out.flatten(1).any(dim=1)
    assert torch.equal(out[~kept], torch.zeros_like(out[~kept]))
    torch.testing.assert_close(out[kept], x[kept] / 0.7)
    assert 0.67 < kept.float().mean() < 0.73
    assert torch.equal(DropPath(0.3).eval()(x), x) and torch.equal(DropPath(0.0).train()(x), x)


def test_stochastic_depth_rises_evenly_and_acts_in_training_only():
    model, x = small(depth=4, drop_path=0.3), study()
    assert [block.drop_path.share for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert small(depth=1, drop_path=0.3).blocks[0].drop_path.share == 0
    with torch.no_grad():
        assert torch.equal(model(x), small(depth=4)(x))
        model.train()
        answers = {tuple(model(x)[0].tolist()) for _ in range(20)}
    assert len(answers) > 2


def test_a_block_whose_paths_are_dropped_passes_on_what_came_in():
    model = small(depth=2, drop_path=0.999).train()
    x = torch.randn(3, 8, 24)
    torch.manual_seed(1)
    torch.testing.assert_close(model.blocks[1](x), x, atol=0, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_drawing_is_that_of_the_model(variant):
    model, x = small(**VARIANTS[variant]), study(b=1)
    stages = {stage.attribute: stage for stage in diagrams.trace(model, x)}
    assert ("patchify" in stages) == (model.config["stem"] == "linear")
    assert stages["embed"].words == ("one linear layer a box" if "patchify" in stages else "strided convolutions")
    read = model.read(x)
    assert stages["blocks"].shapes == (read.tokens.shape[1:],) and stages["blocks"].kind == "2 x Block"
    assert stages["head"].shapes == ((8,),) and stages["head"].words == model.head.words
    learned = sum(p.numel() for name, p in model.named_parameters() if name != "position")
    assert sum(stage.parameters for stage in stages.values()) == learned
    assert [stage.column for stage in stages.values()] == list(range(len(stages)))


@pytest.mark.parametrize("depth, heads, mlp_ratio", [(2, 3, 2), (1, 4, 3)])
def test_number_of_parameters(depth, heads, mlp_ratio):
    model = small(depth=depth, heads=heads, mlp_ratio=mlp_ratio)
    e, box, n, inner = 24, 3 * 4 * 4 * 5, 2 * 2 * 3, 24 * mlp_ratio
    embed = box * e + e
    block = 2 * e + (3 * e * e + 3 * e) + (e * e + e) + 2 * e + (e * inner + inner) + (inner * e + e)
    expected = embed + n * e + depth * block + 2 * e + (e * 8 + 8)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_untrained_model_with_base_rates_is_the_constant(variant):
    rates = torch.tensor([0.07, 0.14, 0.04, 0.05, 0.08, 0.14, 0.19, 0.48])
    torch.manual_seed(0)
    model = ViT3D(**SMALL, **VARIANTS[variant])
    model.set_base_rates(rates)
    torch.testing.assert_close(torch.sigmoid(model(study())), rates.expand(2, 8))
    model.set_base_rates(rates.double().numpy())
    torch.testing.assert_close(torch.sigmoid(model(study(seed=5))), rates.expand(2, 8))


@pytest.mark.parametrize("rates", [[0.5] * 7, [0.5] * 7 + [0.0], [1.0] + [0.5] * 7, [float("nan")] * 8])
def test_rates_without_a_logit_are_refused(rates):
    with pytest.raises(ParameterError, match=r"8 probabilities strictly between 0 and 1.*smoothing=0.5"):
        ViT3D(**SMALL).set_base_rates(rates)


def test_dropout_acts_in_training_only():
    model, x = small(dropout=0.5), study()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.train()
        assert not torch.allclose(model(x), model(x))


def test_the_default_takes_the_course_s_stack():
    model = ViT3D(size=64)
    assert model.input_shape == (105, 6, 64, 64)
    assert model.position.shape == (1, 7 * 4 * 4, 96)
    again = ViT3D(**model.config)
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(frames=105, frame_patch=4), r"frame_patch=4.*105 frames.*divisor of 105: 3, 5, 7, 15, 21, 35\."),
        (dict(frames=7, frame_patch=3), r"divisor of 7: 1, 7\."),
        (dict(patch=3), r"patch=3.*8 rows.*divisor of 8: 2, 4\."),
        (dict(size=(8, 20), patch=8), r"patch=8.*20 columns.*2, 4, 5, 10\."),
        (dict(heads=5), r"heads=5.*24 dim.*2, 3, 4, 6, 8, 12\."),
        (dict(dim=0), r"dim.*found 0; expected a positive integer"),
        (dict(depth="4"), r"depth.*found '4'"),
        (dict(heads=True), r"heads.*found True"),
        (dict(size=(8, 12, 4)), r"size.*\(8, 12, 4\)"),
        (dict(size=8.0), r"size.*8\.0"),
        (dict(dropout=1.0), r"dropout.*found 1\.0"),
        (dict(drop_path=-0.1), r"drop_path.*found -0\.1.*share"),
        (dict(mlp_ratio=0.01), r"mlp_ratio"),
        (dict(stem="convs"), r"ViT3D\(stem\).*one of linear, conv.*did you mean 'conv'"),
        (dict(position="sincso"), r"did you mean 'sincos'"),
        (dict(position=None), r"found None; expected one of learned, sincos"),
        (dict(head="target"), r"did you mean 'targets'"),
        (dict(stem="conv", patch=2), r"patch=2 with stem=.conv.*power of two from 4 on.*8 rows and 12 columns: 4\."),
        (dict(stem="conv", size=(96, 192), patch=12), r"96 rows and 192 columns: 4, 8, 16, 32\."),
        (dict(stem="conv", size=(9, 15), patch=3), r'there is none, so take stem="linear"'),
        (dict(head="mask", channels=1), r"channels=1 with head=.mask.*2 channels or more, the last one the mask"),
        (dict(stem="conv", channels=1), r"channels=1 with stem=.conv.*2 channels or more, the last one the mask"),
        (dict(head="mask", targets=7), r"targets=7 with head=.mask.*the 8 of anatomy.TARGETS"),
    ],
)
def test_impossible_sizes_are_refused_with_the_possible_ones(changes, message):
    with pytest.raises(ModelError, match=message):
        ViT3D(**{**SMALL, **changes})


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(2, 6, 5, 12, 8), r"found float32 \(2, 6, 5, 12, 8\); expected float32 \(b, 6, 5, 8, 12\)"),
        (torch.zeros(6, 5, 8, 12), r"found float32 \(6, 5, 8, 12\)"),
        (torch.zeros(2, 5, 6, 8, 12), r"channels come before frames here: use x.transpose\(1, 2\)"),
        (torch.zeros(2, 6, 5, 8, 12, dtype=torch.int16), r"found int16"),
    ],
)
def test_other_input_is_refused_with_got_and_expected(x, message):
    with pytest.raises(ModelError, match=message):
        small()(x)


def test_inputs_of_another_type_are_refused():
    x = study()
    for wrong in (x.double(), x.half(), x.numpy()):
        with pytest.raises(ModelError, match="ViT3D.forward"):
            small()(wrong)
    for ratio in (float("nan"), float("inf")):
        with pytest.raises(ModelError, match="mlp_ratio"):
            small(mlp_ratio=ratio)


@pytest.mark.parametrize("variant", ["cls", "targets", "mask"])
def test_computed_positions_take_a_study_of_another_size(variant):
    """As a model of that size with the same weights."""
    model, other = small(**VARIANTS[variant]), small(**VARIANTS[variant], frames=9, size=(12, 16))
    other.load_state_dict(model.state_dict())
    x = study(shape=(9, 5, 12, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x))
        if model.head.reads_mask:
            assert model.evidence(x).shape == (2, 8 + 3 * 3 * 4)
            torch.testing.assert_close(model.evidence(x), other.evidence(x))


def test_learned_positions_and_sizes_that_do_not_divide_are_refused():
    for changes, x in (
        ({}, study(shape=(9, 5, 12, 16))),
        ({"position": "sincos"}, study(shape=(9, 5, 12, 14))),
        ({"position": "sincos"}, study(shape=(8, 5, 12, 16))),
        ({"position": "sincos"}, study(shape=(9, 4, 12, 16))),
        ({"position": "sincos"}, study(shape=(9, 5, 12, 16)).double()),
    ):
        with pytest.raises(ModelError, match=r"ViT3D.forward.*expected float32"):
            small(**changes)(x)


def test_evidence_is_asked_of_a_head_that_has_it():
    with pytest.raises(ModelError, match=r"head='cls', which has no evidence a token; expected head=\"mask\""):
        small(head="cls").evidence(study())


def test_blocks_hand_the_mask_to_every_block():
    torch.manual_seed(0)
    blocks = small(depth=2).blocks
    x, keep = torch.randn(1, 5, 24), torch.tensor([True, True, False, True, True])
    changed = x.clone()
    changed[:, 2] += 1
    assert isinstance(blocks, Blocks)
    with torch.no_grad():
        a, b = (blocks(v, keep[None, None, None]) for v in (x, changed))
    torch.testing.assert_close(a[:, keep], b[:, keep], atol=0, rtol=0)
    assert (a[:, 2] - b[:, 2]).abs().max() > 0.1
