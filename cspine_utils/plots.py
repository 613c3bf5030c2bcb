"""Every figure of the course, in one style. Notebooks call this room; no other room does.

Each CT picture says its window, its spacing and its sides: R and L are the patient's right and left
(the patient's right is on the viewer's left, as radiologists hang films), A and P front and back,
H and F head and feet. Colours are the Okabe-Ito set, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython import get_ipython
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cspine_utils.anatomy import CERVICAL_IDS, LABEL_NAMES, LEVELS, TARGETS
from cspine_utils.errors import ParameterError
from cspine_utils.stacks import WINDOWS
from cspine_utils.surfaces import View
from cspine_utils.volume import Volume

LEVEL_COLOURS = dict(
    zip(LEVELS, ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"), strict=True)
)
_OTHER_COLOUR = "#BBBBBB"  # thoracic vertebrae, all alike: the course is about the neck
#: The same by label id, as `surfaces.look` wants them.
LABEL_COLOURS = {i: LEVEL_COLOURS.get(name, _OTHER_COLOUR) for i, name in LABEL_NAMES.items()}
#: plane -> (axis that is cut, axes shown as rows and columns, letters left/right, letters top/bottom)
PLANES = {
    "axial": (0, (1, 2), ("R", "L"), ("A", "P")),
    "coronal": (1, (0, 2), ("R", "L"), ("H", "F")),
    "sagittal": (2, (0, 1), ("A", "P"), ("H", "F")),
}
#: Levels of grey in a picture: more would show nothing but noise, at a price in bytes.
GREYS = 36


def use_style() -> None:
    """Call once at the top of a notebook."""
    sns.set_theme(context="notebook", style="white", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 64, "savefig.dpi": 120, "figure.constrained_layout.use": True})
    shell = get_ipython()
    if shell is not None and "inline" in plt.get_backend():
        plt.switch_backend(plt.get_backend())  # loads it now: it sets a formatter of its own, which ours replaces
        shell.display_formatter.formatters["image/png"].for_type(Figure, lambda figure: _png(figure, figure.dpi))


def _png(figure, dpi: float) -> bytes:
    """A figure as a PNG with a palette: half the bytes of matplotlib's own, and the same bytes for equal figures.

    Greys keep `GREYS` levels of their own, so that a large CT picture cannot push the colours out of the palette.
    """
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=dpi, bbox_inches="tight")
    with Image.open(full) as image:
        pixels = np.asarray(image.convert("RGB"))
    is_grey = np.ptp(pixels, axis=-1) < 8
    index = np.round(pixels[..., 1] * ((GREYS - 1) / 255)).astype(np.uint8)
    palette = [round(255 * i / (GREYS - 1)) for i in range(GREYS) for _ in range(3)]
    if not is_grey.all():
        # Median cut, Pillow's default, divides where most pixels are: it painted a green vertebra blue.
        coloured = Image.fromarray(pixels[~is_grey][None]).quantize(
            256 - GREYS, method=Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE
        )
        index[~is_grey] = GREYS + np.asarray(coloured)[0]
        palette += coloured.getpalette()
    result = Image.fromarray(index, mode="P")
    result.putpalette(palette)
    result.save(small, format="PNG", optimize=True)
    return small.getvalue()


def figures_folder(figures_dir, data_dir) -> Path:
    """The folder for figures made from `data_dir`; refuses to mix pictures of other data with the committed ones.

    Raises ParameterError if the repository's own figures/ is named for anything but the synthetic cohort: pictures
    of licensed images may not be committed.
    """
    root = Path(__file__).resolve().parents[1]
    figures, data = Path(figures_dir).resolve(), Path(data_dir).resolve()
    if figures == root / "figures" and data != root / "data" / "phantom":
        raise ParameterError(
            "figures_dir",
            found=f"the repository's own figures/ for pictures of {data}",
            expected="another folder: only pictures of the synthetic cohort may be committed",
            remedy="set figures_dir and work_dir to a folder under data/runs/, or use `make course DATA=...`.",
        )
    return Path(figures_dir)


def save(figure, folder, name: str) -> None:
    """Write `<folder>/<name>.png`; equal pictures are equal files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / f"{name}.png").write_bytes(_png(figure, plt.rcParams["savefig.dpi"]))


def cut(array: np.ndarray, plane: str, index: int) -> np.ndarray:
    """One plane of a `(d, h, w)` array: head, or front, is up."""
    return np.take(array, index, axis=PLANES[plane][0])


