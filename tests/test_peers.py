"""The 3D ViT beside two published ones: the same weights copied in give the same outputs and the same gradients.

vit-pytorch's `vit_3d` normalises each patch before and after its embedding, which ours leaves out on purpose (HU is an
absolute scale); these two layers are taken out of the peer. All the rest of it, and all of MONAI's ViT, is compared.
"""

import pytest
import torch
from einops import rearrange
from torch import nn

from cspine_utils.models import timm_import  # noqa: F401  (vit-pytorch imports torchvision)
from cspine_utils.models.vit3d import ViT3D

from monai.networks.nets import ViT as MonaiViT  # isort: skip
from vit_pytorch.vit_3d import ViT as Vit3d  # isort: skip

#: Every length differs from every other, so that no two axes can be mixed up unseen.
SMALL = dict(frames=6, channels=5, size=(8, 12), frame_patch=3, patch=4, dim=24, depth=3, heads=3, mlp_ratio=2)
TARGETS = 7


def ours(head: str) -> ViT3D:
    """All parameters random, also those that start at zero or one."""
    model = ViT3D(**SMALL, head=head, targets=TARGETS).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def study() -> torch.Tensor:
    return torch.randn(2, 6, 5, 8, 12, generator=torch.Generator().manual_seed(1))


def block_pairs(model, names) -> list[tuple[nn.Parameter, str]]:
    """Our parameters of all blocks, and the peer's names for them: `names` maps ours to theirs, with {i} the block."""
    own = dict(model.named_parameters())
    return [(own[f"blocks.{i}.{mine}"], theirs.format(i=i)) for i in range(3) for mine, theirs in names.items()]


MONAI_BLOCK = {
    "attention_norm.weight": "blocks.{i}.norm1.weight",
    "attention_norm.bias": "blocks.{i}.norm1.bias",
    "attention.to_qkv.weight": "blocks.{i}.attn.qkv.weight",
    "attention.to_qkv.bias": "blocks.{i}.attn.qkv.bias",
    "attention.to_out.0.weight": "blocks.{i}.attn.out_proj.weight",
    "attention.to_out.0.bias": "blocks.{i}.attn.out_proj.bias",
    "mlp_norm.weight": "blocks.{i}.norm2.weight",
    "mlp_norm.bias": "blocks.{i}.norm2.bias",
    "mlp.0.weight": "blocks.{i}.mlp.linear1.weight",
    "mlp.0.bias": "blocks.{i}.mlp.linear1.bias",
    "mlp.3.weight": "blocks.{i}.mlp.linear2.weight",
    "mlp.3.bias": "blocks.{i}.mlp.linear2.bias",
}
VIT3D_BLOCK = {
    "attention_norm.weight": "transformer.layers.{i}.0.norm.weight",
    "attention_norm.bias": "transformer.layers.{i}.0.norm.bias",
    "attention.to_qkv.weight": "transformer.layers.{i}.0.to_qkv.weight",
    "attention.to_out.0.weight": "transformer.layers.{i}.0.to_out.0.weight",
    "attention.to_out.0.bias": "transformer.layers.{i}.0.to_out.0.bias",
    "mlp_norm.weight": "transformer.layers.{i}.1.net.0.weight",
    "mlp_norm.bias": "transformer.layers.{i}.1.net.0.bias",
    "mlp.0.weight": "transformer.layers.{i}.1.net.1.weight",
    "mlp.0.bias": "transformer.layers.{i}.1.net.1.bias",
    "mlp.3.weight": "transformer.layers.{i}.1.net.4.weight",
    "mlp.3.bias": "transformer.layers.{i}.1.net.4.bias",
}


def monai_vit():
    """(ours, MONAI's with our weights, pairs of our parameters and its names, its answer to a study)."""
    model = ours("cls")
    peer = MonaiViT(
        in_channels=5, img_size=(6, 8, 12), patch_size=(3, 4, 4), hidden_size=24, mlp_dim=48, num_layers=3, num_heads=3,
        proj_type="perceptron", classification=True, num_classes=TARGETS, post_activation="none", qkv_bias=True,
    )  # fmt: skip
    pairs = [
        (model.embed.weight, "patch_embedding.patch_embeddings.1.weight"),
        (model.embed.bias, "patch_embedding.patch_embeddings.1.bias"),
        (model.position, "patch_embedding.position_embeddings"),
        (model.head.token, "cls_token"),
        *block_pairs(model, MONAI_BLOCK),
        (model.head.norm.weight, "norm.weight"),
        (model.head.norm.bias, "norm.bias"),
        (model.head.weight, "classification_head.weight"),
        (model.head.bias, "classification_head.bias"),
    ]
    return model, peer, pairs, lambda x: peer(x)[0]


