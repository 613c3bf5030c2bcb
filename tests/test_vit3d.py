"""The 3D ViT: what it computes, not which shape it returns."""

import math

import pytest
import torch
from torch import nn

from cspine_utils.errors import ModelError, ParameterError
from cspine_utils.models.vit3d import Attention, ViT3D

# Every axis and every patch has another length, so that no two can be mixed up unseen.
SMALL = dict(frames=6, channels=5, size=(8, 12), frame_patch=3, patch=4, dim=24, depth=2, heads=3, mlp_ratio=2)


def small(seed=0, **changes):
    """A small model whose head is not zero, so that its answer depends on the input."""
    torch.manual_seed(seed)
    model = ViT3D(**{**SMALL, **changes}).eval()
    nn.init.normal_(model.head.weight)
    return model


def study(seed=1, b=2, shape=(6, 5, 8, 12)):
    return torch.randn(b, *shape, generator=torch.Generator().manual_seed(seed))


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
    pooled = nn.functional.layer_norm(tokens.mean(dim=1), (24,), model.norm.weight, model.norm.bias)
    expected = pooled @ model.head.weight.T + model.head.bias
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


@pytest.mark.parametrize("name", CHANGES)
def test_output_depends_on_where_things_are(name):
    model, x = small(size=8), study(shape=(6, 5, 8, 8))
    if name == "two patches swapped":
        model, x = small(), study()
    with torch.no_grad():
        assert (model(x) - model(CHANGES[name](x))).abs().max() > 1e-3


def test_without_positions_swapped_patches_go_unseen():
    """The fixture for the test above: it is the position embedding that tells the patches apart."""
    model, x = small(), study()
    nn.init.zeros_(model.position)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(swap_two_patches(x)), atol=1e-5, rtol=1e-5)


def test_studies_of_a_batch_do_not_mix():
    model, x = small(), study(b=3)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-6, rtol=1e-5)


def test_gradients_reach_every_parameter():
    model = small()
    model(study()).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("depth, heads, mlp_ratio", [(2, 3, 2), (1, 4, 3)])
def test_number_of_parameters(depth, heads, mlp_ratio):
    model = small(depth=depth, heads=heads, mlp_ratio=mlp_ratio)
    e, box, n, inner = 24, 3 * 4 * 4 * 5, 2 * 2 * 3, 24 * mlp_ratio
    embed = box * e + e
    block = 2 * e + (3 * e * e + 3 * e) + (e * e + e) + 2 * e + (e * inner + inner) + (inner * e + e)
    expected = embed + n * e + depth * block + 2 * e + (e * 8 + 8)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_untrained_model_with_base_rates_is_the_constant():
    rates = torch.tensor([0.07, 0.14, 0.04, 0.05, 0.08, 0.14, 0.19, 0.48])
    torch.manual_seed(0)
    model = ViT3D(**SMALL)
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
        (dict(mlp_ratio=0.01), r"mlp_ratio"),
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
