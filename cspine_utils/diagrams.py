"""Drawings of models: one box a part, with the shapes that a real input has on its way through.

Nothing is typed in: the model runs once, and hooks note what each part of its `STAGES` gives. Notebooks call this
room; no other room does.
"""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor, nn

from cspine_utils.errors import ModelError

_FILL = ("#DCEBF7", "#FCE9D3", "#DDF1E4", "#F3E3EC")  # pale shades of the course's colours
_LINE = "#444444"


@dataclass(frozen=True)
class Stage:
    """One part of a model, as it ran.

    Attributes
    ----------
    attribute, words : the part's place in the model, and what it does
    kind : what it is made of
    shapes : of its outputs, without the batch axis
    parameters : how many it has
    column : parts with the same input stand in one column, one above the other
    """

    attribute: str
    words: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    parameters: int
    column: int


def trace(model: nn.Module, x: Tensor | None = None) -> list[Stage]:
    """Run the model once on x (default: zeros of its `input_shape`) and note each part of its `STAGES`, in order.

    The model runs in eval mode and is left as it was. Raises ModelError if a part never ran.
    """
    if x is None:
        x = torch.zeros(1, *model.input_shape)
    seen: dict[str, tuple] = {}
    handles = []
    for attribute in model.STAGES:
        note = _noter(seen, attribute)
        handles.append(model.get_submodule(attribute).register_forward_hook(note))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(x)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    absent = [attribute for attribute in model.STAGES if attribute not in seen]
    if absent:
        raise ModelError(
            f"diagrams.trace({type(model).__name__})",
            found=f"parts that did not run: {', '.join(absent)}",
            expected="every part of STAGES to run in forward",
            remedy="name in STAGES the modules that forward calls",
        )
    stages, columns = [], {}
    for attribute, words in model.STAGES.items():
        source, shapes = seen[attribute]
        column = columns.setdefault(source, len(columns))
        module = model.get_submodule(attribute)
        count = sum(p.numel() for p in module.parameters())
        stages.append(Stage(attribute, words, _kind(module), shapes, count, column))
    return stages


def _noter(seen: dict, attribute: str):
    def note(module, inputs, output):
        tensors = output if isinstance(output, list | tuple) else [output]
        # An LSTM's second output is its last state, a tuple; an encoder gives a list of maps, fine to coarse.
        shapes = tuple(tuple(t.shape[1:]) for t in tensors if isinstance(t, Tensor))
        first = inputs[0]
        # Of a list of maps the last, the coarsest: the first is the image itself, as the encoder got it.
        seen[attribute] = (id(first[-1] if isinstance(first, list | tuple) else first), shapes)
        seen.setdefault("", []).append(inputs)  # kept alive: the id of a dead tensor may be given to another

    return note


def _kind(module: nn.Module) -> str:
    if hasattr(module, "name") and isinstance(module.name, str):
        return module.name
    if isinstance(module, nn.Sequential):
        names = [type(part).__name__ for part in module]
        return f"{len(names)} x {names[0]}" if len(set(names)) == 1 and len(names) > 1 else " + ".join(names)
    return type(module).__name__


def draw(model: nn.Module, x: Tensor | None = None, *, title: str, picture=None):
    """The model as a row of boxes; under each the shape it gives for one study.

    Parameters
    ----------
    model, x : as in `trace`
    title : over the drawing
    picture : 2D array shown in front as the input, or None

    A model with `RESIDUALS`, pairs of parts (first, last), gets an arc over each pair: its input is added again.
    """
    stages = trace(model, x)
    start = tuple(model.input_shape if x is None else x.shape[1:])
    columns = 1 + max(stage.column for stage in stages)
    figure, ax = plt.subplots(figsize=(2.1 * (columns + 1) + 0.4, 3.1))
    ax.set(xlim=(-0.55, columns + 0.55), ylim=(-1.25, 1.35), aspect="auto")
    ax.axis("off")
    ax.set_title(title, fontsize=11)
    _input_box(figure, ax, picture, start)
    places = {}
    for column in range(columns):
        rows = [stage for stage in stages if stage.column == column]
        heights = [0.0] if len(rows) == 1 else [0.62 - 1.24 * i / (len(rows) - 1) for i in range(len(rows))]
        for stage, y in zip(rows, heights, strict=True):
            places[stage.attribute] = (column + 1, y)
            _box(ax, column + 1, y, stage, _FILL[column % len(_FILL)], tall=len(rows) == 1)
            before = [p for s, p in ((s, places[s.attribute]) for s in stages if s.column == column - 1)] or [(0, 0.0)]
            for x0, y0 in before:
                _arrow(ax, (x0 + 0.41, y0), (column + 1 - 0.41, y))
    for first, last in getattr(model, "RESIDUALS", ()):
        _arc(ax, places[first][0] - 0.46, places[last][0] + 0.46)
    return figure


def _input_box(figure, ax, picture, shape) -> None:
    if picture is None:
        ax.text(0, 0, "input", ha="center", va="center", fontsize=10, color=_LINE)
    else:
        inset = ax.inset_axes((-0.36, -0.5, 0.72, 1.0), transform=ax.transData)
        inset.imshow(picture, cmap="gray", interpolation="nearest")
        inset.set(xticks=[], yticks=[])
    ax.text(0, -0.78, _size(shape), ha="center", va="top", fontsize=9, fontweight="bold")


def _box(ax, x: float, y: float, stage: Stage, colour: str, *, tall: bool) -> None:
    half = 0.5 if tall else 0.36
    box = FancyBboxPatch((x - 0.38, y - half), 0.76, 2 * half, boxstyle="round,pad=0.02,rounding_size=0.06")
    box.set(facecolor=colour, edgecolor=_LINE, linewidth=1)
    ax.add_patch(box)
    text = f"{_wrap(stage.words)}\n\n{_wrap(stage.kind)}\n{_count(stage.parameters)}"
    ax.text(x, y, text if tall else text.replace("\n\n", "\n"), ha="center", va="center", fontsize=7.5, linespacing=1.2)
    below = "\n".join(_size(shape) for shape in stage.shapes[-3:])
    if tall:
        ax.text(x, -0.78, below, ha="center", va="top", fontsize=9, fontweight="bold")
    else:
        ax.text(x + 0.42, y, below, ha="left", va="center", fontsize=9, fontweight="bold")


def _arrow(ax, start, end, **style) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "color": _LINE, "linewidth": 1} | style
    ax.add_patch(FancyArrowPatch(start, end, **style))


def _arc(ax, x0: float, x1: float) -> None:
    """From the gap before a part, over it, into the gap behind it."""
    colour, height = "#D55E00", 0.74
    ax.plot([x0, x0, x1], [0.0, height, height], color=colour, linewidth=1.4, solid_joinstyle="round")
    _arrow(ax, (x1, height), (x1, 0.0), color=colour, linewidth=1.4, shrinkA=0)
    ax.text(x1, height + 0.06, "+", ha="center", va="bottom", fontsize=12, color=colour, fontweight="bold")


def _size(shape) -> str:
    return " x ".join(f"{n:,}" for n in shape)


def _count(parameters: int) -> str:
    return f"{parameters:,} parameters" if parameters else "no parameters"


def _wrap(text: str, width: int = 19) -> str:
    """Break between words, and long names of networks at underscores."""
    lines = [""]
    for word in text.replace("_", "_ ").split(" "):
        glue = "" if not lines[-1] or lines[-1].endswith("_") else " "
        if len(lines[-1] + glue + word) <= width:
            lines[-1] += glue + word
        else:
            lines.append(word)
    return "\n".join(line for line in lines if line)