def vit_3d():
    """The same with vit-pytorch's; it has no biases in q, k and v."""
    model = ours("cls")
    with torch.no_grad():
        for block in model.blocks:
            block.attention.to_qkv.bias.zero_()
    peer = Vit3d(
        image_size=(8, 12), image_patch_size=4, frames=6, frame_patch_size=3, num_classes=TARGETS, dim=24, depth=3,
        heads=3, dim_head=8, mlp_dim=48, channels=5,
    )  # fmt: skip
    peer.to_patch_embedding[1], peer.to_patch_embedding[3] = nn.Identity(), nn.Identity()
    with torch.no_grad():
        peer.pos_embedding[:, :1] = 0  # of the class token: ours has none, a second number beside its own
    pairs = [
        (model.embed.weight, "to_patch_embedding.2.weight"),
        (model.embed.bias, "to_patch_embedding.2.bias"),
        (model.position, "pos_embedding"),
        (model.head.token, "cls_token"),
        *block_pairs(model, VIT3D_BLOCK),
        (model.head.norm.weight, "mlp_head.0.weight"),
        (model.head.norm.bias, "mlp_head.0.bias"),
        (model.head.weight, "mlp_head.1.weight"),
        (model.head.bias, "mlp_head.1.bias"),
    ]
    return model, peer, pairs, peer


PEERS = {"MONAI": monai_vit, "vit-pytorch": vit_3d}


def places_only(values: torch.Tensor, name: str) -> torch.Tensor:
    return values[:, 1:] if name == "pos_embedding" else values


def copied(make):
    """(ours, the peer's parameters by name, pairs, the peer's answer), our weights copied into the peer."""
    model, peer, pairs, answer = make()
    theirs = dict(peer.eval().named_parameters())
    with torch.no_grad():
        for p, name in pairs:
            there = places_only(theirs[name], name)
            there.copy_(p.reshape(there.shape))
    return model, theirs, pairs, answer


@pytest.mark.parametrize("make", PEERS.values(), ids=PEERS)
def test_outputs_and_gradients_equal(make):
    model, theirs, pairs, answer = copied(make)
    mine, x = study().requires_grad_(), rearrange(study(), "b f c h w -> b c f h w").requires_grad_()
    weights = torch.randn(2, TARGETS, generator=torch.Generator().manual_seed(2))
    found, expected = model(mine), answer(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    used = {name for name, p in theirs.items() if p.grad is not None}  # MONAI's blocks have a norm that they never call
    assert {name for _, name in pairs} == used, "every parameter of the peer has one of ours"
    torch.testing.assert_close(rearrange(mine.grad, "b f c h w -> b c f h w"), x.grad, atol=1e-5, rtol=1e-5)
    for p, name in pairs:
        there = places_only(theirs[name].grad, name)
        assert there.abs().max() > 1e-4, name
        # A gradient sums thousands of numbers, in an order that depends on the threads: 1e-5 of its largest element.
        size = max(1.0, float(there.abs().max()))
        torch.testing.assert_close(p.grad.reshape(there.shape), there, atol=1e-5 * size, rtol=1e-5, msg=name)


@pytest.mark.parametrize("make", PEERS.values(), ids=PEERS)
@pytest.mark.parametrize("wrong", ["channels", "rows and columns", "heads", "order of blocks"])
def test_a_difference_would_be_noticed(make, wrong):
    """Fixtures that must break the equality above."""
    model, _, _, answer = copied(make)
    with torch.no_grad():
        if wrong == "channels":
            model.embed.weight.copy_(model.embed.weight.reshape(24, -1, 5).flip(2).reshape(24, -1))
        elif wrong == "rows and columns":
            model.embed.weight.copy_(model.embed.weight.reshape(24, 3, 4, 4, 5).transpose(2, 3).reshape(24, -1))
        elif wrong == "heads":
            for block in model.blocks:
                block.attention.heads = 4
        else:
            model.blocks = type(model.blocks)(*list(model.blocks)[::-1])
        found, expected = model(study()), answer(rearrange(study(), "b f c h w -> b c f h w"))
    assert (found - expected).abs().max() > 1e-2
