"""What can be asked of a training run, and the learning rate that follows from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from cspine_utils.errors import ParameterError

SCHEDULES = ("gamma", "linear", "cosine")
PRECISIONS = ("32-true", "bf16-mixed")
#: Names that torch has for processors that multiply bfloat16 numbers themselves.
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")


def fast_precision(device: torch.device) -> str:
    """The precision that trains fastest: "bf16-mixed" where the device multiplies bfloat16 itself, else "32-true".

    Elsewhere bfloat16 is imitated: on a processor with AVX2 alone, a product of matrices takes 50 times as long.
    """
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return PRECISIONS[any(able.get(name, False) for name in _BFLOAT16)]
    return PRECISIONS[device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)]


def steps_per_epoch(settings: dict) -> int:
    """Optimizer steps in one pass over the training studies; the last one may see fewer studies."""
    return math.ceil(settings["train_studies"] / (settings["batch_size"] * settings["accumulate"]))


def rate(settings: dict, epoch: int, step: int) -> float:
    """The learning rate of step 0, 1, ... of epoch 1, 2, ...

    learning_rate * gamma ** (epoch - 1), times a straight rise over the first `warmup_steps` steps of the run, times
    the schedule's fall after them: none ("gamma"), a straight line ("linear") or half a cosine wave ("cosine") that
    would be 0 one step after the last one.
    """
    per_epoch, warmup = steps_per_epoch(settings), settings["warmup_steps"]
    now, total = (epoch - 1) * per_epoch + step, settings["epochs"] * per_epoch
    rise = min(1.0, (now + 1) / warmup) if warmup else 1.0
    left = 1 - max(0, now - warmup) / (total - warmup)
    fall = {"gamma": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[settings["schedule"]]
    return settings["learning_rate"] * settings["gamma"] ** (epoch - 1) * rise * fall


def name_of(function: Callable | None) -> str | None:
    """A callable as text that is the same in every process, to tell two runs apart. A dataclass shows its fields."""
    if function is None or dataclasses.is_dataclass(function):
        return function if function is None else repr(function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def check(settings: dict, objective) -> None:
    """Raise ParameterError for a setting of the wrong type or out of range, or at odds with another one."""

    def whole(value, least):
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    def number(value, *, zero=False):
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (value > 0 or (zero and value == 0))
        )

    for name, good, expected in (
        ("epochs", lambda v: whole(v, 0), "an integer, 0 or more"),
        ("batch_size", lambda v: whole(v, 1), "an integer, 1 or more"),
        ("accumulate", lambda v: whole(v, 1), "an integer, 1 or more"),
        ("learning_rate", number, "a number above 0 (in YAML write 1.0e-4: 1e-4 is read as text)"),
        ("gamma", number, "a number above 0"),
        ("schedule", lambda v: v in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
        ("warmup_steps", lambda v: whole(v, 0), "an integer, 0 or more"),
        ("weight_decay", lambda v: number(v, zero=True), "a number, 0 or more"),
        ("clip", lambda v: v is None or number(v), "a number above 0, or None"),
        ("label_smoothing", lambda v: number(v, zero=True) and v < 1, "a share in [0, 1)"),
        ("train_sample", lambda v: v is None or whole(v, 1), "an integer, 1 or more, or None"),
        ("patience", lambda v: v is None or whole(v, 1), "an integer, 1 or more, or None"),
        ("best_by", lambda v: isinstance(v, str), "the name of a column of the history"),
        ("precision", lambda v: v in PRECISIONS, f"one of auto, {', '.join(PRECISIONS)}"),
        ("checkpoint_activations", lambda v: isinstance(v, bool), "True or False"),
    ):
        if not good(settings[name]):
            found = repr(settings[name])
            raise ParameterError(f"fit({name})", found=found, expected=expected, remedy=f"pass such a {name}")
    total = settings["epochs"] * steps_per_epoch(settings)
    if settings["epochs"] and settings["warmup_steps"] >= total:
        raise ParameterError(
            "fit(warmup_steps)",
            found=f"{settings['warmup_steps']}",
            expected=f"fewer than the {total} steps of the whole run",
            remedy="shorten the warm-up, or train for more epochs",
        )
    if settings["label_smoothing"] and objective.smooth is None:
        raise ParameterError(
            "fit(label_smoothing)",
            found=f"{settings['label_smoothing']} for the objective {objective.name}",
            expected="0, since this objective does not say what smoothing would be",
            remedy="leave label_smoothing out, or give the objective a `smooth`",
        )
    if settings["measure"] and objective.image is None:
        raise ParameterError(
            "fit(measure)",
            found=f"{settings['measure']} for the objective {objective.name}",
            expected="None, since this objective does not answer the eight targets",
            remedy="leave measure out, or give the objective an `image`",
        )
