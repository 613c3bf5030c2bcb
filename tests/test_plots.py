import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from cspine_utils import galleries, phantom, plots, surfaces
from cspine_utils.errors import ParameterError


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_planes_are_cut_where_they_say():
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    assert np.array_equal(plots.cut(array, "axial", 1), array[1])
    assert np.array_equal(plots.cut(array, "coronal", 2), array[:, 2])
    assert np.array_equal(plots.cut(array, "sagittal", 3), array[:, :, 3])


def test_a_plane_carries_window_spacing_sides_and_proportions(volume):
    ax = plt.figure().add_subplot()
    plots.show_plane(ax, volume, "sagittal", 4, window="soft")
    assert ax.get_images()[0].get_clim() == (-160, 240)
    assert ax.get_aspect() == pytest.approx(1.5 / 0.7)
    assert "40/400 HU" in ax.get_xlabel() and "1.50 x 0.70 mm" in ax.get_xlabel()
    letters = {text.get_text(): text.get_position() for text in ax.texts}
    assert letters["A"][0] < letters["P"][0] and letters["H"][1] > letters["F"][1]


def test_pictures_of_other_data_do_not_land_among_the_committed_ones(tmp_path):
    committed = ROOT / "figures"
    with pytest.raises(ParameterError, match="only pictures of the synthetic cohort"):
        plots.figures_folder(committed, tmp_path)
    assert plots.figures_folder(committed, ROOT / "data" / "phantom") == committed
    assert plots.figures_folder(tmp_path / "figures", tmp_path) == tmp_path / "figures"


def test_equal_pictures_are_equal_files(tmp_path):
    for name in ("a", "b"):
        figure, ax = plt.subplots()
        ax.plot([0, 1])
        plots.save(figure, tmp_path, name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_loss_curves_show_the_constants():
    history = pd.DataFrame({"epoch": [0, 1], "train_loss": [0.5, 0.4], "validation_loss": [0.5, 0.6]})
    figure = plots.loss_curves({"model": history}, train_constant=0.45, validation_constant=0.55, title="t")
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert list(lines["model: training"]) == [0.5, 0.4] and list(lines["model: validation"]) == [0.5, 0.6]
    assert set(lines["base-rate constant, training (0.450)"]) == {0.45}
    assert set(lines["base-rate constant, validation (0.550)"]) == {0.55}


def test_names_stand_where_their_parts_are_and_do_not_overlap():
    """Two parts at one height on the left, one pair: the pair goes to the emptier side; no name covers another."""
    ax = plt.figure().add_subplot()
    ax.imshow(np.zeros((100, 100)))
    spots = {"a": [[20, 50]], "b": [[25, 51]], "pair": [[10, 30], [90, 30]]}
    plots.label_parts(ax, {name: np.array(spot, float) for name, spot in spots.items()})
    names = {text.get_text(): text for text in ax.texts if text.get_text()}
    assert {name: tuple(text.xy) for name, text in names.items()} == {"a": (20, 50), "b": (25, 51), "pair": (90, 30)}
    pairs = {str(row): np.array([[15.0, row], [85.0, row]]) for row in (10, 40, 70, 90)}
    other = plt.figure().add_subplot()
    other.imshow(np.zeros((100, 100)))
    plots.label_parts(other, pairs)
    ends = [(text.xyann[0] > 50, text.xy[0] > 50) for text in other.texts if text.get_text()]
    assert all(name_side == part_side for name_side, part_side in ends) and sum(side for side, _ in ends) == 2
    assert names["a"].xyann[0] < 0 and names["b"].xyann[0] < 0 and names["pair"].xyann[0] > 99
    assert names["b"].xyann[1] - names["a"].xyann[1] > 9, "the higher part has the higher name"


def test_a_surface_has_its_sides_and_a_true_bar():
    mask = np.zeros((20, 20, 30), np.uint8)
    mask[5:15, 5:15, 3:27] = 1
    affine = np.diag([-1.0, -1.0, -1.0, 1.0])[[2, 1, 0, 3]]
    view = surfaces.look(surfaces.soften(mask, affine), 0, 0, pixel_mm=0.5)
    ax = plt.figure().add_subplot()
    plots.show_surface(ax, view, "block")
    letters = {text.get_text(): text.get_position() for text in ax.texts}
    assert letters["R"][0] < letters["L"][0] and letters["H"][1] < letters["F"][1]
    (bar,) = ax.lines
    assert np.ptp(bar.get_xdata()) * view.pixel_mm == pytest.approx(20.0)
    assert np.ptp(np.nonzero(view.labels)[1]) * view.pixel_mm == pytest.approx(24.0, abs=1.0)


def test_pictures_keep_their_colours_in_few_bytes(tmp_path):
    """A large grey picture must not push the few pixels of each level's colour out of the palette."""
    figure, axes = plt.subplots(1, 2)
    axes[0].imshow(np.random.default_rng(0).integers(0, 255, (200, 200)), cmap="gray")
    axes[1].bar(range(7), np.full(7, 0.2), color=list(plots.LEVEL_COLOURS.values()))
    axes[1].set_ylim(0, 10)
    plots.save(figure, tmp_path, "a")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        found = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    for colour in plots.LEVEL_COLOURS.values():
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(found - wanted).max(axis=1).min() < 20, colour
    greys = found[(np.ptp(found, axis=1) == 0)]
    assert len(np.unique(greys)) > 12


def test_no_bone_of_a_label_map_changes_its_colour(tmp_path):
    """Bone and shaded surfaces give thousands of colours: each pixel must stay near the one that was drawn."""
    plan = phantom.draw_plan(2022, 3, size=128, difficulty="easy", levels=("C2", "C5"))
    figure = galleries.overview(phantom.render(plan))
    plots.save(figure, tmp_path, "few")
    figure.savefig(tmp_path / "all.png", dpi=plt.rcParams["savefig.dpi"], bbox_inches="tight")
    few, drawn = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int) for name in ("few", "all")
    )
    coloured = np.ptp(drawn, axis=-1) >= 8
    assert coloured.sum() > 10_000
    assert np.abs(few - drawn)[coloured].max() < 30, "a green vertebra turned blue at a difference of 47"
