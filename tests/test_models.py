"""The classifiers by name: one interface, what each one computes, and what it must notice."""

import inspect
import itertools
import math
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from cspine_utils import models
from cspine_utils.anatomy import TARGETS
from cspine_utils.errors import ModelError, ParameterError
from cspine_utils.models.base import noisy_or
from cspine_utils.models.slice_models import Backbone, CNNTransformer, TopFrames

import timm  # isort: skip  (after the package, which declares torchvision's missing operators)

SLICE_MODELS = ("cnn_lstm", "cnn_transformer", "slice_cnn")
#: Frames, channels, rows and columns all differ, so that no two axes can be mixed up unseen.
SMALL = {"frames": 9, "channels": 6, "size": (32, 48)}
VIT_SMALL = {**SMALL, "frame_patch": 3, "dim": 24, "depth": 2, "heads": 3}


def small(name, seed=0):
    """A small model whose last layer is not zero, so that its answer depends on the input."""
    torch.manual_seed(seed)
    model = models.create(name, **(VIT_SMALL if name == "vit3d" else SMALL)).eval()
    for layer in last_layers(model):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return model


def last_layers(model):
    if hasattr(model, "level_head"):
        return [model.level_head, model.patient_head]
    return [model.head if hasattr(model, "head") else model.backbone.net.get_classifier()]


def study(seed=1, b=2):
    return torch.randn(b, 9, 6, 32, 48, generator=torch.Generator().manual_seed(seed))


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_names():
    assert models.NAMES == ("vit3d", "cnn_lstm", "cnn_transformer", "slice_cnn")


#: (model, preset), as many as there are: `test_every_classifier_keeps_the_interface` counts them.
PRESETS = [*itertools.product(models.NAMES, ("laptop", "gpu")), ("vit3d", "evidence")]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_presets_are_built_and_say_what_they_are(name, preset):
    model = models.create(name, preset=preset)
    assert model.input_shape[:2] == (105, 6)
    assert model.weights_from == "from scratch"
    again = type(model)(**model.config)
    assert [(n, p.shape) for n, p in again.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]
    if name == "vit3d":
        assert model.encoder == ("strided convolutions" if preset == "evidence" else "linear patches")
    if name in SLICE_MODELS:
        assert model.encoder == {"laptop": "mobilenetv4_conv_small_050", "gpu": "tf_efficientnetv2_s"}[preset]


def test_parameters_as_published():
    """EfficientNetV2-S has 21,458,488 parameters with 3 channels and 1,000 outputs (timm's and torchvision's count)."""
    assert parameters(timm.create_model("tf_efficientnetv2_s")) == 21_458_488
    assert parameters(models.create("slice_cnn", preset="gpu")) == 20_188_384
    # The difference by hand: a 3 x 3 stem of 24 filters on three more channels; a classifier of 1,280 features.
    assert 21_458_488 + 3 * 3 * 3 * 24 - (1000 - 8) * (1280 + 1) == 20_188_384


def test_a_larger_backbone_by_option():
    with torch.device("meta"):  # 117 million parameters are counted, not filled
        backbone = Backbone(name="tf_efficientnetv2_l", channels=6, size=(64, 64))
    assert 116e6 < parameters(backbone) < 118e6 and backbone.features == 1280
    assert models.create("slice_cnn", backbone="test_convnext", **SMALL).encoder == "test_convnext"


@pytest.mark.parametrize("name", models.NAMES)
def test_the_untrained_model_is_the_constant(name):
    rates = torch.tensor([0.1, 0.2, 0.05, 0.15, 0.3, 0.25, 0.4, 0.6], dtype=torch.float64)
    model = models.create(name, **(VIT_SMALL if name == "vit3d" else SMALL)).eval()
    model.set_base_rates(rates)
    assert torch.allclose(torch.sigmoid(model(study())).double(), rates.expand(2, 8), atol=1e-5)
    with pytest.raises(ParameterError, match=r"8 probabilities strictly between 0 and 1"):
        model.set_base_rates(rates.tolist()[:7])


@pytest.mark.parametrize("name", models.NAMES)
def test_gradients_reach_every_parameter(name):
    model = small(name).train()
    weights = torch.randn(2, len(TARGETS), generator=torch.Generator().manual_seed(3))
    (model(study()) * weights).sum().backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert untouched == []


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("channel", range(6))
def test_every_channel_matters(name, channel):
    """A model that drops a channel on its way gives the same answer without it."""
    model, x = small(name), study()
    without = x.clone()
    without[:, :, channel] = 0
    assert (model(x) - model(without)).abs().max() > 1e-4


