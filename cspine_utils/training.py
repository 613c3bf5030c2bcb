"""Fit a model to studies so that the same seed gives the same numbers, and a killed run goes on where it was.

A dataset here is a torch Dataset of studies: `dataset[i]` is `(x, y)` with x float `(f, c, h, w)` and y float `(8,)`
in the order of `anatomy.TARGETS`. The loss is binary cross-entropy on logits, mean over studies and targets: the
plain BCE of `metrics`. With another `objective` the same loop trains other models: for `objectives.SEGMENTATION`,
x is a patch of CT and y its labels.

All randomness of epoch k (order of studies, dropout, whatever a dataset draws from torch) is seeded by base seed + k.
So epoch k does not depend on how the process came there, and resuming needs no saved generator states.

What a run leaves in its folder:

* `history.csv`: one row an epoch, from epoch 0 = before training
* `history.json`: the same with the settings and the best epoch
* `best.pt`: weights at the lowest validation loss of the trained epochs (the earliest, if several). Epoch 0 does not
  compete: it may *be* the constant, and a table that shows it as the model's loss would show no training at all
* `last.pt`: weights, optimizer and history after the latest finished epoch

`checkpoints` writes and reads them.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from cspine_utils.checkpoints import Run, describe
from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.objectives import CLASSIFICATION, Objective


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What `fit` found.

    Attributes
    ----------
    history : one row an epoch: epoch, train_loss, validation_loss, learning_rate, seconds. Row 0 is the untrained
        model (its train_loss in eval mode). Later, train_loss is the mean over studies **while** the weights moved and
        dropout was on, so it lags behind the validation loss, which is measured in eval mode after the epoch.
    best_epoch, best_validation_loss : the trained epoch with the lowest validation loss. If row 0 of the history is
        lower still, training helped nothing. (0 only where `epochs` is 0.)
    best_train_loss : train loss in eval mode with the best epoch's weights: compare this with best_validation_loss
    seconds : all epochs together, those before an interruption included
    resumed_from : the last epoch that was found finished on disk, or None for a fresh start
    out : the run's folder
    """

    history: pd.DataFrame
    best_epoch: int
    best_validation_loss: float
    best_train_loss: float
    seconds: float
    resumed_from: int | None
    out: Path


