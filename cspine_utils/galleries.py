"""Pictures made of many: atlas plates, necks side by side, each fracture beside its intact twin.

Built from the planes of `plots` and the bones of `surfaces`. Notebooks call this room; no other room does.
Where a function takes a study, that is a `phantom.Rendered`; what it takes as an example comes from `examples`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from scipy import ndimage

from cspine_utils import surfaces
from cspine_utils.anatomy import LABEL_IDS
from cspine_utils.phantom.acceptance.image_quality import noise_power
from cspine_utils.plots import (
    LABEL_COLOURS,
    PLANES,
    cut,
    label_parts,
    level_legend,
    show_plane,
    show_surface,
)
from cspine_utils.volume import Volume

#: What is cut off at the lower edge of a scan looks like rubble; whole-neck views show C1 to T1.
_SHOWN = range(1, 9)


def neck_views(study, standpoints=("front", "left", "back"), *, background="white"):
    """The whole neck from several sides and, last, with its left half taken away."""
    solid = surfaces.soften(study.labels, study.affine, labels=_SHOWN)
    figure, axes = plt.subplots(1, len(standpoints) + 1, figsize=(12.5, 5.0))
    look = {"colours": LABEL_COLOURS, "background": background}
    for ax, name in zip(axes, standpoints, strict=False):
        show_surface(ax, surfaces.look(solid, *surfaces.STANDPOINTS[name], **look), f"seen from the {name}")
    middle = surfaces.Plane(_middle(study, "C4"), (1.0, 0.0, 0.0))
    view = surfaces.look(solid, *surfaces.STANDPOINTS["left"], remove=middle, **look)
    show_surface(axes[-1], view, "left half taken away")
    level_legend(figure, np.unique(study.labels[np.isin(study.labels, _SHOWN)]))
    return figure


def _middle(study, level: str) -> tuple[float, float, float]:
    """LPS mm of the middle of a label's voxels."""
    voxel = np.argwhere(study.labels == LABEL_IDS[level]).mean(axis=0)
    right, front, head = Volume(study.hu, study.affine).position_mm(voxel)
    return (-right, -front, head)


def atlas(study, plates: dict, parts: dict[str, dict[str, np.ndarray]]):
    """Single vertebrae, each alone and with its parts named, two in a row, all at one scale.

    Parameters
    ----------
    study : the neck that they are taken from
    plates : title -> (level, (azimuth, elevation), left out): what is shown, where the viewer stands (see `surfaces`),
        and parts that get no name
    parts : level -> part -> LPS mm `(n, 3)`, one row for each side of the body; hidden ones get no name
    """
    views = {}
    for title, (level, standpoint, _) in plates.items():
        solid = surfaces.soften(study.labels, study.affine, labels=[LABEL_IDS[level]], edge_mm=0.4)
        views[title] = surfaces.look(solid, *standpoint, pixel_mm=0.25)
    tallest, widest = np.max([view.labels.shape for view in views.values()], axis=0)
    rows = -(-len(plates) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11.8, 3.9 * rows), squeeze=False)
    for ax, (title, view) in zip(axes.flat, views.items(), strict=False):
        show_surface(ax, view, title)
        down, across = view.labels.shape
        ax.set_xlim((across - widest) / 2 - 4, (across + widest) / 2 + 4)
        ax.set_ylim((down + tallest) / 2 + 26, (down - tallest) / 2 - 10)
        level, _, left_out = plates[title]
        seen = {name: points[view.shows(points)] for name, points in parts[level].items() if name not in left_out}
        label_parts(ax, {name: view.project(points) for name, points in seen.items() if len(points)})
    for ax in axes.flat[len(views) :]:
        ax.set_axis_off()
    return figure


def labelled_planes(volume: Volume, plates: dict, *, side_mm=76.0, near_mm=4.0):
    """Planes with the names of the parts that lie in them, two in a row.

    Parameters
    ----------
    plates : title -> (plane, point in LPS mm, parts): parts is name -> LPS mm `(n, 3)`, a row for each side of the body
    side_mm : width and height of what is shown around the point
    near_mm : a part is named if its point lies no farther from the plane
    """
    rows = -(-len(plates) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11.8, 3.9 * rows), squeeze=False)
    for ax, (title, (plane, point, parts)) in zip(axes.flat, plates.items(), strict=False):
        axis, shown, *_ = PLANES[plane]
        centre = _voxels(volume, point)
        index = int(round(centre[axis]))
        show_plane(ax, volume, plane, index, title=f"{title} ({plane})")
        half = [side_mm / 2 / volume.spacing_mm[a] for a in shown]
        ax.set(ylim=(centre[shown[0]] + half[0], centre[shown[0]] - half[0]), facecolor="black")
        ax.set(xlim=(centre[shown[1]] - half[1], centre[shown[1]] + half[1]))
        spots = {}
        for name, points in parts.items():
            at = _voxels(volume, points)
            close = np.abs(at[:, axis] - index) * volume.spacing_mm[axis] <= near_mm
            if close.any():
                spots[name] = at[close][:, [shown[1], shown[0]]]
        label_parts(ax, spots)
    return figure


