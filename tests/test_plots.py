import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from matplotlib.colors import to_rgb

from cspine_utils import phantom, plots
from cspine_utils.errors import ParameterError
from cspine_utils.volume import Volume


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def hue(colour):
    """The direction of a colour, which shading leaves alone."""
    colour = np.asarray(colour, float)
    return colour / np.linalg.norm(colour)


@pytest.mark.parametrize(
    ("view", "column", "level"),
    [("front", 2, "C1"), ("back", 7, "C2"), ("right", 1, "C3"), ("left", 8, "C4")],
)
def test_each_view_shows_the_side_that_faces_it(view, column, level):
    """Four marks on the four sides of a block; each is seen from one side only, at its place."""
    mask = np.zeros((9, 10, 10), np.uint8)
    mask[2:7, 1:9, 1:9] = 7
    mask[4, 0, 2] = 1  # in front, toward the patient's right: left in the picture from the front
    mask[4, 9, 2] = 2  # behind, toward the right: right in the picture from the back
    mask[4, 8, 0] = 3  # on the right side, behind: left in the picture from the right
    mask[4, 8, 9] = 4  # on the left side, behind: right in the picture from the left
    mask[4, 8, 8] = 7
    picture = plots.surface(mask, (1.0, 1.0, 1.0), view)
    assert np.allclose(hue(picture[4, column]), hue(to_rgb(plots.LEVEL_COLOURS[level])), atol=0.02)
    assert (picture[0] == 1).all(), "where nothing is, the picture is white"


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


def test_the_gallery_shows_the_plane_with_the_fracture():
    plan = phantom.draw_plan(5, 0, size=64, difficulty="easy", levels=("C2",))
    fractured, intact = phantom.render(plan), phantom.render(plan, fractured=False)
    figure = plots.twin_gallery({"C2": (fractured, intact, "sagittal")})
    images = [np.asarray(ax.get_images()[0].get_array()) for ax in figure.axes]
    assert np.array_equal(images[2], images[0].astype(float) - images[1])
    assert np.abs(images[2]).max() > 300
    most = fractured.altered.sum(axis=(0, 1)).argmax()
    assert np.array_equal(images[0], fractured.hu[:, :, most])
    plots.overview(fractured)
    plots.three_planes(Volume(fractured.hu, fractured.affine), fractured.labels)
