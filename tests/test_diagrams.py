"""Drawings show what ran: shapes and counts equal those of the running model, and change with it."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from cspine_utils import diagrams, models
from cspine_utils.errors import ModelError

SMALL = {"frames": 9, "channels": 6, "size": (32, 48)}


def texts(figure) -> str:
    return " | ".join(text.get_text() for text in figure.axes[0].texts)


def test_shapes_are_those_of_the_running_model():
    stages = {s.attribute: s for s in diagrams.trace(models.create("cnn_lstm", dim=24, **SMALL))}
    assert [s.shapes[0] for s in stages.values()] == [(9, 1280), (9, 24), (9, 24), (48,), (7,), (1,)]
    assert stages["level_head"].parameters == 48 * 7 + 7
    assert stages["level_head"].column == stages["patient_head"].column == 4, "side by side"


@pytest.mark.parametrize("name", models.NAMES)
def test_parts_hold_all_parameters_but_positions(name):
    model = models.create(name)
    drawn = sum(s.parameters for s in diagrams.trace(model))
    position = model.position.numel() if hasattr(model, "position") else 0
    assert drawn + position == sum(p.numel() for p in model.parameters())


def test_a_drawing_follows_the_model():
    one, two = (diagrams.draw(models.create("slice_cnn", **{**SMALL, "frames": n}), title="t") for n in (9, 11))
    assert "9 x 6 x 32 x 48" in texts(one) and "9 x 8" in texts(one)
    assert "11 x 6 x 32 x 48" in texts(two) and "11 x 8" in texts(two)
    plt.close("all")


def test_a_block_is_drawn_with_its_two_paths_around():
    block = models.create("vit3d").blocks[0]
    figure = diagrams.draw(block, torch.zeros(1, 112, 96), title="block")
    assert texts(figure).count("+") >= 2 and len(figure.axes[0].lines) == 2
    plt.close("all")


def test_segmenters_are_drawn_with_encoder_and_decoder_one_after_the_other():
    columns = [s.column for s in diagrams.trace(models.create_segmenter("unet2d", patch=(32, 32)))]
    assert columns == [0, 1, 2]


def test_tracing_leaves_the_model_as_it_was():
    model = models.create("slice_cnn", **SMALL).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    diagrams.trace(model)
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_part_that_never_runs_is_refused():
    class Model(nn.Module):
        STAGES = {"used": "a", "spare": "b"}
        input_shape = (3,)

        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ModelError, match="did not run: spare"):
        diagrams.trace(Model())