def _voxels(volume: Volume, lps) -> np.ndarray:
    """LPS mm `(..., 3)` -> fractional voxel index (d, h, w)."""
    to_voxel = np.linalg.inv(volume.affine)
    return (np.asarray(lps, float) * [-1, -1, 1]) @ to_voxel[:3, :3].T + to_voxel[:3, 3]


def overview(study):
    """The first picture of the course: a neck, its label map, its bones, and its lowest fracture with its box.

    `study` has at least one fracture.
    """
    volume, mask = Volume(study.hu, study.affine), study.labels
    middle = int(np.median(np.argwhere(mask == 4)[:, 2]))
    lowest = max(box.level for box in study.boxes)
    boxes = [box for box in study.boxes if box.level == lowest]
    box = max(boxes, key=lambda b: study.altered[b.slice_index].sum())
    figure, axes = plt.subplots(1, 4, figsize=(13, 4.2), width_ratios=[0.8, 0.8, 0.75, 0.9])
    show_plane(axes[0], volume, "sagittal", middle, title="a synthetic neck")
    show_plane(axes[1], volume, "sagittal", middle, mask=mask, title="its label map, C1-C7")
    solid = surfaces.soften(mask, study.affine, labels=_SHOWN)
    show_surface(axes[2], surfaces.look(solid, 35, 12, colours=LABEL_COLOURS), "its bones, from the left and front")
    rectangle = [(box.x, box.y, box.width, box.height)]
    show_plane(
        axes[3], volume, "axial", box.slice_index, boxes=rectangle, title=f"a fracture of {box.level} and its box"
    )
    half = 35 / volume.spacing_mm[1]
    axes[3].set_xlim(box.x + box.width / 2 - half, box.x + box.width / 2 + half)
    axes[3].set_ylim(box.y + box.height / 2 + half, box.y + box.height / 2 - half)
    level_legend(figure, mask)
    return figure


