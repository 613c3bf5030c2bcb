"""Run notebooks with parameters through papermill, one or a grid of them, after checking every name and type.

papermill itself accepts a misspelt parameter with a warning and runs the defaults, and YAML hands it
`1e-4` as text. Here the notebook's own parameters cell, with its annotated literals, is the contract:

    data_dir: str = "../data/phantom"
    epochs: int = 6

A grid's notebook declares `run_dir: str`, where it leaves `metrics.json` (one flat object) and whatever else it makes:

    python -m cspine_utils.runs grid.yml --out DIR      run a grid; exit code 1 if a run failed
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from cspine_utils import files
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


def run_grid(
    notebook,
    grid: Mapping[str, Sequence] | Sequence[Mapping],
    out,
    *,
    common: Mapping | None = None,
    inputs: str = "",
    rerun_changed: bool = False,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Run a notebook once for every row of a grid; a failed run is listed and the others go on.

    Parameters
    ----------
    notebook : path; its parameters cell declares `run_dir: str`, and it leaves `metrics.json` there
    grid : rows of parameters, or name -> values for all combinations
    out : folder; each run gets one of its own with the executed notebook, `run.json`, and what the notebook makes
    common : parameters that are the same in all runs
    inputs : a fingerprint of the data; runs with another one are made again
    rerun_changed : also make runs again that another version of the package made (otherwise they are kept and named)
    say : where a line a run goes

    A finished run is one whose `run.json` says so, with the same notebook, parameters and inputs; it is not made
    again. One that was killed or failed is made again in the same folder, where the notebook may find what it left.
    If anything else has changed, the old folder is emptied first: what other code or data left is never taken up.

    Returns
    -------
    DataFrame, index run, columns status ("made", "kept", "failed"), reason, seconds

    Raises
    ------
    ParameterError : before anything runs, for an unknown name, a wrong type, or two equal rows
    """
    notebook, out = Path(notebook).resolve(), Path(out).resolve()
    common = dict(common or {})
    rows = {_run_name(row): common | row for row in _checked_rows(notebook, grid, common)}
    code, package = _notebook_code(notebook), package_code()
    report = {}
    for number, (name, parameters) in enumerate(rows.items(), start=1):
        identity = {"notebook": notebook.name, "code": code, "parameters": parameters, "inputs": inputs}
        known = _read_json(out / name / "run.json") or {}
        started = time.perf_counter()
        whole = known.get("status") == "finished" and _read_json(out / name / "metrics.json") is not None
        if whole and all(known.get(key) == value for key, value in identity.items()):
            same = known.get("package") == package
            if same or not rerun_changed:
                status, reason = "kept", "" if same else "made by another version of the package"
                report[name] = (status, reason, known["seconds"])
                say(f"[{number}/{len(rows)}] {name}: {status}{' (' + reason + ')' if reason else ''}")
                continue
        record = identity | {"package": package}
        if any(known.get(key) != value for key, value in record.items()):
            shutil.rmtree(out / name, ignore_errors=True)
        record |= {"order": number}
        _write_json(out / name / "run.json", record | {"status": "started", "reason": "", "seconds": None})
        reason = _run_one(notebook, out / name, parameters)
        seconds = time.perf_counter() - started
        final = {"status": "failed" if reason else "finished", "reason": reason, "seconds": seconds}
        _write_json(out / name / "run.json", record | final)
        report[name] = ("failed" if reason else "made", reason, seconds)
        say(f"[{number}/{len(rows)}] {name}: {f'FAILED: {reason}' if reason else f'{seconds:.0f} s'}")
    table = pd.DataFrame.from_dict(report, orient="index", columns=["status", "reason", "seconds"])
    table.index.name = "run"
    return table


def collect(out, names=None) -> pd.DataFrame:
    """Every run that a folder holds, or those with these names, in the order in which their grid named them.

    A folder may hold runs of earlier grids, too; the index of `run_grid`'s report names those of the last one.

    Columns: run, status ("finished", "failed", "started" for one that was killed, "unreadable"), reason, the run's
    parameters, and what its `metrics.json` holds (empty where it did not finish). A metric that has a parameter's
    name is called `metrics.<name>`.

    Raises ParameterError if the folder holds no run.
    """
    rows = []
    wanted = None if names is None else set(names)
    for folder in sorted(p for p in Path(out).glob("*") if p.is_dir() and (wanted is None or p.name in wanted)):
        record = _read_json(folder / "run.json")
        if record is None or not {"status", "reason", "parameters", "order"} <= record.keys():
            rows.append({"run": folder.name, "status": "unreadable", "reason": "run.json is missing or damaged"})
            continue
        measured = _read_json(folder / "metrics.json") if record["status"] == "finished" else {}
        if measured is None:
            record |= {"status": "unreadable", "reason": "metrics.json is missing or damaged"}
        parameters = record["parameters"]
        metrics = {f"metrics.{k}" if k in parameters else k: v for k, v in (measured or {}).items()}
        first = {"run": folder.name, "status": record["status"], "reason": record["reason"]}
        rows.append(first | parameters | metrics | {"order": record["order"]})
    if not rows:
        raise ParameterError(
            out, found="no runs", expected="a folder that run_grid wrote", remedy="run the grid first."
        )
    table = pd.DataFrame(rows)
    if "order" in table:
        table = table.sort_values("order", kind="stable").drop(columns="order")
    return table.reset_index(drop=True)


