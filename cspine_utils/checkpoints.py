"""A training run on disk: settings, history and weights, so that a killed run goes on where it was.

Every file is written under a temporary name and then renamed: a kill leaves the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from cspine_utils import files
from cspine_utils.errors import TrainingError


class Run:
    """One run in memory and on disk: model, optimizer, history, settings, notes.

    With `writes=False` it reads but leaves nothing on disk: of several processes that train one model, one writes.
    """

    def __init__(self, out: Path, settings: dict, model: nn.Module, *, writes: bool = True):
        self.out, self.model, self.writes = out, model, writes
        self.settings = json.loads(json.dumps(settings))  # as they come back from a file: tuples as lists
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
        )
        self.history: list[dict] = []
        self.best_train_loss: float | None = None
        self.notes: list[str] = []

    @property
    def best(self) -> dict:
        trained = self.history[1:] or self.history
        judged = self.settings["best_by"]  # a measure may be NaN in an epoch: that epoch is never the best of several
        return min(trained, key=lambda row: math.inf if math.isnan(row[judged]) else row[judged])  # earliest of equals

    def next_epoch(self) -> int | None:
        """The epoch to run now, or None if the run is finished."""
        done, patience = len(self.history), self.settings["patience"]
        stale = patience is not None and done > 0 and done - 1 - self.best["epoch"] >= patience
        return None if stale or done > self.settings["epochs"] else done

    def resume(self) -> int | None:
        """Take up the folder's run if there is one: its last finished epoch, or None. Refuse another run's folder."""
        path = self.out / "last.pt"
        if not path.exists():
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(
                    self.out, found=f"no place for a folder ({error})", expected="a folder", remedy="choose another out"
                ) from error
            return None
        state = _read(path)
        _check_same(path, state["settings"], self.settings)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.best_train_loss = state["history"], state["best_train_loss"]
        self.notes = state["notes"]
        return self.history[-1]["epoch"]

    def record(self, **row) -> None:
        """Write down a finished epoch."""
        self.history.append(row)
        if not self.writes:
            return
        # best.pt before last.pt: killed in between, the epoch is done again and best.pt is rewritten with the same
        # weights. The other way round, a best epoch could count as finished with its weights lost.
        if self.best is row:
            best = {"model": self.model.state_dict(), "settings": self.settings, **row}
            _write(self.out / "best.pt", lambda path: torch.save(best, path))
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best_train_loss": None,
            "notes": self.notes,
            "settings": self.settings,
        }
        _write(self.out / "last.pt", lambda path: torch.save(state, path))
        self._write_history()

    def go_to_best(self, train_loss: Callable[[], float]) -> None:
        """Give the model the weights of its best epoch and measure the train loss there, once."""
        load(self.model, self.out / "best.pt")
        if self.best_train_loss is None:
            torch.manual_seed(self.settings["seed"])  # for a dataset that draws random numbers
            self.best_train_loss = train_loss()
            if not self.writes:
                return
            state = _read(self.out / "last.pt") | {"best_train_loss": self.best_train_loss}
            _write(self.out / "last.pt", lambda path: torch.save(state, path))
        if self.writes:
            self._write_history()  # also when nothing was left to do: a kill may have come before the tables

    def _write_history(self) -> None:
        table = pd.DataFrame(self.history)
        _write(self.out / "history.csv", lambda path: table.to_csv(path, index=False))
        summary = {
            "settings": self.settings,
            "best_epoch": self.best["epoch"],
            "best_train_loss": self.best_train_loss,
            "notes": self.notes,
            "history": [{name: _for_json(value) for name, value in row.items()} for row in self.history],
        }
        _write(self.out / "history.json", lambda path: path.write_text(json.dumps(summary, indent=2) + "\n"))


def save(model: nn.Module, path: str | os.PathLike) -> None:
    """Write weights alone, for `load` and `load_matching`: those of a model that was changed after training, say."""
    content = {"model": model.state_dict(), "settings": {}}
    _write(Path(path), lambda temporary: torch.save(content, temporary))


def load(model: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Put the weights of a `best.pt` or `last.pt`, or of `save`, into a model of its form; returns it in eval mode.

    Raises TrainingError if the file is no checkpoint of ours or belongs to a model of another form.
    """
    weights = _read(Path(path))["model"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(
            path,
            found=f"weights of another form ({' '.join(str(error).split())[:300]})",
            expected=f"weights of {type(model).__name__} as it was built here",
            remedy="build the model with the settings listed in the run's history.json",
        ) from error
    return model.eval()


@dataclass(frozen=True)
class Loaded:
    """What `load_matching` did, by the names of weights.

    Attributes
    ----------
    loaded : taken from the file
    kept : weights of the model that stayed as they were
    unused : weights of the file that found no place -> why
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    unused: dict[str, str]

    def __str__(self) -> str:
        lines = [
            f"{len(self.loaded)} weights loaded, {len(self.kept)} of the model kept: {', '.join(self.kept) or '-'}"
        ]
        return "\n".join(lines + [f"not used: {name} ({why})" for name, why in self.unused.items()])


def load_matching(model: nn.Module, path: str | os.PathLike) -> Loaded:
    """Start from another run's weights: take every weight of a checkpoint whose name and shape the model has.

    For a model of another form, say one for whole studies that starts from one for crops. The model stays in its mode
    and keeps what the file does not have. Read the answer: a renamed part would be left untrained without an error.

    Raises TrainingError if the file is no checkpoint of ours or if nothing fits.
    """
    own = model.state_dict()
    weights = {name: value for name, value in _read(Path(path))["model"].items() if isinstance(value, Tensor)}
    fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    unused = {
        name: f"{tuple(value.shape)}, the model has {tuple(own[name].shape)}" if name in own else "the model has none"
        for name, value in weights.items()
        if name not in fitting
    }
    if not fitting:
        raise TrainingError(
            path,
            found=f"no weight that fits, among {', '.join(list(weights)[:5])} ...",
            expected=f"weights of a model akin to {type(model).__name__}, which has {', '.join(list(own)[:5])} ...",
            remedy="name the checkpoint of a model of this family, with the same dim",
        )
    model.load_state_dict(fitting, strict=False)
    return Loaded(tuple(fitting), tuple(name for name in own if name not in fitting), unused)


def describe(model: nn.Module) -> dict:
    """What tells two models apart without looking at weights. Shapes alone would not show the number of heads."""
    shapes = [(name, list(value.shape)) for name, value in model.state_dict().items()]
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]
    return {"class": type(model).__name__, "config": dict(getattr(model, "config", {})), "shapes": digest}


def _check_same(path: Path, there: dict, here: dict) -> None:
    different = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if not different:
        return
    remedy = "give this run another folder, or delete this one to start over"
    if different == ["seed"]:
        remedy += "; to go on with it, pass a generator made anew with the same seed: fit draws from it once a call"
    raise TrainingError(
        path,
        found="a run with other settings: " + "; ".join(f"{k} {there.get(k)} (there)" for k in different),
        expected="; ".join(f"{k} {here.get(k)}" for k in different),
        remedy=remedy,
    )


def _for_json(value):
    """JSON has no NaN: readers in other languages refuse the whole file."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if {"model", "settings"} <= state.keys() and isinstance(state["model"], dict):
            return state
        found = f"keys {', '.join(map(str, state))}"
    except FileNotFoundError:
        found = "no file"
    except Exception as error:  # whatever bytes are in the file: torch and pickle raise many kinds of errors on them
        found = f"a file that does not load ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    remedy = "train again in an empty folder, or point to the right file"
    raise TrainingError(path, found=found, expected="a checkpoint written by training.fit", remedy=remedy)


def _write(path: Path, write) -> None:
    """All or nothing: a reader, or a run that resumes, never sees half a file."""
    with files.replacing(path) as temporary:
        write(temporary)