def patients(studies: dict, *, across: int = 2):
    """Many necks: each in its axial, sagittal and coronal plane through C4 and as bones from the left and front."""
    rows = -(-len(studies) // across)
    figure, axes = plt.subplots(rows, 4 * across, figsize=(12.6, 2.05 * rows), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for number, (title, study) in enumerate(studies.items()):
        row, first = divmod(number, across)
        own = axes[row, 4 * first : 4 * first + 4]
        volume = Volume(study.hu, study.affine)
        middle = np.median(np.argwhere(study.labels == LABEL_IDS["C4"]), axis=0).astype(int)
        for ax, (plane, (axis, *_)) in zip(own, PLANES.items(), strict=False):
            ax.set_axis_on()
            show_plane(ax, volume, plane, int(middle[axis]), title=plane)
            ax.get_images()[0].set_interpolation("antialiased")  # the picture is smaller than the slice
            ax.set_xlabel("")
        own[0].set_ylabel(title, fontsize=9)
        solid = surfaces.soften(study.labels, study.affine, labels=_SHOWN, edge_mm=0.8)
        own[3].set_axis_on()
        show_surface(own[3], surfaces.look(solid, 35, 12, colours=LABEL_COLOURS, pixel_mm=0.8))
    _explain(figure, studies.values())
    return figure


def twin_gallery(pairs: dict, *, across: int = 1, crop_mm: float = 60.0):
    """Fractured, intact and their difference where most of the fracture is to be seen; an arrow points at it.

    Parameters
    ----------
    pairs : title -> example
    across : how many examples stand side by side
    crop_mm : side of the square that is shown, around the altered voxels
    """
    figure, axes = _grid(len(pairs), across, 3)
    for row, (title, (fractured, intact, plane)) in zip(axes, pairs.items(), strict=False):
        index, limits = _clearest_view(fractured, intact, plane, crop_mm)
        for ax, study, name in zip(row, (fractured, intact), (title, "intact twin"), strict=False):
            _show_crop(ax, study, plane, index, limits, name)
        _point_at(row[0], sites(fractured, intact, plane, index, gaps=True), fractured, plane, limits)
        _show_difference(row[2], fractured, intact, plane, index, limits)
    _explain(
        figure, [p[0] for p in pairs.values()], "difference: orange darker, purple brighter, full colour at 800 HU"
    )
    return figure


def mimics(pairs: dict, *, across: int = 3, crop_mm: float = 60.0):
    """Look-alikes of fractures, each beside the same bone without it; an arrow points at the look-alike."""
    figure, axes = _grid(len(pairs), across, 2)
    for row, (title, (mimicked, plain, plane)) in zip(axes, pairs.items(), strict=False):
        index, limits = _clearest_view(mimicked, plain, plane, crop_mm)
        _show_crop(row[0], mimicked, plane, index, limits, title)
        _show_crop(row[1], plain, plane, index, limits, "without")
        _point_at(row[0], sites(mimicked, plain, plane, index, gaps=False), mimicked, plane, limits)
    _explain(figure, [p[0] for p in pairs.values()])
    return figure


def difficulties(rows: dict, *, crop_mm: float = 60.0):
    """The same fracture at several difficulties: `rows` is title -> difficulty -> example; a row a fracture."""
    names = list(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), len(names), figsize=(2.8 * len(names), 2.9 * len(rows)), squeeze=False)
    pairs = {}
    for row, (title, examples) in zip(axes, rows.items(), strict=True):
        for ax, name in zip(row, names, strict=True):
            pairs[title, name] = fractured, intact, plane = examples[name]
            index, limits = _clearest_view(fractured, intact, plane, crop_mm)
            _show_crop(ax, fractured, plane, index, limits, f"{title}, {name}")
            _point_at(ax, sites(fractured, intact, plane, index, gaps=True), fractured, plane, limits)
    _explain(figure, [p[0] for p in pairs.values()])
    return figure


def noise_spectra(examples: dict):
    """The same slice with each kernel, and how the noise power of the kernels depends on spatial frequency.

    `examples` is kernel -> (with noise, without noise), see `examples.kernels`.
    """
    figure, axes = plt.subplots(1, len(examples) + 1, figsize=(12.5, 3.3), width_ratios=[1] * len(examples) + [1.5])
    styles, colours = ("-", "--", "-.", ":"), sns.color_palette("colorblind")
    for i, (name, (noisy, clean)) in enumerate(examples.items()):
        volume = Volume(noisy.hu, noisy.affine)
        show_plane(axes[i], volume, "axial", noisy.hu.shape[0] // 2, window="soft", title=f"kernel: {name}")
        noise = (noisy.hu.astype(np.float32) - clean.hu)[:, noisy.hu.shape[1] // 3 :]  # in air it would be clipped
        frequency, power = noise_power(noise, volume.spacing_mm[1])
        axes[-1].plot(frequency, power, styles[i % 4], color=colours[i], label=f"{name}: SD {noise.std():.0f} HU")
    axes[-1].set(xlabel="spatial frequency (1/mm)", ylabel="noise power (HU² mm²)", xlim=(0, None), ylim=(0, None))
    axes[-1].legend(frameon=False, fontsize=9)
    sns.despine(ax=axes[-1])
    return figure


def _grid(examples: int, across: int, columns: int):
    """A figure for examples of `columns` panels each, `across` of them side by side: one row of axes an example."""
    rows = -(-examples // across)
    panel = 12.4 / max(across * columns, 4.5)
    figure, axes = plt.subplots(
        rows, across * columns, figsize=(panel * across * columns, (panel + 0.22) * rows + 0.3), squeeze=False
    )
    axes = axes.reshape(rows * across, columns)
    for ax in axes[examples:].flat:
        ax.set_axis_off()
    return figure, axes


def _clearest_view(changed, plain, plane: str, crop_mm: float):
    """(index, ((row from, to), (column from, to))) of the slice of a plane that shows a change well.

    Of the slices with at least 0.7 of the strongest change, the one in the middle of the change; the crop is moved so
    that it stays inside the volume, if it fits.
    """
    axis, shown, *_ = PLANES[plane]
    change = np.abs(changed.hu.astype(np.float32) - plain.hu)
    strength = change.sum(axis=shown)
    strong = np.flatnonzero(strength >= 0.7 * strength.max())
    index = int(strong[np.abs(strong - np.average(np.arange(len(strength)), weights=strength)).argmin()])
    here = cut(change, plane, index)
    spacing = Volume(changed.hu, changed.affine).spacing_mm
    limits = []
    for i, n in enumerate(here.shape):
        half = crop_mm / 2 / spacing[shown[i]]
        centre = np.average(np.arange(n), weights=here.sum(axis=1 - i))
        centre = float(np.clip(centre, half - 0.5, n - 0.5 - half)) if n > 2 * half else (n - 1) / 2
        limits.append((centre - half, centre + half))
    return index, tuple(limits)


def sites(changed, plain, plane: str, index: int, *, gaps: bool, apart_mm=12.0, most=3) -> np.ndarray:
    """(row, column) `(n, 2)` of the places in one slice that an arrow should show.

    With `gaps`, where the inside of a bone turned dark; else the one place where most changed. Places that are much
    fainter than the clearest, or nearer than `apart_mm` to a clearer one, are left out.
    """
    spacing = np.array([Volume(changed.hu, changed.affine).spacing_mm[a] for a in PLANES[plane][1]])
    after, before = (cut(study.hu, plane, index).astype(np.float32) for study in (changed, plain))
    if gaps:
        depth_mm = ndimage.distance_transform_edt(cut(plain.labels, plane, index) > 0, sampling=spacing)
        score = ndimage.gaussian_filter((before - after).clip(0, 800) * (depth_mm / 2.0).clip(0, 1) ** 2, 0.8 / spacing)
        score *= ndimage.gaussian_filter((after > 250).astype(np.float32), 2.5 / spacing) ** 2
    else:
        score, most = ndimage.gaussian_filter(np.abs(before - after), 1.5 / spacing), 1
    rows, columns = np.indices(score.shape)
    found, clearest = [], score.max()
    while len(found) < most and score.max() > 0.6 * clearest:
        found.append(np.unravel_index(score.argmax(), score.shape))
        distance = np.hypot((rows - found[-1][0]) * spacing[0], (columns - found[-1][1]) * spacing[1])
        score = np.where(distance < apart_mm, 0, score)
    return np.array(found, float).reshape(-1, 2)


def _show_crop(ax, study, plane: str, index: int, limits, title: str) -> None:
    """A part of a plane; what it is shown in stands below the whole figure, see `_explain`."""
    show_plane(ax, Volume(study.hu, study.affine), plane, index, title=title)
    ax.set(xlim=limits[1], ylim=limits[0][::-1], facecolor="black", xlabel="")  # beyond the scan there is nothing
    ax.title.set_fontsize(9)


def _show_difference(ax, changed, plain, plane: str, index: int, limits) -> None:
    rows, columns = PLANES[plane][1]
    spacing = Volume(changed.hu, changed.affine).spacing_mm
    difference = cut(changed.hu, plane, index).astype(float) - cut(plain.hu, plane, index)
    ax.imshow(
        difference, cmap="PuOr", vmin=-800, vmax=800, aspect=spacing[rows] / spacing[columns], interpolation="nearest"
    )
    ax.set_title("difference", fontsize=9)
    ax.set(xlim=limits[1], ylim=limits[0][::-1], xticks=[], yticks=[])


def _point_at(ax, places: np.ndarray, study, plane: str, limits) -> None:
    """Yellow arrows whose tips stop 2.5 mm short of (row, column) `(n, 2)`, from outside or from the upper left."""
    spacing = np.array([Volume(study.hu, study.affine).spacing_mm[a] for a in PLANES[plane][1]])
    middle = np.mean(limits, axis=1)
    for site in places:
        away = (site - middle) * spacing
        away = away / np.linalg.norm(away) if np.linalg.norm(away) > 9.0 else np.array([-0.7, -0.7])
        if np.abs((site + 11.0 * away / spacing - middle) / np.ptp(limits, axis=1)).max() > 0.5:
            away = -away  # from outside there is no room
        tip, tail = ((site + mm * away / spacing)[::-1] for mm in (2.5, 11.0))
        for colour, width in (("black", 3.5), ("#F0E442", 1.6)):
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", tip, tail, arrowprops=arrow, annotation_clip=False)


def _explain(figure, studies, more: str = "") -> None:
    """Window and spacing once for all panels; `studies` are those that are shown."""
    spacings = [Volume(study.hu, study.affine).spacing_mm for study in studies]
    low, high = np.min(spacings, axis=0), np.max(spacings, axis=0)
    slices, pixels = (f"{low[i]:.2f}-{high[i]:.2f}" if high[i] - low[i] > 0.005 else f"{low[i]:.2f}" for i in (0, 1))
    text = f"bone window 400/1800 HU; pixels {pixels} mm, slices {slices} mm apart"
    figure.supxlabel(f"{text}; {more}" if more else text, fontsize=8)
