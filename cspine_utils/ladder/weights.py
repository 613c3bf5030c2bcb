"""Weights of a rung in a small file that travels with the course: bfloat16, with all that is needed to build the model.

Two hours of training fit into 2 MB; the rounding (three significant digits) changes no result that counts.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cspine_utils import checkpoints, files
from cspine_utils.errors import CSpineError, TrainingError
from cspine_utils.models.vit3d import ViT3D

from .plan import row_file, weights_file
from .profiles import Profile
from .rungs import new_model

#: What of a rung's row goes with its weights.
_FACTS = (
    "rung",
    "seed",
    "difficulty",
    "prevalence",
    "learned_from",
    "auroc",
    "above_own_twin",
    "loss",
    "constant",
    "skill",
)


def export(run: Path, path) -> Path:
    """Write the weights of a finished rung as they were judged.

    Parameters
    ----------
    run : the rung's folder, with `judged.pt` and `row.json`
    path : a .safetensors file; its folder is made if missing
    """
    row = json.loads((Path(run) / "row.json").read_text())
    model = checkpoints.load(new_model(Profile(**row["profile"]), row["seed"]), Path(run) / "judged.pt")
    facts = {key: row[key] for key in _FACTS if row.get(key) is not None}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    with files.replacing(path, shared=True) as temporary:
        # Bytes, not save_file: that one makes a file that nobody else may read.
        temporary.write_bytes(save(weights, metadata={"config": json.dumps(model.config), "facts": json.dumps(facts)}))
    return path


def begin(folder, out, seed: int, but=()) -> list[str]:
    """Put the weights of `folder` where `climb` looks for those of finished rungs, so that it need not climb them.

    Parameters
    ----------
    folder : with <rung>.safetensors, such as data/weights
    out, seed : of the climb; weights that are there already stay
    but : rungs whose weights are left out, since they are to be climbed

    Returns
    -------
    the rungs that need not be climbed: those of the folder, but for `but` and for rungs that were climbed in `out`

    Raises
    ------
    TrainingError : no weights in the folder, damaged ones, or weights of another seed
    """
    there, done = {path: load(path) for path in sorted(Path(folder).glob("*.safetensors"))}, []
    wrong = {path: facts for path, (_, facts) in there.items() if facts["seed"] != seed}
    if not there or wrong:
        raise TrainingError(
            folder,
            found="; ".join(f"{path.name} of seed {facts['seed']}" for path, facts in wrong.items()) or "no weights",
            expected=f"weights of seed {seed}, as ladder.weights.export writes them",
            remedy="climb the rung itself for another seed.",
        )
    for model, facts in there.values():
        place = weights_file(Path(out), seed, facts["rung"])
        if facts["rung"] in but or row_file(Path(out), seed, facts["rung"]).exists():
            continue
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.save(model, place)
        done.append(facts["rung"])
    return done


def load(path) -> tuple[ViT3D, dict]:
    """The model of a file written by `export`, in evaluation mode, and what is known about it.

    Raises
    ------
    TrainingError : no such file, or one that is damaged, of another kind or of another version of the model
    """
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}
        model = ViT3D(**json.loads(told["config"]))
        model.load_state_dict(weights)
        return model.eval(), json.loads(told["facts"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError, CSpineError) as error:
        raise TrainingError(
            path,
            found=f"weights that cannot be used ({' '.join(str(error).split())[:200]})",
            expected="a file written by ladder.weights.export for this version of the model",
            remedy="make it anew with make ladder, or take the one that came with this version of the course.",
        ) from error