def show_plane(ax, volume: Volume, plane: str, index: int, *, window="bone", mask=None, boxes=(), title=None) -> None:
    """One plane of a volume with its window, spacing and side letters; optionally the mask in colour.

    `boxes` are (x, y, width, height) in pixels of the plane.
    """
    rows, columns = PLANES[plane][1]
    level, width = WINDOWS[window]
    aspect = volume.spacing_mm[rows] / volume.spacing_mm[columns]
    image = cut(volume.hu, plane, index)
    ax.imshow(
        image, cmap="gray", vmin=level - width / 2, vmax=level + width / 2, aspect=aspect, interpolation="nearest"
    )
    if mask is not None:
        overlay(ax, cut(mask, plane, index), aspect=aspect)
    for x, y, box_width, box_height in boxes:
        ax.add_patch(Rectangle((x, y), box_width, box_height, fill=False, edgecolor="#F0E442", linewidth=1.5))
    ax.set_title(title or f"{plane}, slice {index}", fontsize=10)
    ax.set_xlabel(
        f"{window} window {level}/{width} HU\n{volume.spacing_mm[rows]:.2f} x {volume.spacing_mm[columns]:.2f} mm",
        fontsize=8,
    )
    ax.set_xticks([])
    ax.set_yticks([])
    _side_letters(ax, plane)


def overlay(ax, labels: np.ndarray, *, aspect=1.0, alpha=0.45) -> None:
    """Colour the labels of one plane; C1-C7 have their own colours, thoracic vertebrae are grey."""
    colours = [LEVEL_COLOURS[level] for level in LEVELS] + [_OTHER_COLOUR]
    shown = np.ma.masked_equal(np.minimum(labels, len(colours)), 0)
    ax.imshow(
        shown, cmap=ListedColormap(colours), vmin=0.5, vmax=len(colours) + 0.5, alpha=alpha, aspect=aspect,
        interpolation="nearest",
    )  # fmt: skip


def level_legend(figure, mask=None, **options) -> None:
    """A legend of the levels (of those in `mask`, if one is given)."""
    ids = CERVICAL_IDS if mask is None else np.unique(mask[mask > 0])
    handles = [
        Patch(color=LEVEL_COLOURS.get(LABEL_NAMES[i], _OTHER_COLOUR), label=LABEL_NAMES[i])
        for i in ids
        if i in LABEL_NAMES
    ]
    figure.legend(handles=handles, **{"loc": "outside right center", "frameon": False, "fontsize": 9} | options)


def three_planes(volume: Volume, mask=None, *, at=None, window="bone"):
    """Axial, coronal and sagittal planes through one voxel (default: the middle of the mask or the volume)."""
    if at is None:
        inside = np.argwhere(np.isin(mask, CERVICAL_IDS)) if mask is not None else None
        at = np.array(volume.shape) // 2 if inside is None else np.median(inside, axis=0).astype(int)
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.6))
    for ax, (plane, (axis, *_)) in zip(axes, PLANES.items(), strict=True):
        show_plane(ax, volume, plane, int(at[axis]), window=window, mask=mask)
    if mask is not None:
        level_legend(figure, mask)
    return figure


def windows(volume: Volume, plane: str, index: int):
    """The same plane in every window of the course."""
    figure, axes = plt.subplots(1, len(WINDOWS), figsize=(11, 4.2))
    for ax, name in zip(axes, WINDOWS, strict=True):
        show_plane(ax, volume, plane, index, window=name, title=f"{name} window")
    return figure


def show_surface(ax, view: View, title: str = "") -> None:
    """A picture of `surfaces` on an axis, true to scale, with side letters and a bar of 2 cm."""
    rows, columns = view.picture.shape[:2]
    ink, paper = ("white", "black") if view.picture[0, 0].sum() < 1.5 else ("black", "white")
    ax.imshow(view.picture, interpolation="antialiased")
    ax.set_title(title, fontsize=10, pad=12)
    ax.set(xticks=[], yticks=[], facecolor=view.picture[0, 0])
    sns.despine(ax=ax, left=True, bottom=True)
    places = {"left": (0.0, 0.05), "right": (1.0, 0.05), "top": (0.5, -0.01), "bottom": (0.5, 1.01)}
    for side, letter in view.side_letters().items():
        x, y = places[side][0] * columns, places[side][1] * rows
        ax.text(x, y, letter, color=ink, ha="center", va="center", **_LETTER, path_effects=_outline(paper))
    end, low = 20.0 / view.pixel_mm, 1.01 * rows + 4.0 / view.pixel_mm
    ax.plot([0, end], [low, low], color=ink, linewidth=2, clip_on=False)
    ax.text(0, low, "2 cm", color=ink, fontsize=8, va="bottom")


