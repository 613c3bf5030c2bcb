"""Fit a model to studies so that the same seed gives the same numbers, and a killed run goes on where it was.

A dataset here is a torch Dataset of studies: `dataset[i]` is `(x, y)` with x float `(f, c, h, w)` and y float `(8,)`
in the order of `anatomy.TARGETS`. The loss is binary cross-entropy on logits, mean over studies and targets: the
plain BCE of `metrics`. With another `objective` the same loop trains other models: for `objectives.SEGMENTATION`,
x is a patch of CT and y its labels.

All randomness of epoch k (order of studies, augmentation, dropout, whatever a dataset draws from torch) is seeded by
the base seed and k. So epoch k does not depend on how the process came there, and resuming needs no saved generator
states. The learning rate depends on the number of the step alone.

What a run leaves in its folder:

* `history.csv`: one row an epoch, from epoch 0 = before training
* `history.json`: the same with the settings, the notes and the best epoch
* `best.pt`: weights at the lowest validation loss of the trained epochs (the earliest, if several). Epoch 0 does not
  compete: it may *be* the constant, and a table that shows it as the model's loss would show no training at all
* `last.pt`: weights, optimizer and history after the latest finished epoch

`checkpoints` writes and reads them. Here `fitting` is the frame of a run and `loop` its epochs, `batches` what goes
into them, `settings` what can be asked for, `trouble` what can go wrong in a batch, `evaluation` the look at a
dataset without learning, `processes` devices, precision and several processes, by lightning-fabric.
"""

from cspine_utils.checkpoints import Loaded, load_matching
from cspine_utils.training.evaluation import mean_loss, predict
from cspine_utils.training.fitting import TrainingResult, fit
from cspine_utils.training.settings import fast_precision

__all__ = ["Loaded", "TrainingResult", "fast_precision", "fit", "load_matching", "mean_loss", "predict"]
