"""A training run from its settings to its result."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from cspine_utils.checkpoints import Run, describe
from cspine_utils.errors import ParameterError
from cspine_utils.objectives import CLASSIFICATION, Objective
from cspine_utils.training import processes
from cspine_utils.training import settings as asked
from cspine_utils.training.evaluation import count
from cspine_utils.training.loop import Loop


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What `fit` found.

    Attributes
    ----------
    history : one row an epoch. Row 0 is the untrained model (its train_loss in eval mode). Columns:

        * epoch
        * train_loss: mean over studies **while** the weights moved, dropout was on and images were augmented, so it
          lags behind the validation loss, which is measured in eval mode after the epoch; never label-smoothed
        * validation_loss, and validation_<name> for what the objective reports beside it
        * what `measure` returned
        * learning_rate: of the epoch's last step
        * gradient_norm: the largest of the epoch, before clipping
        * seconds, memory_mb (most that the process has held so far), and on a GPU cuda_memory_mb (most tensors held in
          this epoch)
    best_epoch, best_validation_loss : the trained epoch with the lowest `best_by`, and its validation loss. If row 0
        of the history is lower still, training helped nothing. (0 only where `epochs` is 0.)
    best_train_loss : train loss in eval mode with the best epoch's weights: compare this with best_validation_loss
    seconds : all epochs together, those before an interruption included
    resumed_from : the last epoch that was found finished on disk, or None for a fresh start
    notes : sentences on what the data cannot teach, such as a target without a positive study
    out : the run's folder
    """

    history: pd.DataFrame
    best_epoch: int
    best_validation_loss: float
    best_train_loss: float
    seconds: float
    resumed_from: int | None
    notes: tuple[str, ...]
    out: Path