def label_parts(ax, spots: dict[str, np.ndarray], *, fontsize=9) -> None:
    """Names beside a picture, each with an arrow to its part.

    `spots` is name -> (column, row) `(n, 2)` in pixels of the picture, one row for each side of the body that has the
    part. One of them gets the arrow. A name stands on the side of the picture that its part is on; where there is a
    choice, on the side with fewer names.
    """
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    names: dict[str, list] = {"left": [], "right": []}
    for name, spot in sorted(spots.items(), key=lambda item: (len(item[1]), -abs(item[1][0, 0] - (left + right) / 2))):
        off = spot[:, 0] - (left + right) / 2
        sides = {"left" if o < 0 else "right" for o in off if abs(o) > 0.05 * (right - left)} or {"left", "right"}
        side = min(sorted(sides), key=lambda s: len(names[s]))  # where the part is; the emptier one if it may be both
        pick = off.argmin() if side == "left" else off.argmax()
        names[side].append((spot[pick, 1], spot[pick, 0], name))
    for side, entries in names.items():
        x, align = (left, "right") if side == "left" else (right, "left")
        heights = _spread([row for row, *_ in sorted(entries)], 0.095 * abs(bottom - top) * fontsize / 9)
        for height, (row, column, name) in zip(heights, sorted(entries), strict=True):
            for colour, width in (("white", 3.0), ("black", 1.0)):
                arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 1, "shrinkB": 0}
                ax.annotate(
                    name if colour == "black" else "", (column, row), (x + 0.02 * (x - (left + right) / 2), height),
                    ha=align, va="center", fontsize=fontsize, annotation_clip=False, arrowprops=arrow,
                )  # fmt: skip


def _spread(wanted: list[float], apart: float) -> list[float]:
    """Places in the same order, at least `apart` from each other and as near as may be to the wanted ones."""
    places = list(wanted)
    for _ in range(200):
        for i in range(len(places) - 1):
            if (short := apart - (places[i + 1] - places[i])) > 0:
                places[i], places[i + 1] = places[i] - short / 2, places[i + 1] + short / 2
    return places


def loss_curves(histories: dict, *, train_constant: float, validation_constant: float, title: str):
    """Training (dashed) and validation (solid) loss by epoch, with the base-rate constant as a line.

    Parameters
    ----------
    histories : name -> DataFrame with the columns epoch, train_loss, validation_loss
    train_constant, validation_constant : losses of the base-rate constant on the same studies
    """
    figure, ax = plt.subplots(figsize=(8, 4.2))
    for (name, history), colour in zip(histories.items(), sns.color_palette("colorblind"), strict=False):
        ax.plot(history["epoch"], history["train_loss"], "--", color=colour, label=f"{name}: training")
        ax.plot(history["epoch"], history["validation_loss"], "-", color=colour, label=f"{name}: validation")
    for constant, style, name in ((train_constant, "-.", "training"), (validation_constant, ":", "validation")):
        label = f"base-rate constant, {name} ({constant:.3f})"
        ax.axhline(constant, color="black", linewidth=1.2, linestyle=style, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch (0 = before training)")
    ax.set_ylabel("mean binary cross-entropy (nats)")
    ax.set_title(title, fontsize=11)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    sns.despine(figure)
    return figure


def prevalence_bars(rates: dict[str, np.ndarray], counts: dict[str, int]):
    """How often each target is positive, in percent, for one or more sets of studies."""
    figure, ax = plt.subplots(figsize=(8, 3.6))
    width = 0.8 / len(rates)
    for i, (name, values) in enumerate(rates.items()):
        x = np.arange(len(TARGETS)) + i * width
        ax.bar(x, 100 * np.asarray(values), width=width, label=f"{name} ({counts[name]} studies)")
    ax.set_xticks(np.arange(len(TARGETS)) + 0.4 - width / 2, [*LEVELS, "patient"])
    ax.set_ylabel("fractured (%)")
    ax.legend(frameon=False, fontsize=9)
    sns.despine(figure)
    return figure


_LETTER = {"fontsize": 9, "fontweight": "bold"}


def _outline(colour: str):
    """Makes letters readable on whatever lies below them."""
    return [withStroke(linewidth=2, foreground=colour)]


def _side_letters(ax, plane: str) -> None:
    _, _, (left, right), (top, bottom) = PLANES[plane]
    for x, y, letter in ((0.05, 0.94, left), (0.95, 0.94, right), (0.5, 0.94, top), (0.5, 0.06, bottom)):
        ax.text(
            x, y, letter, transform=ax.transAxes, color="white", ha="center", va="center", **_LETTER,
            path_effects=_outline("black"),
        )  # fmt: skip
