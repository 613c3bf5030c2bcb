"""What a committed notebook must be. `problems` is used by the tests on every notebook of the course,
and on fixtures that must be refused: nbval compares nothing in a cell without an execution count, so
a notebook with stripped outputs would pass it without being tested at all."""

from __future__ import annotations

import ast
import re

import nbformat

from cspine_utils.errors import ParameterError
from cspine_utils.runs import notebook_parameters

MAX_CELL_LINES = 25
#: Opening of the sentence below a figure (alt text of outputs is lost when notebooks are rendered).
CAPTION = "**What to see.**"
_MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|opt)/\w+")


def problems(path) -> list[str]:
    """Sentences on what is wrong; empty for a notebook that may be committed."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    return [
        *_counts(code),
        *_outputs(code),
        *_parameters(path),
        *_code(code),
        *_captions(notebook.cells),
        *_frame(notebook),
    ]


def _counts(code) -> list[str]:
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(counts) + 1)):
        return [f"execution counts are {counts}: run it from top to bottom on a fresh kernel"]
    return []


def _outputs(code) -> list[str]:
    found = []
    for cell in code:
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell [{cell.execution_count}] stores an error: {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"cell [{cell.execution_count}] stores a warning: {output.text[:80]!r}")
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                found.append(f"cell [{cell.execution_count}] stores a widget, which does not render on the web")
            text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            if _MACHINE_PATH.search(text):
                found.append(f"cell [{cell.execution_count}] prints a path of one machine: {text[:80]!r}")
    return found


def _parameters(path) -> list[str]:
    try:
        notebook_parameters(path)
    except ParameterError as error:
        return [str(error)]
    return []


def _code(code) -> list[str]:
    """Short cells; classes and whole functions live in the package, where they are tested."""
    found = []
    for cell in code:
        lines = cell.source.splitlines()
        if len(lines) > MAX_CELL_LINES:
            found.append(f"cell [{cell.execution_count}] has {len(lines)} lines, at most {MAX_CELL_LINES} are read")
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ClassDef):
                found.append(f"cell [{cell.execution_count}] defines the class {node.name}: import it")
    return found


def _captions(cells) -> list[str]:
    found = []
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        figures = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        if figures and not (following and following.cell_type == "markdown" and CAPTION in following.source):
            found.append(f"the figure of cell [{cell.execution_count}] has no sentence below it ({CAPTION})")
    return found


def _frame(notebook) -> list[str]:
    """It opens with what the reader will be able to do and closes with key points."""
    markdown = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    found = []
    if not markdown or not markdown[0].startswith("# ") or "you will be able to" not in markdown[0]:
        found.append("the first cell has no title with 'you will be able to'")
    if not markdown or "## Key points" not in markdown[-1]:
        found.append("the last text cell has no '## Key points'")
    return found