def read_grid(path) -> dict:
    """A grid file: `notebook` (beside the file's folder or absolute), `grid`, and optionally `common`.

    Raises ParameterError for a file that is not such a YAML mapping.
    """
    path = Path(path).resolve()
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        content = f"a file that cannot be read ({' '.join(str(error).split())})"
    needed, allowed = {"notebook", "grid"}, {"notebook", "grid", "common"}
    if not isinstance(content, dict) or not needed <= content.keys() <= allowed or not _types_fit(content):
        found = "the keys " + ", ".join(map(str, content)) if isinstance(content, dict) else str(content)[:200]
        expected = "the keys notebook and grid, and perhaps common: a path, rows or lists of values, parameters"
        raise ParameterError(path, found=found, expected=expected, remedy="see notebooks/profiles/ for examples.")
    return {**content, "notebook": path.parent / content["notebook"], "common": content.get("common") or {}}


def check_grid(path) -> dict:
    """As `read_grid`; also raises ParameterError, with the file's name, for what `run_grid` would refuse."""
    file = read_grid(path)
    try:
        _checked_rows(file["notebook"].resolve(), file["grid"], file["common"])
    except ParameterError as error:
        raise ParameterError(
            f"{path}: {error.where}", found=error.found, expected=error.expected, remedy=error.remedy
        ) from error
    return file


def _types_fit(content: dict) -> bool:
    common = content.get("common")
    return isinstance(content["notebook"], str) and (common is None or isinstance(common, dict))


def package_code() -> str:
    """A fingerprint of the package's source."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _checked_rows(notebook: Path, grid, common: dict) -> list[dict]:
    if not notebook.is_file():
        raise ParameterError(notebook, found="no such file", expected="a notebook", remedy="check the path.")
    declared = notebook_parameters(notebook)
    if declared.get("run_dir", ("", ""))[0] != "str":
        raise ParameterError(
            notebook,
            found="no parameter `run_dir: str`",
            expected="one, for the folder in which the notebook leaves metrics.json",
            remedy="add it to the parameters cell.",
        )
    check_parameters(notebook, common)
    defaults = {name: default for name, (_, default) in declared.items()}
    rows, seen = [], {}
    for row in _rows(grid):
        if "run_dir" in {**common, **row}:
            remedy = "leave it out: each run gets a folder of its own."
            raise ParameterError("run_grid(grid)", found="run_dir in a row", expected="parameters", remedy=remedy)
        rows.append(check_parameters(notebook, row))
        # With defaults and common parameters: {} and {x: 1} are one run if 1 is what x would be anyway.
        whole = json.dumps(defaults | common | rows[-1], sort_keys=True)
        if whole in seen:
            found = f"two rows that are one run: {seen[whole]} and {rows[-1]}"
            raise ParameterError("run_grid(grid)", found=found, expected="different rows", remedy="drop one of them.")
        seen[whole] = rows[-1]
    return rows


def _rows(grid) -> list[dict]:
    """The rows of a grid, or ParameterError if it is neither rows nor lists of values, or empty."""
    rows = grid
    if isinstance(grid, Mapping):
        good = bool(grid) and all(isinstance(v, list | tuple) and len(v) for v in grid.values())
        rows = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if good else []
    if not isinstance(rows, list | tuple) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ParameterError(
            "run_grid(grid)",
            found=repr(grid)[:100],
            expected="at least one row of parameters, or a list of values for each name",
            remedy="write rows as {name: value}, or lists as name: [value, value].",
        )
    return [dict(row) for row in rows]


def _run_name(row: Mapping) -> str:
    """Readable, and safe as a folder's name; the hash keeps apart what the readable part may not."""
    digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:6]
    words = [re.sub(r"[^A-Za-z0-9.=_-]+", "_", f"{key}={value}") for key, value in sorted(row.items())]
    return "_".join([*words, digest])[-150:].lstrip("._-")


def _run_one(notebook: Path, folder: Path, parameters: dict) -> str:
    """Run the notebook in its folder; the reason why that failed, or ""."""
    (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier try
    try:
        run_notebook(notebook, folder / notebook.name, parameters | {"run_dir": str(folder)})
    except CSpineError as error:
        return str(error)
    except Exception as error:  # a kernel that dies raises its own kinds of errors; the other runs go on
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if not isinstance(_read_json(folder / "metrics.json"), dict):
        return "the notebook ran but left no metrics.json with one flat object in run_dir"
    return ""


def _notebook_code(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    source = json.dumps([cell.source for cell in cells if cell.cell_type == "code"])
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _read_json(path: Path):
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def _fits(value, kind: str) -> bool:
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, _TYPES[kind])


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cspine_utils.runs", description=__doc__.splitlines()[0])
    parser.add_argument("grid", help="a YAML file with the keys notebook, grid and perhaps common")
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument("--rerun-changed", action="store_true", help="make runs of other package versions again")
    options = parser.parse_args(arguments)
    try:
        file = check_grid(options.grid)
        report = run_grid(
            file["notebook"], file["grid"], options.out, common=file["common"], rerun_changed=options.rerun_changed
        )
    except CSpineError as error:
        print(f"runs: {error}", file=sys.stderr)
        return 1
    failed = report[report["status"] == "failed"]
    print(f"{len(report) - len(failed)} of {len(report)} runs are finished in {options.out}")
    return 1 if len(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
