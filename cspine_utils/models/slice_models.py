"""2.5D classifiers: a 2D network reads each frame with its neighbours, something else puts the frames together.

* `CNNLSTM`: backbone, then a bidirectional LSTM along the neck, then a head for the levels and one for the patient
* `CNNTransformer`: the same with a transformer encoder along the neck
* `SliceCNN`: every frame is judged alone; a level's logit is the mean of its `top_k` highest frames, the patient's
  follows from the levels (noisy-or) and a learned correction

Axes: study tensor `b f c h w`; features of frames `b f e`. The backbones are timm's; nothing is downloaded, and
pre-trained weights load from a local file only.

Sources: these are the forms in which the competition's published solutions combined slices (CNN + LSTM: first place;
CNN + transformer over slices: sixth place; slice classifiers: many). The code is this course's own.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from pathlib import Path

import timm
import torch
from einops import rearrange
from torch import Tensor, nn

from cspine_utils.anatomy import LEVELS, TARGETS
from cspine_utils.errors import ModelError
from cspine_utils.models.base import StudyClassifier, check_counts, noisy_or, pair, refused
from cspine_utils.models.blocks import Block

#: timm's small MobileNetV4 at half its width: one study of 105 frames in a fraction of a second on a CPU.
LAPTOP_BACKBONE = "mobilenetv4_conv_small_050"
#: The family that the published solutions used most; "tf_efficientnetv2_l" is the large one.
GPU_BACKBONE = "tf_efficientnetv2_s"


class Backbone(nn.Module):
    """A timm network on every frame: `(b, f, c, h, w)` -> `(b, f, e)`.

    Parameters
    ----------
    name : timm's name of the network
    channels : c
    outputs : e; 0 for the network's own features before its classifier
    weights : a local file of weights that timm saved for this network (.pth, .safetensors), or None. As timm does,
        first-layer weights of three channels are repeated for more, and a classifier of another length is left new.
    size : (h, w) of a frame; one is tried at once, since some networks take one size only

    Raises
    ------
    ModelError : timm does not know the name, the network cannot read such frames, or the file holds other weights
    """

    def __init__(self, *, name: str, channels: int, size: tuple[int, int], outputs: int = 0, weights=None):
        super().__init__()
        self.name = name
        if not isinstance(name, str):
            raise refused("Backbone", "name", found=repr(name), expected="the name of a network of timm")
        if not timm.is_model(name):
            close = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3)) or "see timm.list_models()"
            raise refused("Backbone", "name", found=repr(name), expected=f"a network of timm: {close}")
        options = {"in_chans": channels, "num_classes": outputs}
        self.net = timm.create_model(name, **options) if weights is None else _load(name, Path(weights), options)
        # Channels last in memory: on a CPU the same convolutions run faster (tests/bench/backbone.py: 1.7 times).
        self.net.to(memory_format=torch.channels_last)
        try:
            with torch.no_grad():
                self.features = self.net.eval()(torch.zeros(1, channels, *size)).shape[-1]
        except (AssertionError, RuntimeError, ValueError) as error:
            found = f"{name}, which cannot read frames of {size[0]} x {size[1]} ({' '.join(str(error).split())[:150]})"
            raise refused("Backbone", "name", found=found, expected="a network that takes any size") from error
        self.net.train()

    def forward(self, x: Tensor) -> Tensor:
        frames = rearrange(x, "b f c h w -> (b f) c h w").contiguous(memory_format=torch.channels_last)
        features = self.net(frames)
        return rearrange(features, "(b f) e -> b f e", b=len(x))


def _load(name: str, path: Path, options: dict) -> nn.Module:
    """timm's network with the weights of a local file, or ModelError."""
    if not path.is_file():
        raise refused("Backbone", "weights", found=f"no file {path}", expected="a local file of weights")
    state = torch.random.get_rng_state()
    new = timm.create_model(name, **options)
    torch.random.set_rng_state(state)  # so that whatever the file does not hold starts equal in both
    try:
        source = {"file": str(path), "custom_load": False}
        net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **options)
        # timm takes a file of another network with no more than a warning, and leaves everything random.
        classifier = {id(p) for p in net.get_classifier().parameters()}
        pairs = zip(net.named_parameters(), new.parameters(), strict=True)
        left = [n for (n, p), q in pairs if p.ndim > 1 and id(p) not in classifier and torch.equal(p, q)]
        problem = f"no weights for {', '.join(left[:3])} ({len(left)} such layers)" if left else None
    except Exception as error:  # torch, pickle and safetensors raise many kinds of errors on a wrong file
        problem = f"weights that do not load ({' '.join(str(error).split())[:200]})"
    if problem:
        remedy = "name the file of this very network, or leave weights out to train from scratch"
        raise ModelError(path, found=problem, expected=f"weights of {name} as timm saves them", remedy=remedy)
    return net