@pytest.mark.parametrize("name", SLICE_MODELS)
def test_a_model_that_drops_a_channel_is_noticed(name):
    """The fixture that must fail the test above: the first layer does not read channel 2."""
    model, x = small(name), study()
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        stem.weight[:, 2] = 0
    without = x.clone()
    without[:, :, 2] = 0
    assert torch.equal(model(x), model(without))


@pytest.mark.parametrize("name", models.NAMES)
def test_every_frame_matters_unless_it_is_not_among_the_top(name):
    model, x = small(name), study()
    changed = x.clone()
    changed[:, 4] = 0
    assert (model(x) - model(changed)).abs().max() > 1e-4


@pytest.mark.parametrize("name", models.NAMES)
def test_the_order_of_frames(name):
    model, x = small(name), study()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    difference = (model(x) - model(x[:, order])).abs().max()
    if name == "slice_cnn":
        assert difference < 1e-4, "frames are judged alone"
    else:
        assert difference > 1e-2, "head and feet are not the same"


def test_without_positions_the_transformer_does_not_know_head_from_feet():
    model, x = small("cnn_transformer"), study()
    with torch.no_grad():
        model.position.zero_()
    assert torch.allclose(model(x), model(x.flip(1)), atol=1e-4)


@pytest.mark.parametrize("name", models.NAMES)
def test_studies_of_a_batch_do_not_mix(name):
    model, x = small(name), study(b=3)
    alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    assert torch.allclose(model(x), alone, atol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_the_lstm_reads_both_ways():
    """One output half runs head -> feet, the other back: the last frame reaches the first frame's second half only."""
    model, x = small("cnn_lstm"), study()
    frames = model.project(model.backbone(x))
    changed = frames.clone()
    changed[:, -1] += 1
    moved = (model.mix(frames) - model.mix(changed)).abs()[:, 0]
    forwards, backwards = moved.chunk(2, dim=-1)
    assert forwards.max() == 0 and backwards.max() > 0


def test_backbone_runs_frame_by_frame():
    torch.manual_seed(0)
    backbone, x = Backbone(name="mobilenetv4_conv_small_050", channels=6, size=(32, 48)).eval(), study()
    features = backbone(x)
    assert torch.allclose(features[1, 4], backbone.net(x[1, 4:5])[0], atol=1e-5)
    assert features.shape == (2, 9, backbone.features)


def test_top_frames_by_hand():
    frames = torch.tensor([[[1.0, -2], [5, 0], [3, 7]]])  # one level and the correction, three frames
    level = (5 + 3) / 2
    pooled = TopFrames(2)(frames)
    assert pooled[0, 0] == level
    assert pooled[0, 1] == pytest.approx(level + (-2 + 0 + 7) / 3, abs=1e-6), "noisy-or of one level is that level"


def test_noisy_or_equals_the_product_and_stays_finite():
    logits = torch.tensor([[0.3, -1.2, 2.0], [-3.0, -4.0, -2.5]], dtype=torch.float64)
    p = 1 - torch.prod(1 - torch.sigmoid(logits), dim=-1)
    assert torch.allclose(torch.sigmoid(noisy_or(logits)), p, atol=1e-12)
    extreme = torch.tensor([[-80.0, -90.0], [60.0, 3.0]], requires_grad=True)
    out = noisy_or(extreme)
    out.sum().backward()
    assert out[0].item() == pytest.approx(-80, abs=0.01) and out[1].item() == pytest.approx(63, abs=0.1)
    assert torch.isfinite(extreme.grad).all() and torch.isfinite(noisy_or(torch.tensor([-200.0, -300.0])))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_load_from_a_local_file(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    torch.manual_seed(3)
    donor = timm.create_model("test_convnext", in_chans=3, num_classes=11)
    if suffix == "pth":
        torch.save(donor.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(donor.state_dict(), path)
    model = models.create("cnn_lstm", backbone="test_convnext", weights=str(path), **SMALL)
    assert model.weights_from == f"weights of net.{suffix}"
    ours, theirs = model.backbone.net.state_dict(), donor.state_dict()
    stem = next(name for name, value in theirs.items() if value.ndim == 4)
    # Three channels become six so that a grey image gives what it gave: repeated, and halved.
    assert torch.allclose(ours[stem], theirs[stem].repeat(1, 2, 1, 1) / 2, atol=1e-6)
    other = [name for name in ours if name != stem and name in theirs]
    assert len(other) > 10 and all(torch.equal(ours[name], theirs[name]) for name in other)


def test_wrong_weights_are_refused(tmp_path):
    absent = tmp_path / "absent.pth"
    with pytest.raises(ModelError, match=r"no file .*absent.pth"):
        models.create("cnn_lstm", weights=str(absent), **SMALL)
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("test_convnext2").state_dict(), other)
    for path, found in ((text, "do not load"), (other, r"no weights for .* such layers")):
        with pytest.raises(ModelError, match=rf"{path.name}.*{found}"):
            models.create("cnn_lstm", weights=str(path), **SMALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cnn_lsmt"}, "did you mean 'cnn_lstm'"),
        ({"name": "resnet"}, "one of vit3d, cnn_lstm"),
        ({"name": "vit3d", "preset": "labtop"}, "did you mean 'laptop'"),
        ({"name": "cnn_lstm", "backbone_name": "x"}, "did you mean 'backbone'"),
        ({"name": "cnn_lstm", "backbone": "efficientnetv2_x"}, "a network of timm: .*efficientnetv2_"),
        ({"name": "cnn_lstm", "backbone": None}, "the name of a network"),
        ({"name": "cnn_lstm", "backbone": "vit_tiny_patch16_224"}, "cannot read frames of 64 x 64"),
        ({"name": "cnn_lstm", "preset": ["gpu"]}, "one of laptop, gpu"),
        ({"name": "cnn_lstm", "dropout": "much"}, "share in"),
        ({"name": "cnn_lstm", "weights": 3}, "can be built with"),
        ({"name": "cnn_lstm", "dim": 7}, "an even number"),
        ({"name": "cnn_lstm", "frames": 0}, "positive integer"),
        ({"name": "cnn_lstm", "size": (1, 2, 3)}, r"\(h, w\) or one number"),
        ({"name": "cnn_lstm", "dropout": 1.0}, r"share in \[0, 1\)"),
        ({"name": "cnn_transformer", "heads": 5}, "a divisor of dim"),
        ({"name": "slice_cnn", "top_k": 106}, "1 to 105"),
    ],
)
def test_impossible_models_are_refused(arguments, message):
    with pytest.raises(ModelError, match=message):
        models.create(**arguments)


@pytest.mark.parametrize("name", models.NAMES)
def test_another_shape_is_refused(name):
    model = small(name)
    with pytest.raises(ModelError, match=r"\(2, 6, 9, 32, 48\).*channels come before frames"):
        model(study().transpose(1, 2))
    with pytest.raises(ModelError, match="x.float"):
        model(study().double())


def test_every_classifier_keeps_the_interface():
    for name in models.NAMES:
        kind = type(small(name))
        assert kind.PRESETS.keys() == {preset for model, preset in PRESETS if model == name}
        assert all(p.kind is p.KEYWORD_ONLY for p in inspect.signature(kind).parameters.values())


def test_a_classifier_that_cannot_start_at_the_constant_is_not_made():
    class Incomplete(models.StudyClassifier):
        def forward(self, x):
            return x

    with pytest.raises(TypeError, match="start_from"):
        Incomplete((1, 1, 1, 1), {})


def fresh(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_timm_imports_in_a_fresh_process_and_operators_are_declared_only_where_they_are_missing():
    tell = "from cspine_utils.models import timm_import; print(timm_import.DECLARED is None)"
    run = fresh(tell + "; import timm; print(timm.create_model('test_convnext').num_classes)")
    assert run.returncode == 0 and run.stdout.split()[1:] == ["1000"], run.stderr[-500:]
    # Where torchvision's own operators do not load, and only there, the declaration is what makes the import work.
    alone = fresh("import torchvision")
    assert (run.stdout.split()[0] == "True") == (alone.returncode == 0)
    if alone.returncode:
        assert "torchvision::nms does not exist" in alone.stderr
    # A process that has the two operators already: a second declaration of the same schema would be an error.
    has = "lib = torch.library.Library('torchvision', 'DEF'); "
    has += "[lib.define(f'{n}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor') for n in ('nms', 'qnms')]; "
    assert fresh("import torch; " + has + tell).stdout.split() == ["True"]


def test_positions_are_part_of_the_model():
    assert CNNTransformer(**SMALL).position.shape == (1, 9, 96)
    assert math.isclose(CNNTransformer().position.std().item(), 0.02, rel_tol=0.1)
