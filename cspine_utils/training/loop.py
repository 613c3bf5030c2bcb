"""The epochs of a run: steps through the training studies, a look at the validation studies."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from cspine_utils.checkpoints import Run
from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.objectives import Objective
from cspine_utils.training import processes, settings, trouble
from cspine_utils.training.batches import Batch, batches, epoch_order, stream_seed
from cspine_utils.training.evaluation import Seen, look

#: Uses of random numbers in an epoch that have a stream of their own, see `batches.stream_seed`.
AUGMENT, ORDER, RANK = range(3)
#: Columns of the history that do not come from the validation studies.
OTHER_COLUMNS = (
    "epoch", "train_loss", "learning_rate", "gradient_norm", "seconds", "memory_mb", "cuda_memory_mb",
)  # fmt: skip


class Loop:
    """The parts of a run that every epoch needs."""

    def __init__(self, model, run: Run, objective: Objective, fabric, augment, order):
        self.model, self.run, self.objective, self.fabric = model, run, objective, fabric
        self.augment, self.order = augment, order
        self.seed, self.batch_size = run.settings["seed"], run.settings["batch_size"]
        self.wrapped, self.optimizer = fabric.setup(processes.Answers(model, objective), run.optimizer)
        self.device = fabric.device
        self.cuda = [self.device] if self.device.type == "cuda" else []

    def answers(self, x: Tensor) -> Tensor:
        """Logits of the objective, in the run's precision."""
        return self.wrapped(processes.AsItIs(x))

    def untrained(self, train: Dataset, base_rates) -> dict:
        """Epoch 0: a look at the training studies, and a note for what they cannot teach."""
        torch.manual_seed(self.seed)
        if base_rates is not None:
            _set_base_rates(self.model, base_rates)
        seen = self.look(self.sample(train))
        if seen.y is not None:
            self.run.notes = trouble.empty_classes(seen.y, "training studies")
        return {"train_loss": seen.loss, "learning_rate": 0.0, "gradient_norm": 0.0}

    def sample(self, train: Dataset) -> Dataset:
        """The training studies whose loss is measured before the first epoch and at the best: all, or evenly picked."""
        wanted = self.run.settings["train_sample"]
        if wanted is None or wanted >= len(train):
            return train
        return Subset(train, [i * len(train) // wanted for i in range(wanted)])

    def epoch(self, train: Dataset, epoch: int, bar: tqdm) -> dict:
        """One pass over the studies; the train loss is the mean of the losses met on the way."""
        wanted, rank, world = self.run.settings, self.fabric.global_rank, self.fabric.world_size
        torch.manual_seed(self.seed + epoch)
        order = epoch_order(train, self.order, stream_seed(self.seed, epoch, ORDER))
        if world > 1:  # the order was one for all; dropout must not be the same in all
            torch.manual_seed(stream_seed(self.seed, epoch, RANK, rank))
        generator = torch.Generator(self.device).manual_seed(stream_seed(self.seed, epoch, AUGMENT, rank))
        self.wrapped.train()
        self.optimizer.zero_grad(set_to_none=True)  # an interrupted run may have left half a step's gradient
        total, step, largest = 0.0, 0, 0.0
        for batch in batches(
            train, order, self.batch_size, self.objective, self.device, during=f"epoch {epoch}",
            accumulate=wanted["accumulate"], rank=rank, world=world,
            augment=self.augment, generator=generator,
        ):  # fmt: skip
            total += self._forward_and_back(batch) * batch.count
            if not batch.ends_step:
                continue
            rate = settings.rate(wanted, epoch, step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            limit = math.inf if wanted["clip"] is None else wanted["clip"]
            norm = nn.utils.clip_grad_norm_(self.wrapped.parameters(), limit)
            largest = max(largest, trouble.check_gradient(norm, wanted["clip"], batch.where))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            step += 1
            bar.update()
        total = sum(processes.gather(self.fabric, total))
        return {"train_loss": total / len(train), "learning_rate": rate, "gradient_norm": largest}

    def _forward_and_back(self, batch: Batch) -> float:
        """Add a batch's share of the step's gradient; returns its loss, mean over its studies."""
        smoothing = self.run.settings["label_smoothing"]
        # Gradients are averaged over processes once, with the last pass of a step.
        waiting = nullcontext() if batch.ends_step else self.fabric.no_backward_sync(self.wrapped)
        with trouble.out_of_memory_told(batch.where, self.batch_size), waiting:
            logits = trouble.check_logits(self.answers(batch.x), batch.x, batch.y, batch.where, self.objective)
            loss = self.objective.loss(logits, batch.y)
            met = trouble.check_loss(loss, batch.x, batch.where)
            if smoothing:
                loss = self.objective.loss(logits, self.objective.smooth(batch.y, smoothing))
            # A step's loss is the sum over its studies by their number, however they fall into passes and processes:
            # this pass weighs in by its studies, and the mean over processes is turned into a sum.
            share = batch.count * self.fabric.world_size / batch.step_studies
            self.fabric.backward(loss * share)
        return met

    def look(self, dataset: Dataset) -> Seen:
        """The dataset in eval mode, each process seeing its share."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        return look(
            self.model, dataset, self.batch_size, self.objective, answers=self.answers, rank=rank, world=world,
            gather=lambda part: processes.gather(self.fabric, part),
        )  # fmt: skip

    def judge(self, validation: Dataset, measure: Callable | None) -> dict:
        """The columns of the history that come from the validation studies."""
        seen = self.look(validation)
        row = {"validation_loss": seen.loss} | {f"validation_{name}": loss for name, loss in seen.report.items()}
        if measure is not None:
            measured = {name: float(value) for name, value in measure(seen.y, seen.logits).items()}
            _refuse_columns(set(measured) & {*row, *OTHER_COLUMNS}, "measure")
            row |= measured
        best_by = self.run.settings["best_by"]
        _refuse_columns(set() if best_by in row else {best_by}, "best_by", row)
        return row


def _refuse_columns(columns: set[str], argument: str, there=()) -> None:
    if columns:
        raise ParameterError(
            f"fit({argument})",
            found=", ".join(sorted(columns)),
            expected=f"one of {', '.join(there)}" if there else "names that the history does not have",
            remedy="choose one of these columns" if there else "give the measure another name",
        )


def _set_base_rates(model: nn.Module, rates) -> None:
    if not hasattr(model, "set_base_rates"):
        raise TrainingError(
            "fit(base_rates)",
            found=f"{type(model).__name__} without a method set_base_rates",
            expected="a model whose untrained answer can be set",
            remedy="leave base_rates out, or add the method (see ViT3D.set_base_rates)",
        )
    model.set_base_rates(rates)