def fit(
    model: nn.Module,
    train: Dataset,
    validation: Dataset,
    *,
    out: str | os.PathLike,
    epochs: int,
    batch_size: int = 2,
    learning_rate: float = 3e-4,
    gamma: float = 1.0,
    weight_decay: float = 1e-4,
    clip: float | None = 1.0,
    generator: torch.Generator,
    base_rates=None,
    objective: Objective = CLASSIFICATION,
    progress: bool = True,
    patience: int | None = None,
    data_settings: Mapping | None = None,
) -> TrainingResult:
    """Train with AdamW and leave the model, in eval mode, with the weights of its **best** epoch.

    Parameters
    ----------
    model : `(b, f, c, h, w)` -> logits `(b, 8)`; stays on its device
    train, validation : datasets of studies, see above; no study may be in both
    out : the run's folder, made if need be. If it holds an unfinished run of the same settings, that run goes on
        and ends with the same weights and history as an undisturbed one; a finished run is returned as it is.
    epochs : passes over `train`; 0 only measures the untrained model
    batch_size : studies a step; the last batch of an epoch may be smaller
    learning_rate, gamma : epoch k = 1, 2, ... uses learning_rate * gamma ** (k - 1). The published setting this course
        starts from, "Batch 2, LR 3e-4, S 0.1", does not say what S is; we read it as this factor, an assumption.
    weight_decay, clip : AdamW's decay; largest gradient norm, None for no limit
    generator : one number is drawn from it as the base seed. To resume, pass a generator in the same state again.
    base_rates : `(8,)`, given to `model.set_base_rates` before epoch 0
    objective : what the model is trained for; `base_rates` belong to classification alone
    progress : show a plain text bar on stdout
    patience : stop after so many epochs without a new lowest validation loss; None never stops early
    data_settings : whatever else must be equal for a run to be resumed (say, the fold), as JSON values. Of the data,
        lengths are compared and, where a dataset has one, its `fingerprint`; initial weights are not compared.

    Raises
    ------
    TrainingError : empty dataset, wrong or unusable targets, a loss that is not finite, a folder with another run
    ParameterError : a setting of the wrong type or out of range
    """
    if not isinstance(generator, torch.Generator):
        raise ParameterError(
            "fit(generator)",
            found=type(generator).__name__,
            expected="a torch.Generator",
            remedy="pass torch.Generator().manual_seed(seed)",
        )
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "gamma": gamma,
        "weight_decay": weight_decay,
        "clip": clip,
        "patience": patience,
        "seed": int(torch.randint(2**53, (), generator=generator)),  # 53 bits survive JSON in every reader
        "objective": objective.name,
        "base_rates": None if base_rates is None else [float(rate) for rate in base_rates],
        "train_studies": _count(train, "fit(train)"),
        "validation_studies": _count(validation, "fit(validation)"),
        "train_fingerprint": getattr(train, "fingerprint", None),
        "validation_fingerprint": getattr(validation, "fingerprint", None),
        "model": describe(model),
        "data": dict(data_settings or {}),
    }
    _check_settings(settings)
    run = Run(Path(out), settings, model)
    resumed_from = run.resume()
    # Forked: the caller's own random numbers go on as if fit had not been called.
    with torch.random.fork_rng(devices=_cuda_devices(model)), _bar(run, progress) as bar:
        while (epoch := run.next_epoch()) is not None:
            start = time.perf_counter()
            torch.manual_seed(run.settings["seed"] + epoch)
            rate = learning_rate * gamma ** (epoch - 1) if epoch else 0.0
            if epoch:
                train_loss = _train_epoch(model, run.optimizer, train, objective, batch_size, rate, clip, epoch, bar)
            else:
                if base_rates is not None:
                    _set_base_rates(model, base_rates)
                train_loss = mean_loss(model, train, batch_size, objective)
            validation_loss = mean_loss(model, validation, batch_size, objective)
            bar.set_postfix(epoch=epoch, validation=f"{validation_loss:.4f}")
            run.record(
                epoch=epoch,
                train_loss=train_loss,
                validation_loss=validation_loss,
                learning_rate=rate,
                seconds=time.perf_counter() - start,
            )
        run.go_to_best(lambda: mean_loss(model, train, batch_size, objective))
    return TrainingResult(
        history=pd.DataFrame(run.history),
        best_epoch=run.best["epoch"],
        best_validation_loss=run.best["validation_loss"],
        best_train_loss=run.best_train_loss,
        seconds=sum(row["seconds"] for row in run.history),
        resumed_from=resumed_from,
        out=run.out,
    )


