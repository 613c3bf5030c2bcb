"""Every figure of the course, in one style. Notebooks call this room; no other room does.

Each CT picture says its window, its spacing and its sides: R and L are the patient's right and left
(the patient's right is on the viewer's left, as radiologists hang films), A and P front and back,
H and F head and feet. Colours are the Okabe-Ito set, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.colors import LightSource, ListedColormap, to_rgb
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from cspine_utils.anatomy import CERVICAL_IDS, LABEL_NAMES, LEVELS, TARGETS
from cspine_utils.errors import ParameterError
from cspine_utils.stacks import WINDOWS
from cspine_utils.volume import Volume

LEVEL_COLOURS = dict(
    zip(LEVELS, ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"), strict=True)
)
_OTHER_COLOUR = "#BBBBBB"  # thoracic vertebrae, all alike: the course is about the neck
#: plane -> (axis that is cut, axes shown as rows and columns, letters left/right, letters top/bottom)
PLANES = {
    "axial": (0, (1, 2), ("R", "L"), ("A", "P")),
    "coronal": (1, (0, 2), ("R", "L"), ("H", "F")),
    "sagittal": (2, (0, 1), ("A", "P"), ("H", "F")),
}


def use_style() -> None:
    """Call once at the top of a notebook."""
    sns.set_theme(context="notebook", style="white", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 64, "savefig.dpi": 120, "figure.constrained_layout.use": True})


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
    """Write `<folder>/<name>.png`, without the writing software's version, so that equal pictures are equal files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(folder) / f"{name}.png", metadata={"Software": None})


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


def surface(mask: np.ndarray, spacing_mm, view: str = "left") -> np.ndarray:
    """A shaded picture of the labels as seen from outside: RGB `(rows, columns, 3)`, values 0-1.

    For each line of sight the first labelled voxel is found; its depth gives the shading. `view` is
    "front", "back", "left" or "right" (the side that the viewer looks at).
    """
    axis, reverse_depth, reverse_columns = {
        "front": (1, False, False),
        "back": (1, True, True),
        "right": (2, False, True),
        "left": (2, True, False),
    }[view]
    solid = np.flip(mask, axis) if reverse_depth else mask
    first = (solid > 0).argmax(axis=axis)
    seen = np.take_along_axis(solid, np.expand_dims(first, axis), axis).squeeze(axis)
    depth_mm = np.where(seen > 0, first * spacing_mm[axis], np.nan)
    columns = 2 if axis == 1 else 1
    far = np.nanmax(depth_mm) if (seen > 0).any() else 0.0
    height = -np.nan_to_num(depth_mm, nan=far)
    shade = LightSource(azdeg=315, altdeg=50).hillshade(
        height, dx=spacing_mm[columns], dy=spacing_mm[0], vert_exag=0.6, fraction=1.1
    )
    colours = np.array(
        [to_rgb("white")] + [to_rgb(LEVEL_COLOURS.get(LABEL_NAMES.get(i), _OTHER_COLOUR)) for i in range(1, 256)]
    )
    picture = colours[seen] * np.where(seen > 0, 0.35 + 0.65 * shade, 1.0)[..., None]
    return picture[:, ::-1] if reverse_columns else picture


def show_surface(ax, mask: np.ndarray, spacing_mm, view: str) -> None:
    """`surface` on an axis, true to scale, with side letters."""
    columns = 2 if view in ("front", "back") else 1
    picture = surface(mask, spacing_mm, view)
    filled = np.flatnonzero((picture < 1).any(axis=(0, 2)))  # cut the empty sides off, leave a small margin
    picture = picture[:, max(filled[0] - 4, 0) : filled[-1] + 5] if len(filled) else picture
    ax.imshow(picture.clip(0, 1), aspect=spacing_mm[0] / spacing_mm[columns], interpolation="bilinear")
    ax.set_title(f"seen from the {view}", fontsize=10)
    ax.set(xticks=[], yticks=[])
    sns.despine(ax=ax, left=True, bottom=True)
    letters = {"front": "RL", "back": "LR", "right": "PA", "left": "AP"}[view]
    ax.set_xlabel(f"{letters[0]}  <-   ->  {letters[1]}", fontsize=9)