def fit(
    model: nn.Module,
    train: Dataset,
    validation: Dataset,
    *,
    out: str | os.PathLike,
    epochs: int,
    batch_size: int = 2,
    accumulate: int = 1,
    learning_rate: float = 3e-4,
    gamma: float = 1.0,
    schedule: str = "gamma",
    warmup_steps: int = 0,
    weight_decay: float = 1e-4,
    clip: float | None = 1.0,
    label_smoothing: float = 0.0,
    patience: int | None = None,
    train_sample: int | None = None,
    best_by: str = "validation_loss",
    precision: str = "32-true",
    checkpoint_activations: bool = False,
    generator: torch.Generator,
    base_rates=None,
    objective: Objective = CLASSIFICATION,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    order: Callable[[torch.Generator], list[int]] | None = None,
    measure: Callable[[np.ndarray, np.ndarray], Mapping[str, float]] | None = None,
    fabric=None,
    progress: bool = True,
    data_settings: Mapping | None = None,
) -> TrainingResult:
    """Train with AdamW and leave the model, in eval mode, with the weights of its **best** epoch.

    Parameters
    ----------
    model : `(b, f, c, h, w)` -> logits `(b, 8)`, or what the objective asks of it; stays on its device
    train, validation : datasets of studies, see `training`; no study may be in both. A dataset with a method
        `epoch_order(generator) -> list` of as many indices as it has items says so in which order an epoch sees it
        (a study and its twin side by side, say); else the order is random.
    out : the run's folder, made if need be. If it holds an unfinished run of the same settings, that run goes on
        and ends with the same weights and history as an undisturbed one; a finished run is returned as it is.
    epochs : passes over `train`; 0 only measures the untrained model
    batch_size, accumulate : studies a pass through the network, and passes an optimizer step; the last of an epoch
        may be smaller. Several processes share the `batch_size` studies of a pass.
    learning_rate, gamma, schedule, warmup_steps : epoch k = 1, 2, ... uses learning_rate * gamma ** (k - 1), times a
        rise over the first steps, times a fall over the rest if `schedule` is "linear" or "cosine" (see
        `settings.rate`). The published setting this course starts from, "Batch 2, LR 3e-4, S 0.1", does not say what S
        is; we read it as gamma, an assumption.
    weight_decay, clip : AdamW's decay; largest gradient norm, None for no limit
    label_smoothing : targets of the training studies drawn towards 1/2 by this share
    patience : stop after so many epochs without a new lowest `best_by`; None never stops early
    train_sample : measure the train loss in eval mode (row 0, and `best_train_loss`) on so many studies, evenly picked;
        None takes all, which for a large set costs as much as a third of an epoch, twice
    best_by : the history's column whose lowest value makes the best epoch
    precision : "32-true", or "bf16-mixed" for bfloat16 where autocast allows it (weights and losses stay float32), or
        "auto" for the faster one of this device, see `settings.fast_precision`; a run must resume with the same one
    checkpoint_activations : sets the model's attribute of that name: less memory for more time. Models without it
        are refused.
    generator : one number is drawn from it as the base seed. To resume, pass a generator in the same state again.
    base_rates : `(8,)`, given to `model.set_base_rates` before epoch 0
    objective : what the model is trained for
    augment : (x of a training batch on its device, generator on that device) -> x
    order : takes the place of the dataset's `epoch_order`
    measure : (y, logits), both float64 `(n, 8)`, of all validation studies -> further columns of the history
    fabric : a launched `lightning_fabric.Fabric`, for other devices or processes. Without one: the model's device, and
        torchrun's processes under torchrun. All processes call `fit` alike, and the first one writes.
        Runs with one and with several processes and the same batch_size agree up to rounding, as long as nothing
        draws random numbers but the order, and the loss of a batch is the mean of its studies' losses (Dice is not).
    progress : show a plain text bar on stdout
    data_settings : whatever else must be equal for a run to be resumed (say, the fold), as JSON values. Of the data,
        lengths are compared and, where a dataset has one, its `fingerprint`; initial weights are not compared.

    Raises
    ------
    TrainingError : empty dataset, a study that cannot be read, wrong or unusable targets, a loss or gradient that is
        not finite, no memory left, a folder with another run, processes that read it differently
    ParameterError : a setting of the wrong type or out of range
    """
    if not isinstance(generator, torch.Generator):
        raise ParameterError(
            "fit(generator)",
            found=type(generator).__name__,
            expected="a torch.Generator",
            remedy="pass torch.Generator().manual_seed(seed)",
        )
    if precision == "auto" and fabric is not None:
        precision = fabric.strategy.precision.precision
    elif precision == "auto":
        precision = asked.fast_precision(next(model.parameters()).device)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "gamma": gamma,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
        "clip": clip,
        "label_smoothing": label_smoothing,
        "patience": patience,
        "train_sample": train_sample,
        "best_by": best_by,
        "precision": precision,
        "checkpoint_activations": checkpoint_activations,
        "seed": int(torch.randint(2**53, (), generator=generator)),  # 53 bits survive JSON in every reader
        "objective": objective.name,
        "base_rates": None if base_rates is None else [float(rate) for rate in base_rates],
        "augment": asked.name_of(augment),
        "order": asked.name_of(order),
        "measure": asked.name_of(measure),
        "train_studies": count(train, "fit(train)"),
        "validation_studies": count(validation, "fit(validation)"),
        "train_fingerprint": getattr(train, "fingerprint", None),
        "validation_fingerprint": getattr(validation, "fingerprint", None),
        "model": describe(model),
        "data": dict(data_settings or {}),
    }
    asked.check(settings, objective)
    if checkpoint_activations:
        _set_checkpointing(model)
    fabric = processes.fabric_for(model, precision, fabric)
    fabric.to_device(model)  # before the optimizer: its state is loaded to where the weights are
    run = Run(Path(out), settings | {"processes": fabric.world_size}, model, writes=fabric.is_global_zero)
    fabric.barrier()  # nobody still writes what an interruption in this very program left behind
    resumed_from = run.resume()
    processes.check_alike(fabric, resumed_from, run.out)  # and all have read it before the first one writes
    loop = Loop(model, run, objective, fabric, augment, order)
    # Forked: the caller's own random numbers go on as if fit had not been called.
    with torch.random.fork_rng(devices=loop.cuda), _bar(run, progress and fabric.is_global_zero) as bar:
        while (epoch := run.next_epoch()) is not None:
            start = time.perf_counter()
            learned = loop.epoch(train, epoch, bar) if epoch else loop.untrained(train, base_rates)
            judged = loop.judge(validation, measure)
            bar.set_postfix(epoch=epoch, validation=f"{judged['validation_loss']:.4f}")
            costs = {"seconds": time.perf_counter() - start} | _memory(loop.cuda)
            run.record(**{"epoch": epoch, "train_loss": learned["train_loss"]} | judged | learned | costs)
        fabric.barrier()  # best.pt is there
        run.go_to_best(lambda: loop.look(loop.sample(train)).loss)
    fabric.barrier()  # nobody leaves before the files are whole
    return TrainingResult(
        history=pd.DataFrame(run.history),
        best_epoch=run.best["epoch"],
        best_validation_loss=run.best["validation_loss"],
        best_train_loss=run.best_train_loss,
        seconds=sum(row["seconds"] for row in run.history),
        resumed_from=resumed_from,
        notes=tuple(run.notes),
        out=run.out,
    )


def _set_checkpointing(model: nn.Module) -> None:
    if not hasattr(model, "checkpoint_activations"):
        raise ParameterError(
            "fit(checkpoint_activations)",
            found=f"True for {type(model).__name__}, which has no such attribute",
            expected="a model that can forget its activations and compute them again",
            remedy="leave it out and lower batch_size instead, with a larger accumulate",
        )
    model.checkpoint_activations = True


def _bar(run: Run, progress: bool) -> tqdm:
    """A plain bar over all training steps. tqdm.auto would save a widget in notebooks, which GitHub cannot show."""
    steps = asked.steps_per_epoch(run.settings)
    total, done = run.settings["epochs"] * steps, max(0, len(run.history) - 1) * steps
    return tqdm(total=total, initial=done, file=sys.stdout, disable=not progress, unit="step", mininterval=1.0)


def _memory(cuda: list[torch.device]) -> dict[str, float]:
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kB elsewhere
    memory = {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if cuda:
        memory["cuda_memory_mb"] = torch.cuda.max_memory_allocated(cuda[0]) / 2**20
        torch.cuda.reset_peak_memory_stats(cuda[0])
    return memory