def predict(model: nn.Module, dataset: Dataset, batch_size: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of every study, in the dataset's order: `(y, p)`, each float64 `(n, 8)`.

    The model is run in eval mode and left in the mode it was in.
    """
    y, logits = zip(*_answers(model, dataset, batch_size, CLASSIFICATION), strict=True)
    return torch.cat(y).numpy(), torch.sigmoid(torch.cat(logits)).numpy()


def mean_loss(model: nn.Module, dataset: Dataset, batch_size: int = 2, objective: Objective = CLASSIFICATION) -> float:
    """The objective's loss in eval mode, mean over the dataset; for classification binary cross-entropy, in nats."""
    losses = ((float(objective.loss(z, y)), len(y)) for y, z in _answers(model, dataset, batch_size, objective))
    return sum(loss * count for loss, count in losses) / len(dataset)


def _train_epoch(model, optimizer, train, objective, batch_size, rate, clip, epoch, bar) -> float:
    """One pass over the studies in random order; returns the mean of the losses met on the way."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    model.train()
    total = 0.0
    order = torch.randperm(len(train)).tolist()
    for where, x, y in _batches(train, order, batch_size, _device(model), f"epoch {epoch}", objective):
        loss = objective.loss(_logits(model, x, y, where, objective), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        total += float(loss.detach()) * len(y)
        bar.update()
    return total / len(train)


@torch.no_grad()
def _answers(model: nn.Module, dataset: Dataset, batch_size: int, objective: Objective) -> Iterator[tuple]:
    """Batch by batch, in eval mode: (targets, logits in float64), on the CPU."""
    _count(dataset, "predict(dataset)")
    was_training = model.training
    model.eval()
    for where, x, y in _batches(dataset, range(len(dataset)), batch_size, _device(model), "evaluation", objective):
        logits = _logits(model, x, y, where, objective)
        yield (y.double() if y.is_floating_point() else y).cpu(), logits.double().cpu()
    model.train(was_training)


def _batches(
    dataset: Dataset, order, batch_size: int, device, where: str, objective: Objective
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Studies in the given order: a name for errors, x `(b, f, c, h, w)`, y `(b, 8)` or what the objective takes.

    No DataLoader: a memory-mapped study is read far faster than a model steps over it, worker processes would make
    a dataset's random numbers depend on how many there are, and here an error can name the studies of its batch.
    """
    steps = math.ceil(len(order) / batch_size)
    for step in range(steps):
        indices = list(order[step * batch_size : (step + 1) * batch_size])
        pairs = [dataset[i] for i in indices]
        x = torch.stack([torch.as_tensor(x, dtype=torch.float32) for x, _ in pairs])
        y = torch.stack([objective.target(y, i) for i, (_, y) in zip(indices, pairs, strict=True)])
        yield f"{where}, batch {step + 1} of {steps} (dataset items {indices})", x.to(device), y.to(device)


def _logits(model: nn.Module, x: Tensor, y: Tensor, where: str, objective: Objective) -> Tensor:
    """The model's logits, if they are finite numbers of the wanted shape. Finite logits make a finite loss."""
    logits = model(x)
    wanted = objective.logits_shape(y)
    if tuple(logits.shape) != wanted:
        raise TrainingError(
            where,
            found=f"logits of shape {tuple(logits.shape)}",
            expected=f"{wanted}, as the targets have it",
            remedy=objective.remedy,
        )
    if not torch.isfinite(logits).all():
        blame_input = not torch.isfinite(x).all()
        raise TrainingError(
            where,
            found="a loss that is not finite, from "
            + ("NaN or infinity in the input" if blame_input else "finite input"),
            expected="a finite loss",
            remedy="look at these studies in the store and prepare them anew"
            if blame_input
            else "lower the learning rate or clip, and check the scale of the input",
        )
    return logits


def _set_base_rates(model: nn.Module, rates) -> None:
    if not hasattr(model, "set_base_rates"):
        raise TrainingError(
            "fit(base_rates)",
            found=f"{type(model).__name__} without a method set_base_rates",
            expected="a model whose untrained answer can be set",
            remedy="leave base_rates out, or add the method (see ViT3D.set_base_rates)",
        )
    model.set_base_rates(rates)


def _count(dataset: Dataset, name: str) -> int:
    if len(dataset) == 0:
        raise TrainingError(
            name, found="no studies", expected="at least one", remedy="check the split: is a fold empty?"
        )
    return len(dataset)


def _check_settings(settings: dict) -> None:
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
        ("learning_rate", number, "a number above 0 (in YAML write 1.0e-4: 1e-4 is read as text)"),
        ("gamma", number, "a number above 0"),
        ("weight_decay", lambda v: number(v, zero=True), "a number, 0 or more"),
        ("clip", lambda v: v is None or number(v), "a number above 0, or None"),
        ("patience", lambda v: v is None or whole(v, 1), "an integer, 1 or more, or None"),
    ):
        if not good(settings[name]):
            found = repr(settings[name])
            raise ParameterError(f"fit({name})", found=found, expected=expected, remedy=f"pass such a {name}")


def _bar(run: Run, progress: bool) -> tqdm:
    """A plain bar over all training steps. tqdm.auto would save a widget in notebooks, which GitHub cannot show."""
    steps = math.ceil(run.settings["train_studies"] / run.settings["batch_size"])
    total, done = run.settings["epochs"] * steps, max(0, len(run.history) - 1) * steps
    return tqdm(total=total, initial=done, file=sys.stdout, disable=not progress, unit="step", mininterval=1.0)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return [_device(model)] if _device(model).type == "cuda" else []