def overview(study):
    """The first picture of the course: a neck, its label map, and its lowest fracture with its box.

    `study` is a `phantom.Rendered` with at least one fracture.
    """
    volume, mask = Volume(study.hu, study.affine), study.labels
    middle = int(np.median(np.argwhere(mask == 4)[:, 2]))
    lowest = max(box.level for box in study.boxes)
    boxes = [box for box in study.boxes if box.level == lowest]
    box = max(boxes, key=lambda b: study.altered[b.slice_index].sum())
    figure, axes = plt.subplots(1, 4, figsize=(14, 4.4), width_ratios=[0.8, 0.8, 0.9, 0.9])
    show_plane(axes[0], volume, "sagittal", middle, title="a synthetic neck")
    show_plane(axes[1], volume, "sagittal", middle, mask=mask, title="its label map, C1-C7")
    show_surface(axes[2], mask, volume.spacing_mm, "front")
    rectangle = [(box.x, box.y, box.width, box.height)]
    show_plane(
        axes[3], volume, "axial", box.slice_index, boxes=rectangle, title=f"a fracture of {box.level} and its box"
    )
    half = 35 / volume.spacing_mm[1]
    axes[3].set_xlim(box.x + box.width / 2 - half, box.x + box.width / 2 + half)
    axes[3].set_ylim(box.y + box.height / 2 + half, box.y + box.height / 2 - half)
    level_legend(figure, mask)
    return figure


def twin_gallery(pairs: dict, *, crop_mm: float = 70.0):
    """Fractured, intact and their difference, a row a pair, where most of the fracture is to be seen.

    Parameters
    ----------
    pairs : title -> (fractured, intact, plane), the first two `phantom.Rendered` of one plan
    crop_mm : side of the square that is shown, around the altered voxels
    """
    figure, axes = plt.subplots(len(pairs), 3, figsize=(8.4, 2.9 * len(pairs)), squeeze=False)
    for row, (title, (fractured, intact, plane)) in zip(axes, pairs.items(), strict=True):
        index, row_limits, column_limits = _clearest_view(fractured, plane, crop_mm)
        volumes = [Volume(study.hu, study.affine) for study in (fractured, intact)]
        for ax, volume, name in zip(row, volumes, (title, "intact twin"), strict=False):
            show_plane(ax, volume, plane, index, title=f"{name} ({plane})")
        difference = cut(fractured.hu, plane, index).astype(float) - cut(intact.hu, plane, index)
        rows, columns = PLANES[plane][1]
        aspect = volumes[0].spacing_mm[rows] / volumes[0].spacing_mm[columns]
        row[2].imshow(difference, cmap="PuOr", vmin=-800, vmax=800, aspect=aspect, interpolation="nearest")
        row[2].set_title("difference", fontsize=10)
        row[2].set_xlabel("orange: darker, purple: brighter\n(full colour at 800 HU)", fontsize=8)
        row[2].set(xticks=[], yticks=[])
        for ax in row:
            ax.set(xlim=column_limits, ylim=row_limits[::-1], facecolor="black")  # beyond the scan there is nothing
    return figure


def _clearest_view(study, plane: str, crop_mm: float):
    """(index, (row from, to), (column from, to)) of the slice of a plane that shows most of the fracture."""
    axis, shown, *_ = PLANES[plane]
    index = int(study.altered.sum(axis=shown).argmax())
    centre = np.argwhere(cut(study.altered, plane, index)).mean(axis=0)
    spacing = Volume(study.hu, study.affine).spacing_mm
    half = [crop_mm / 2 / spacing[axis] for axis in shown]
    return index, *((c - h, c + h) for c, h in zip(centre, half, strict=True))


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


def _side_letters(ax, plane: str) -> None:
    _, _, (left, right), (top, bottom) = PLANES[plane]
    outline = [withStroke(linewidth=2, foreground="black")]  # readable on bone, too
    style = {"color": "white", "fontsize": 9, "fontweight": "bold", "ha": "center", "va": "center"}
    for x, y, letter in ((0.05, 0.5, left), (0.95, 0.5, right), (0.5, 0.95, top), (0.5, 0.05, bottom)):
        ax.text(x, y, letter, transform=ax.transAxes, path_effects=outline, **style)
