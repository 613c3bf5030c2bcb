"""Run a notebook with parameters through papermill, after checking every name and type.

papermill itself accepts a misspelt parameter with a warning and runs the defaults, and YAML hands it
`1e-4` as text. Here the notebook's own parameters cell, with its annotated literals, is the contract:

    data_dir: str = "../data/phantom"
    epochs: int = 6
"""

from __future__ import annotations

import ast
import difflib
import os
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from cspine_utils.errors import CSpineError, ParameterError

_TYPES = {"str": str, "int": int, "float": float, "bool": bool}


class NotebookError(CSpineError):
    """A cell of a notebook failed."""


def notebook_parameters(notebook) -> dict[str, tuple[str, object]]:
    """Name -> (type name, default) of the notebook's cell that is tagged `parameters`.

    Raises ParameterError if the cell is missing or holds anything but annotated literals
    (papermill replaces the literals; a value derived from them would keep the old ones).
    """
    path = Path(notebook)
    cells = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(
            path,
            found=f"{len(cells)} cells tagged 'parameters'",
            expected="exactly one",
            remedy="tag the cell that holds the notebook's parameters.",
        )
    parameters = {}
    for statement in ast.parse(cells[0].source).body:
        try:
            kind = statement.annotation.id
            default = ast.literal_eval(statement.value)
            if not isinstance(statement, ast.AnnAssign) or not _fits(default, kind):
                raise ValueError
            parameters[statement.target.id] = (kind, default)
        except (AttributeError, ValueError, KeyError):
            raise ParameterError(
                path,
                found=f"the line `{ast.unparse(statement)}` in the parameters cell",
                expected=f"an annotated literal, `name: type = value`, type one of {', '.join(_TYPES)}",
                remedy="write it so, and move everything derived into the next cell.",
            ) from None
    return parameters


def check_parameters(notebook, values: dict) -> dict:
    """Return `values` as papermill should get them; raise ParameterError for an unknown name or a wrong type."""
    declared = notebook_parameters(notebook)
    checked = {}
    for name, value in values.items():
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            raise ParameterError(
                notebook,
                found=f"the parameter {name!r}",
                expected="one of " + ", ".join(declared),
                remedy=f"did you mean {close[0]!r}?" if close else "take a name from the parameters cell.",
            )
        kind = declared[name][0]
        if not _fits(value, kind):
            raise ParameterError(
                notebook,
                found=f"{name} = {value!r}, which is of type {type(value).__name__}",
                expected=f"a value of type {kind}",
                remedy="in YAML write 1.0e-4, not 1e-4 (which is text); quote nothing that is a number.",
            )
        checked[name] = float(value) if kind == "float" else value
    return checked


def run_notebook(notebook, out, parameters: dict | None = None) -> None:
    """Execute a notebook on a fresh kernel, in the notebook's own folder, and write the executed copy.

    Parameters
    ----------
    notebook, out : paths; the copy is written under a temporary name and renamed when all cells ran
    parameters : values for the parameters cell, checked before anything runs

    Raises
    ------
    ParameterError : unknown name or wrong type
    NotebookError : a cell failed; the message names the cell, the executed part is kept beside `out`
    """
    notebook, out = Path(notebook).resolve(), Path(out).resolve()
    checked = check_parameters(notebook, parameters or {})
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.stem}.failed.ipynb")
    try:
        papermill.execute_notebook(
            notebook,
            partial,
            checked,
            cwd=notebook.parent,
            kernel_name="python3",
            progress_bar=False,
            # A failing cell is our own error; the kernel's remarks on its connections help nobody on a terminal.
            extra_arguments=["--log-level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        raise NotebookError(
            notebook,
            found=f"{error.ename} in cell [{error.exec_count}]: {error.evalue}",
            expected="every cell to run",
            remedy=f"open {partial} and read the cell with the error.",
        ) from error
    os.replace(partial, out)


def _fits(value, kind: str) -> bool:
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, _TYPES[kind])