class _SequenceClassifier(StudyClassifier):
    """Backbone, one linear layer, a mixer along the frames, mean and maximum over them, two heads."""

    STAGES = {
        "backbone": "2D network on every frame",
        "project": "one linear layer a frame",
        "mixer": "",  # the subclass says what it is
        "norm": "mean and maximum over the frames",
        "level_head": "one logit a level",
        "patient_head": "one logit for the patient",
    }

    def __init__(self, config: dict):
        config["size"] = pair(config["size"])
        counts = {k: v for k, v in config.items() if k not in ("backbone", "weights")}
        check_counts(type(self).__name__, **counts)
        super().__init__((config["frames"], config["channels"], *config["size"]), config)
        self.encoder, self.weights_from = config["backbone"], _origin(config["weights"])
        self.backbone = Backbone(
            name=self.encoder, channels=config["channels"], size=config["size"], weights=config["weights"]
        )
        self.project = nn.Sequential(nn.Linear(self.backbone.features, config["dim"]), nn.GELU())

    def _add_heads(self, features: int) -> None:
        self.norm = nn.LayerNorm(2 * features)
        self.dropout = nn.Dropout(self.config["dropout"])
        self.level_head = nn.Linear(2 * features, len(LEVELS))
        self.patient_head = nn.Linear(2 * features, 1)
        for head in (self.level_head, self.patient_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @abstractmethod
    def mix(self, x: Tensor) -> Tensor:
        """Let the frames see each other: `(b, f, dim)` -> `(b, f, e)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Study tensors `(b, f, c, h, w)` -> logits `(b, 8)`."""
        self.check_input(x)
        frames = self.mix(self.project(self.backbone(x)))  # (b, f, e)
        # The maximum keeps what only one or two frames show; the mean says what the whole neck is like.
        pooled = self.dropout(self.norm(torch.cat([frames.mean(dim=1), frames.amax(dim=1)], dim=-1)))
        return torch.cat([self.level_head(pooled), self.patient_head(pooled)], dim=-1)

    def start_from(self, logits: Tensor) -> None:
        self.level_head.bias.copy_(logits[:-1])
        self.patient_head.bias.copy_(logits[-1:])


class CNNLSTM(_SequenceClassifier):
    """2.5D CNN + LSTM: study tensor `(b, f, c, h, w)` -> logits `(b, 8)`.

    Parameters
    ----------
    frames, channels, size : f, c and (h, w), or one number for both, of the study tensor
    backbone, weights : see `Backbone`
    dim : features a frame that the LSTM reads; it gives as many, half in each direction, so dim is even
    layers : layers of the LSTM
    dropout : share dropped between layers and before the heads, in [0, 1)

    Raises ModelError for sizes that cannot be, and in `forward` for an input of another shape.
    """

    PRESETS = {
        "laptop": {},
        "gpu": {"size": (224, 224), "backbone": GPU_BACKBONE, "dim": 512, "layers": 2, "dropout": 0.3},
    }
    STAGES = _SequenceClassifier.STAGES | {"mixer": "LSTM along the neck, both ways"}

    def __init__(
        self,
        *,
        frames: int = 105,
        channels: int = 6,
        size: int | tuple[int, int] = (64, 64),
        backbone: str = LAPTOP_BACKBONE,
        weights: str | None = None,
        dim: int = 96,
        layers: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__({name: value for name, value in locals().items() if name not in ("self", "__class__")})
        if dim % 2:
            raise refused("CNNLSTM", "dim", found=str(dim), expected="an even number: half for each direction")
        self.mixer = nn.LSTM(
            dim,
            dim // 2,
            num_layers=layers,
            bidirectional=True,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        self._add_heads(dim)

    def mix(self, x: Tensor) -> Tensor:
        return self.mixer(x)[0]


class CNNTransformer(_SequenceClassifier):
    """2.5D CNN + transformer encoder: study tensor `(b, f, c, h, w)` -> logits `(b, 8)`.

    Parameters as in `CNNLSTM`, with

    dim, depth, heads : features a frame, number of blocks, attention heads (they must divide `dim`)

    A learned position is added to every frame: without it, attention would not know head from feet.
    """

    PRESETS = {
        "laptop": {},
        "gpu": {"size": (224, 224), "backbone": GPU_BACKBONE, "dim": 384, "depth": 4, "heads": 6, "dropout": 0.3},
    }
    STAGES = _SequenceClassifier.STAGES | {"mixer": "transformer blocks along the neck"}

    def __init__(
        self,
        *,
        frames: int = 105,
        channels: int = 6,
        size: int | tuple[int, int] = (64, 64),
        backbone: str = LAPTOP_BACKBONE,
        weights: str | None = None,
        dim: int = 96,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__({name: value for name, value in locals().items() if name not in ("self", "__class__")})
        if dim % heads:
            raise refused("CNNTransformer", "heads", found=f"{heads} for dim={dim}", expected="a divisor of dim")
        self.position = nn.Parameter(0.02 * torch.randn(1, frames, dim))
        self.mixer = nn.Sequential(*(Block(dim=dim, heads=heads, mlp_ratio=2, dropout=dropout) for _ in range(depth)))
        self._add_heads(dim)

    def mix(self, x: Tensor) -> Tensor:
        return self.mixer(x + self.position)


class SliceCNN(StudyClassifier):
    """Every frame judged alone: study tensor `(b, f, c, h, w)` -> logits `(b, 8)`.

    Parameters
    ----------
    frames, channels, size, backbone, weights : as in `CNNLSTM`
    top_k : a level's logit is the mean of the `top_k` frames with its highest logits

    The backbone has eight outputs a frame: one for each level, and a correction. The patient's logit is the noisy-or
    of the levels, `1 - prod(1 - p)`, plus the mean correction: noisy-or takes levels to break independently of each
    other, which they do not. The order of the frames changes nothing.

    Raises ModelError for sizes that cannot be, and in `forward` for an input of another shape.
    """

    PRESETS = {"laptop": {}, "gpu": {"size": (224, 224), "backbone": GPU_BACKBONE}}
    STAGES = {"backbone": "2D network on every frame", "pool": "top frames a level; noisy-or"}

    def __init__(
        self,
        *,
        frames: int = 105,
        channels: int = 6,
        size: int | tuple[int, int] = (64, 64),
        backbone: str = LAPTOP_BACKBONE,
        weights: str | None = None,
        top_k: int = 5,
    ):
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        config["size"] = height, width = pair(size)
        check_counts("SliceCNN", size=config["size"], frames=frames, channels=channels, top_k=top_k)
        if top_k > frames:
            raise refused("SliceCNN", "top_k", found=f"{top_k} of {frames} frames", expected=f"1 to {frames}")
        super().__init__((frames, channels, height, width), config)
        self.encoder, self.weights_from = backbone, _origin(weights)
        self.backbone = Backbone(
            name=backbone, channels=channels, size=config["size"], outputs=len(TARGETS), weights=weights
        )
        self.pool = TopFrames(top_k)
        classifier = self.backbone.net.get_classifier()
        nn.init.zeros_(classifier.weight)
        nn.init.zeros_(classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Study tensors `(b, f, c, h, w)` -> logits `(b, 8)`."""
        self.check_input(x)
        return self.pool(self.backbone(x))

    def start_from(self, logits: Tensor) -> None:
        bias = self.backbone.net.get_classifier().bias
        levels = logits[:-1]
        bias[:-1] = levels.to(bias.dtype)
        bias[-1] = (logits[-1] - noisy_or(levels)).to(bias.dtype)


class TopFrames(nn.Module):
    """Logits of frames `(b, f, 8)` -> logits of the study `(b, 8)`, as `SliceCNN` describes."""

    def __init__(self, top_k: int):
        super().__init__()
        self.top_k = top_k

    def forward(self, frames: Tensor) -> Tensor:
        levels = frames[..., :-1].topk(self.top_k, dim=1).values.mean(dim=1)  # (b, 7)
        patient = noisy_or(levels) + frames[..., -1].mean(dim=1)  # (b,)
        return torch.cat([levels, patient[:, None]], dim=-1)


def _origin(weights) -> str:
    return "from scratch" if weights is None else f"weights of {Path(weights).name}"
